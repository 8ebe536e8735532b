"""The Datasette plugin: hooks, and nothing that is needed outside of Datasette."""

from datasette_vision.plugin.hooks import (
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
    "permission_allowed",
    "permission_resources_sql",
    "prepare_connection",
    "register_actions",
    "register_commands",
    "render_cell",
    "shutdown",
    "startup",
]
