"""Embeddings outside of a database: Parquet files, object stores, and the way in and out. Needs the extra `parquet`.

ray/ does the same work on a cluster.
"""
