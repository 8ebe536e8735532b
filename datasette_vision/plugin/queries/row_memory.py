"""Limits the memory for the results of queries, in total and for each client.

SQLite can compute any amount of data: `select randomblob(20000000) from photos` is 20 MB per row. Datasette holds all
rows of a result and then writes them, which as JSON takes six times as much: base64 or escapes, the text, its bytes,
and the data waiting to be sent. A page shows little of a large value. So rows are counted as they are read, and a query
that would take more than the server has fails.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasette_vision.util.memory import available_bytes, give_back

if TYPE_CHECKING:
    from sqlite3 import Connection, Cursor

# The memory that a byte of a value costs, in a page and in all other formats.
PAGE_COST, WRITTEN_COST = 2, 6
WRITTEN = (".json", ".jsono", ".csv", ".blob")
# Shares of the process's memory: for all results together, and for those of one client.
ALL_PART, CLIENT_PART = 4, 6
LEAST_BYTES = 32 * 2**20
# Rows are counted in steps of this size, so that small results cost nothing.
STEP_BYTES = 256 * 1024
# The memory of a large result stays with the process until the C library returns it: soon after the last one.
LARGE_BYTES = 8 * 2**20
TIDY_AFTER_S = 1.0
# If the available memory is unknown.
ASSUMED_BYTES = 2**31


class RowMemory:
    """The memory for the results of one server's queries. Thread-safe."""

    def __init__(self, total_bytes: int, client_bytes: int) -> None:
        self._total = total_bytes
        self._each = client_bytes
        self._held = 0
        self._clients: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._tidying = threading.Event()

    def hold(self, client: str, path: str) -> Held:
        """Return the account of a request to `path`, initially empty."""
        return Held(self, client, WRITTEN_COST if path.endswith(WRITTEN) else PAGE_COST)

    def take(self, client: str, count: int) -> str | None:
        """Take bytes. Return None, or the reason why they are not available."""
        with self._lock:
            if self._clients[client] + count > self._each:
                return "this result takes more memory than a client may use: ask for fewer or smaller rows"
            if self._held + count > self._total:
                return "the server has no memory left for this result: try again in a moment"
            self._clients[client] += count
            self._held += count
            return None

    def give(self, client: str, count: int) -> None:
        """Return bytes."""
        if count > LARGE_BYTES and not self._tidying.is_set():
            self._tidying.set()
            timer = threading.Timer(TIDY_AFTER_S, self._tidy)
            timer.daemon = True
            timer.start()
        with self._lock:
            self._held -= count
            self._clients[client] -= count
            if not self._clients[client]:
                del self._clients[client]

    def _tidy(self) -> None:
        self._tidying.clear()
        give_back()


class Held:
    """The memory that the results of one request's queries hold. Rows are counted on the threads of its queries."""

    def __init__(self, memory: RowMemory, client: str, cost: int) -> None:
        self._memory = memory
        self._client = client
        self._cost = cost
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> str | None:
        """Hold this many more bytes of values. Return None, or the reason why they are not available."""
        with self._lock:
            refused = self._memory.take(self._client, self._cost * count)
            if refused is None:
                self._bytes += self._cost * count
            return refused

    def release(self) -> None:
        """Release everything."""
        with self._lock:
            self._memory.give(self._client, self._bytes)
            self._bytes = 0


class Counted:
    """A connection whose cursors count the rows that are read from them. Only the code that runs a query uses it.

    Rows that SQL functions read on the connection itself are not counted: they are not kept.
    """

    def __init__(self, connection: Connection, held: Held) -> None:
        self._connection = connection
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def cursor(self) -> Cursor:
        """Return a cursor that fails once its rows take too much memory."""
        cursor = self._connection.cursor()
        cursor.row_factory = _counting(self._connection.row_factory, self._held)
        return cursor


def _counting(make: Any, held: Held) -> Callable[[Cursor, tuple[Any, ...]], Any]:
    """Return a row factory that counts, and makes rows as `make` does, or tuples if it is None."""
    waiting = 0

    def row(cursor: Cursor, values: tuple[Any, ...]) -> Any:
        nonlocal waiting
        for value in values:
            if type(value) is str or type(value) is bytes:
                waiting += len(value)
        if waiting > STEP_BYTES:
            refused = held.take(waiting)
            waiting = 0
            if refused is not None:
                from datasette.utils.sqlite import sqlite3

                raise sqlite3.OperationalError(refused)
        return values if make is None else make(cursor, values)

    return row


def of_this_process() -> RowMemory:
    """Return the memory for results in this process."""
    available = available_bytes() or ASSUMED_BYTES
    return RowMemory(max(LEAST_BYTES, available // ALL_PART), max(LEAST_BYTES, available // CLIENT_PART))
