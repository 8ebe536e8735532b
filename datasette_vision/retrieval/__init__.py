"""The rows of a table nearest to a text, an image or an embedding, and the indexes that make it fast.

How a search is asked for and shown is plugin/search/ and cli/search.py.
"""
