"""Search over HTTP: a request, the SQL that answers it, the page and the JSON."""
