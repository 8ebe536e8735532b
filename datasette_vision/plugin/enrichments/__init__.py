"""Enrichments for datasette-enrichments, on Datasette 1.0."""
