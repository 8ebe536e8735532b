"""Arithmetic on embeddings: the BLOB format, cosines, zero-shot scores, and indexes of nearest neighbours.

Functions take and return arrays and bytes. Reading tables is in tables/ and retrieval/.
"""
