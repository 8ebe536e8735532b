"""Finds the rows of a table nearest to a text, an image or an embedding, with indexes that make it fast.

The interfaces of a search are in plugin/search/ and cli/search.py.
"""
