"""Rows written in small transactions: none is open while the next rows are made, and a kill loses a moment's work."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

SECONDS = 0.25
SHARE = 0.1  # of the time at most goes into transactions, however slow the disk is
ROWS = 500  # some 20 ms: a Datasette that writes beside us is not kept waiting
BUSY_TIMEOUT_MS = 300_000  # somebody else's VACUUM takes minutes


class Transactions(Generic[T]):
    """Gathers what `add` gets and has `write(rows)` write it, in a transaction some times a second.

    As a context manager it writes the rest at the end, also when an exception passes; but not after one of SQLite's.
    The connection is in autocommit mode.
    """

    def __init__(self, connection: sqlite3.Connection, write: Callable[[list[T]], None]) -> None:
        self._connection = connection
        self._write = write
        self._waiting: list[T] = []
        self._since = 0.0
        self._interval = SECONDS
        connection.execute(f"pragma busy_timeout = {BUSY_TIMEOUT_MS}")

    def add(self, row: T) -> None:
        """Take a row, and write those that wait when they are many or have waited long. Raises sqlite3.Error."""
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append(row)
        if len(self._waiting) >= ROWS or time.monotonic() - self._since >= self._interval:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait. Raises sqlite3.Error."""
        if not self._waiting:
            return
        began = time.monotonic()
        self._connection.execute("begin immediate")
        try:
            self._write(self._waiting)
            self._connection.execute("commit")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            raise
        self._waiting = []
        self._interval = max(SECONDS, (time.monotonic() - began) / SHARE)

    def __enter__(self) -> Transactions[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not isinstance(error, sqlite3.Error):
            self.flush()
