"""Writes rows in small transactions: none is open while the next rows are computed, and a kill loses a moment's
work.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

TRANSACTION_S = 0.25
TRANSACTION_SHARE = 0.1  # of the time at most is spent in transactions, however slow the disk is
ROWS = 500  # about 20 ms: a Datasette that writes to the same file does not have to wait long
BUSY_TIMEOUT_MS = 300_000  # another process's VACUUM takes minutes


class Writer(Protocol):
    """Runs a function in a transaction, on a connection that it may write to, and returns its result."""

    def __call__(self, function: Callable[[sqlite3.Connection], T], /) -> T: ...


def in_transaction(connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Run a function in a transaction of a connection, committed at its end; or in a transaction that is already
    open.
    """
    began = not connection.in_transaction
    if began:
        connection.execute("begin immediate")
    try:
        result = function(connection)
        if began:
            connection.execute("commit")
    except BaseException:
        if began and connection.in_transaction:
            connection.execute("rollback")
        raise
    return result


def writer_on(connection: sqlite3.Connection) -> Writer:
    """Return a writer on a separate connection, in autocommit mode. It waits while others write."""
    connection.execute(f"pragma busy_timeout = {BUSY_TIMEOUT_MS}")

    def write(function: Callable[[sqlite3.Connection], T], /) -> T:
        return in_transaction(connection, function)

    return write


class Transactions(Generic[T]):
    """Collects rows from `add` and writes them with `write(connection, rows)`, in a transaction a few times a second.

    As a context manager it writes the rest at the end, even on an exception, but not after one of SQLite's.
    """

    def __init__(self, writer: Writer, write: Callable[[sqlite3.Connection, list[T]], None]) -> None:
        self._writer = writer
        self._write = write
        self._waiting: list[T] = []
        self._since = 0.0
        self._interval = TRANSACTION_S
        self._failed = False

    def add(self, row: T) -> None:
        """Take a row, and write the waiting rows if they are many or have waited long. Raises the writer's errors."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append(row)
        if len(self._waiting) >= ROWS or time.monotonic() - self._since >= self._interval:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows. Raises the writer's errors."""
        if not self._waiting:
            return
        began = time.monotonic()
        rows = self._waiting
        self._failed = True
        self._writer(lambda connection: self._write(connection, rows))
        self._failed = False
        self._waiting = []
        self._interval = max(TRANSACTION_S, (time.monotonic() - began) / TRANSACTION_SHARE)

    def __enter__(self) -> Transactions[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._failed and not isinstance(error, sqlite3.Error):
            self.flush()
