"""Writes from a thread through Datasette's own connection, in turn with its other writes."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from datasette_vision.errors import StorageFailed
from datasette_vision.util.transactions import in_transaction

if TYPE_CHECKING:
    from datasette.database import Database

T = TypeVar("T")

LOOK_S = 1.0


class DatasetteWriter:
    """Runs functions in transactions of a database's write connection, on its thread. Not for the event loop."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        self._database = database
        self._loop = loop

    def __call__(self, function: Callable[[Any], T], /) -> T:
        """Run a function, wait for it, and return its result. Raises StorageFailed if it cannot be run."""

        from datasette.utils.sqlite import sqlite3

        waits = self._database.execute_write_fn(lambda connection: in_transaction(connection, function))
        try:
            future = asyncio.run_coroutine_threadsafe(waits, self._loop)
        except RuntimeError:  # the loop is closed
            waits.close()
            raise StorageFailed("the server is stopping") from None
        while True:
            try:
                result: T = future.result(LOOK_S)
                return result
            except sqlite3.Error as error:
                raise StorageFailed(f"{self._database.name} cannot be written: {error}") from None
            except concurrent.futures.CancelledError:
                raise StorageFailed("the server is stopping") from None
            except concurrent.futures.TimeoutError:
                if not self._loop.is_running():
                    raise StorageFailed("the server is stopping") from None
