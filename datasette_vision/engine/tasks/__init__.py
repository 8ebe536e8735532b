"""What models are for: a module for each task, which says how one is loaded, run, tried and asked.

A new task is a module here and a line in registry.py. Its SQL functions and HTTP routes follow from its operations.
"""
