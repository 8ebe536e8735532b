"""The HTTP API: routes, their description, and the protocols of others. A route is a row in table.py."""
