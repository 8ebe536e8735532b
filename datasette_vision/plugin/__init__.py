"""The Datasette plugin: hooks, and nothing that is needed outside of Datasette."""

from datasette_vision.plugin.hooks import (
    asgi_wrapper,
    permission_allowed,
    permission_resources_sql,
    prepare_connection,
    register_actions,
    register_commands,
    render_cell,
    shutdown,
    startup,
)

__all__ = [
    "asgi_wrapper",
    "permission_allowed",
    "permission_resources_sql",
    "prepare_connection",
    "register_actions",
    "register_commands",
    "render_cell",
    "shutdown",
    "startup",
]
