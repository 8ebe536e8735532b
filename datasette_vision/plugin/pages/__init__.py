"""The pages besides search, images of rows, and what the plugin shows on Datasette's own pages."""
