"""How much memory the answers of queries may take, together and for each client.

SQLite computes any amount of data out of nothing: `select randomblob(20000000) from photos` is 20 MB a row. Datasette
holds all rows of an answer, and then writes them out, which as JSON takes six times as much: base64 or escapes, the
text, its bytes, and what waits to be sent. A page shows little of a large value. So rows are counted as they are read,
and the query fails that is about to take more than the server has.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasette_vision.util.memory import available_bytes, give_back

if TYPE_CHECKING:
    from sqlite3 import Connection, Cursor

# What a byte of a value costs, in a page and in all other forms of an answer.
PAGE_COST, WRITTEN_COST = 2, 6
WRITTEN = (".json", ".jsono", ".csv", ".blob")
# Of the memory that the process may use: for all answers together, and for those of one client.
ALL_PART, CLIENT_PART = 4, 6
LEAST_BYTES = 32 * 2**20
# Rows are counted in steps of this size, so that small answers cost nothing.
STEP_BYTES = 256 * 1024
# What a large answer took stays with the process until the C library is told to give it back: soon after the last one.
LARGE_BYTES = 8 * 2**20
TIDY_AFTER_S = 1.0
# Where the system does not tell how much memory there is.
ASSUMED_BYTES = 2**31


class RowMemory:
    """The memory for the answers of one server's queries. Thread-safe."""

    def __init__(self, total_bytes: int, client_bytes: int) -> None:
        self._total = total_bytes
        self._each = client_bytes
        self._held = 0
        self._clients: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._tidying = threading.Event()

    def hold(self, client: str, path: str) -> Held:
        """Return what a request to `path` holds, nothing yet."""
        return Held(self, client, WRITTEN_COST if path.endswith(WRITTEN) else PAGE_COST)

    def take(self, client: str, count: int) -> str | None:
        """Take bytes. Return None, or why they cannot be had."""
        with self._lock:
            if self._clients[client] + count > self._each:
                return "this answer takes more memory than a client may use here: ask for fewer rows, or smaller ones"
            if self._held + count > self._total:
                return "the server has no memory left for this answer: try again in a moment"
            self._clients[client] += count
            self._held += count
            return None

    def give(self, client: str, count: int) -> None:
        """Give bytes back."""
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
    """What the answers of one request's queries hold. Rows are counted on the threads of its queries."""

    def __init__(self, memory: RowMemory, client: str, cost: int) -> None:
        self._memory = memory
        self._client = client
        self._cost = cost
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> str | None:
        """Hold so many more bytes of values. Return None, or why that cannot be."""
        with self._lock:
            refused = self._memory.take(self._client, self._cost * count)
            if refused is None:
                self._bytes += self._cost * count
            return refused

    def release(self) -> None:
        """Hold nothing any more."""
        with self._lock:
            self._memory.give(self._client, self._bytes)
            self._bytes = 0


class Counted:
    """A connection whose cursors count the rows that are read from them. For the one who runs a query.

    What functions of SQL read meanwhile, on the connection itself, is not counted: they let go of it.
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
    """Return a row factory that counts, and makes rows as `make` does; tuples with None."""
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
    """Return the memory for answers that this process may use."""
    available = available_bytes() or ASSUMED_BYTES
    return RowMemory(max(LEAST_BYTES, available // ALL_PART), max(LEAST_BYTES, available // CLIENT_PART))
