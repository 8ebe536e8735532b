"""The pages besides search, images of rows, and what is shown inside Datasette's own pages."""
