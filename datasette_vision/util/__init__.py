"""What knows nothing of images: lazy values, memory and cores, fair queues, SQL names and transactions.

Anything that names an image, a model or Datasette belongs elsewhere.
"""
