"""Utilities that know nothing about images: lazy values, memory and cores, fair queues, SQL names and transactions.

Anything about images, models or Datasette belongs elsewhere.
"""
