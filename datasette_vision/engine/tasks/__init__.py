"""Tasks: a module for each, which says how its models are loaded, run, tested and called.

A new task is a module here and a line in registry.py. Its SQL functions and HTTP routes are derived from its
operations.
"""
