"""Whole tables and folders: embedding a table, loading photos, keeping both in step with what changes.

Files that go into Parquet instead of a database are files/.
"""
