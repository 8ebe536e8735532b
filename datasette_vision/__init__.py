"""Image understanding in SQL: CLIP embeddings and image classification for Datasette."""

__version__ = "0.1.0"
