"""Limits the memory that SQLite uses for the queries of a server.

By default it is unlimited: `select zeroblob(1000000000)` takes a gigabyte, `group_concat()` and sorting any amount.
These limits depend on the memory that the process may use.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from datasette_vision.util import memory
from datasette_vision.util.lazy import Lazy

# Shares of that memory: for everything in SQLite, including caches and databases in memory; and for one value.
HEAP_PART, VALUE_PART = 4, 16
LEAST_HEAP_BYTES, LEAST_VALUE_BYTES = 64 * 2**20, 16 * 2**20
# SQLite's own limit for a value.
VALUE_BYTES = 1_000_000_000

_available: Lazy[int | None] = Lazy(memory.available_bytes)


def heap_bytes(available: int) -> int:
    """Return the memory limit of SQLite in a process that may use `available` bytes."""
    return max(LEAST_HEAP_BYTES, available // HEAP_PART)


def value_bytes(available: int) -> int:
    """Return the maximum size of a TEXT or BLOB, in bytes."""
    return min(VALUE_BYTES, max(LEAST_VALUE_BYTES, available // VALUE_PART))


def limit(connection: Any, available: int | None = None) -> None:
    """Limit the memory of a connection's values, and of SQLite in this process. Existing lower limits remain."""
    available = available or _available.get()
    if available is None:
        return
    # These apply to the whole process, and the first can only be lowered. SQLite before 3.31 ignores it.
    most = heap_bytes(available)
    connection.execute(f"pragma hard_heap_limit = {most}").fetchall()
    # Caches shrink before queries fail. A hard limit also sets the soft one to itself.
    (soft,) = connection.execute("pragma soft_heap_limit").fetchone() or (0,)
    if not 0 < soft < most:
        connection.execute(f"pragma soft_heap_limit = {most // 4 * 3}").fetchall()
    # Not in Python 3.10, nor in pysqlite3.
    if hasattr(connection, "setlimit"):
        now = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(now, value_bytes(available)))
