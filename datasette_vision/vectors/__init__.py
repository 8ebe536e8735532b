"""Arithmetic on embeddings: the BLOB format, cosines, zero-shot scores, and indexes of nearest neighbours.

Arrays and bytes in and out. What is read from tables belongs to tables/ or retrieval/.
"""
