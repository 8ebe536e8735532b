"""What is kept beside a table, and how its rows are read: side tables, their log of changes, rows and keys.

No model runs here; what is nearest to what is retrieval/.
"""
