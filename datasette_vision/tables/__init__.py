"""Side tables, their change log, and the rows and keys of source tables.

No model runs here. Finding the nearest rows is in retrieval/.
"""
