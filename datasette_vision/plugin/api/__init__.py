"""The HTTP API: routes, their description, and OpenAI's protocol. A route is a row in table.py."""
