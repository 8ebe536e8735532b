"""Makes databases readable again immediately after a process was killed while writing.

Datasette's read connections cannot roll back. Until somebody rolls back the unfinished transaction, SQLite refuses to
read: every page is an error, and the server does not even start.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasette_vision.util.connections import recover_database

if TYPE_CHECKING:
    from datasette.app import Datasette

    from datasette_vision.plugin.server.activity import Application


def before_reading(datasette: Datasette) -> None:
    """Roll back what killed processes were writing, in the databases that may be written to."""
    from datasette.utils.sqlite import sqlite3

    for path in _interrupted(datasette):
        recover_database(sqlite3.connect, path)


def recover_before_requests(datasette: Datasette, application: Application) -> Application:
    """Wrap an ASGI application so that databases are readable before a request."""

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and _interrupted(datasette):
            await asyncio.to_thread(before_reading, datasette)
        await application(scope, receive, send)

    return watched


def _interrupted(datasette: Datasette) -> list[str]:
    """Return the files with a journal beside them: a process is writing, or was."""
    databases = list(datasette.databases.values())
    paths = {str(each.path) for each in databases if each.path and each.is_mutable and not each.is_memory}
    return [path for path in paths if Path(f"{path}-journal").exists()]
