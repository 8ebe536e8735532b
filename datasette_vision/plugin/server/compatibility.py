"""The differences between Datasette 0.65 and 1.0."""

from __future__ import annotations

import contextlib
import json
import queue
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import datasette

from datasette_vision.errors import InvalidArgument
from datasette_vision.util.excerpt import excerpt

if TYPE_CHECKING:
    from sqlite3 import Connection

    from datasette.app import Datasette
    from datasette.database import Database
    from datasette.utils.asgi import Request

IS_1_0 = not datasette.__version__.startswith("0.")


def query_path(datasette: Datasette, database: str) -> str:
    """Return the path of the page that runs ?sql= on a database."""
    return str(datasette.urls.database(database)) + ("/-/query" if IS_1_0 else "")


def database_color(database: Database) -> str:
    """Return the hexadecimal colour of a database's pages in Datasette."""
    return str(database.color) if IS_1_0 else "ff0000"


async def filter_arguments(
    datasette: Datasette,
    request: Request,
    database: str,
    table: str,
    filters: Iterable[tuple[str, str]],
    columns: tuple[str, ...],
) -> tuple[list[str], dict[str, Any], str]:
    """Return Datasette's filters on a table as (WHERE clauses, their parameters, their description in words).

    `filters` are the column filters in the address. Other filtering arguments (_where, _search, _through, those of
    plugins) are passed to the hook that Datasette calls, with its permissions. Raises InvalidArgument for an invalid
    filter, such as one for a missing column, and whatever else the hooks raise.
    """
    from datasette.filters import Filters
    from datasette.plugins import pm
    from datasette.utils import await_me_maybe
    from datasette.views.base import DatasetteError

    pairs = sorted((name, value) for name, value in filters if not (name.startswith("_") and "__" not in name))
    chosen = Filters(pairs)
    known = {lookup for lookup, _, _ in chosen.lookups()}
    for column, lookup, value in chosen.selections():
        if column not in columns and column != "rowid":
            # SQLite treats the quoted name of a missing column as a text.
            raise InvalidArgument(f"{table} has no column {column!r} to filter by; it has {', '.join(columns)}")
        if lookup not in known:
            raise InvalidArgument(f"there is no filter {lookup!r}; filters are {', '.join(sorted(known))}")
        if lookup in ("in", "notin"):
            _check_list(column, lookup, str(value))
    for through in request.args.getlist("_through"):
        _check_through(through)
    words: list[str] = []
    try:
        clauses, parameters = chosen.build_where_clauses(table)
        for hook in pm.hook.filters_from_request(request=request, database=database, table=table, datasette=datasette):
            found = await await_me_maybe(hook)
            if found:
                clauses += found.where_clauses
                parameters.update(found.params)
                words += found.human_descriptions
        in_words = str(chosen.human_description_en(extra=words))
        in_words.encode()  # JSON may contain a lone surrogate, which no page can
    except DatasetteError as error:
        if error.status == 500:  # its default: Datasette reports its own refusal as an error of the server
            raise InvalidArgument(error.message) from None
        raise
    except Exception as error:
        if getattr(error, "status", 500) < 500:  # Datasette's own: not allowed, not found
            raise
        # Datasette does not check these values, for example numbers with digits other than 0 to 9.
        raise InvalidArgument(f"invalid filters: {type(error).__name__}: {str(error)[:200]}") from None
    return clauses, parameters, in_words


@contextlib.contextmanager
def fresh_permission_checks() -> Iterator[None]:
    """Make permission checks neither use nor fill the cache that Datasette 1.0 keeps during a request."""
    from datasette import permissions

    cache = getattr(permissions, "_permission_check_cache", None)
    token = cache.set(None) if cache is not None else None
    try:
        yield
    finally:
        if cache is not None:
            cache.reset(token)


def _check_list(column: str, lookup: str, value: str) -> None:
    """Raise InvalidArgument for a list that Datasette reads as JSON, but cannot parse."""
    if value.startswith("["):
        try:
            values = json.loads(value)
        except (ValueError, RecursionError):
            values = [None]
        if not all(isinstance(each, (str, int, float)) for each in values):
            raise InvalidArgument(
                f"{column}__{lookup}: expected a JSON array of texts and numbers, found {excerpt(value)}"
            )


def _check_through(text: str) -> None:
    """Raise InvalidArgument for a _through= that Datasette cannot parse."""
    try:
        through = json.loads(text)
    except (ValueError, RecursionError):
        through = None
    if not (
        isinstance(through, dict)
        and all(isinstance(through.get(name), str) for name in ("table", "column"))
        and isinstance(through.get("value"), (str, int, float))
    ):
        raise InvalidArgument(f"_through: expected a JSON object of table, column and value, found {excerpt(text)}")


def close_databases(datasette: Datasette, timeout_s: float) -> None:
    """Finish pending writes, then close the databases, waiting at most `timeout_s` seconds for running work.

    1.0 has a method for this. On 0.65 the write thread never ends: closing its connection is queued there as a task.
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
            return  # a connection must not be closed under a running query
    for database in databases:
        database.close()


def open_reader(database: Database) -> Connection:
    """Return a new read-only connection to a database. The caller closes it: Datasette does not keep it.

    It uses Datasette's SQLite: two libraries in one process, on one file, release each other's locks.
    """
    connection = database.connect()
    for name in ("_all_file_connections", "_all_connections"):
        kept = getattr(database, name, [])
        with contextlib.suppress(ValueError):
            kept.remove(connection)
    return connection
