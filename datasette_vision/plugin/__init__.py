"""The Datasette plugin: hooks, and nothing that is needed outside of Datasette."""

from datasette_vision.plugin.hooks import (
    prepare_connection,
    register_commands,
    render_cell,
    shutdown,
    startup,
)

__all__ = ["prepare_connection", "register_commands", "render_cell", "shutdown", "startup"]
