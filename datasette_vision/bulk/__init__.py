"""Whole tables and folders: embeds a table, loads photos, and keeps both in sync with changes.

Writing embeddings to Parquet instead of a database is in files/.
"""
