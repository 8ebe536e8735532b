"""The configuration: a mapping in, a frozen and checked object out.

A key is one row in settings.py. What a value means is decided by the code that uses it.
"""
