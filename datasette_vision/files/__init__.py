"""Embeddings in files: Parquet, object stores, and importing into a database. Needs the extra `parquet`.

ray/ does the same work on a cluster.
"""
