"""The one place that knows how Datasette 0.65 and 1.0 differ."""

from __future__ import annotations

import contextlib
import queue
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import datasette

if TYPE_CHECKING:
    from datasette.app import Datasette

IS_1_0 = not datasette.__version__.startswith("0.")


def serve_arguments(database: Path, metadata: Path, host: str, port: int) -> list[str]:
    """Return the arguments that make `datasette` serve a database with its metadata and saved queries.

    0.65 reads saved queries from --metadata, 1.0 from --config; each ignores what is the other's.
    """
    files = ["--metadata", _argument(metadata), *(["--config", _argument(metadata)] if IS_1_0 else [])]
    return ["serve", _argument(database), *files, "--host", host, "--port", str(port), "--cors"]


def _argument(path: Path) -> str:
    """Write a path so that no command line takes it for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def close_databases(datasette: Datasette, timeout_s: float) -> None:
    """Write what waits to be written, then close the databases, waiting at most `timeout_s` seconds for what runs.

    1.0 has a method for that. On 0.65 the thread that writes never ends: it is handed, behind everything that waits,
    the task of closing its own connection.
    """
    if hasattr(datasette, "close"):
        datasette.close()
        return
    from datasette.database import WriteTask

    deadline = time.monotonic() + timeout_s
    databases = {id(database): database for database in datasette.databases.values()}.values()
    written: list[queue.Queue[object]] = []
    for database in databases:
        if database._write_queue is not None:
            reply: queue.Queue[object] = queue.Queue()
            written.append(reply)
            database._write_queue.put(WriteTask(lambda conn: conn.close(), None, SimpleNamespace(sync_q=reply)))
    for reply in written:
        with contextlib.suppress(queue.Empty):
            reply.get(timeout=max(0.0, deadline - time.monotonic()))
    if datasette.executor is not None:
        datasette.executor.shutdown(wait=False, cancel_futures=True)
        threads = list(datasette.executor._threads)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            return  # a connection must not be closed under the query that runs on it
    for database in databases:
        database.close()
