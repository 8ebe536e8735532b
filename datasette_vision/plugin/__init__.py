"""The Datasette plugin: hooks, and nothing that is needed outside of Datasette."""

from datasette_vision.plugin.hooks import (
    asgi_wrapper,
    cross_origin,
    menu_links,
    permission_allowed,
    permission_resources_sql,
    prepare_connection,
    register_actions,
    register_commands,
    register_routes,
    render_cell,
    row_actions,
    shutdown,
    skip_csrf,
    startup,
    table_actions,
    top_table,
)

__all__ = [
    "asgi_wrapper",
    "cross_origin",
    "menu_links",
    "permission_allowed",
    "permission_resources_sql",
    "prepare_connection",
    "register_actions",
    "register_commands",
    "register_routes",
    "render_cell",
    "row_actions",
    "shutdown",
    "skip_csrf",
    "startup",
    "table_actions",
    "top_table",
]
