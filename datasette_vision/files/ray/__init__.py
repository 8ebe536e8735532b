"""Embedding files on a Ray cluster. Needs the extra `ray`, and is the only folder that imports it."""
