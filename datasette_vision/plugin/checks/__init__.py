"""`datasette vision check`: what an operator sees to before strangers may use a server."""
