"""The configuration: takes a mapping, returns a frozen and checked object.

A key is one row in settings.py. The code that uses a value decides what it means.
"""
