"""Shows why a SQL function failed.

CPython replaces the message of every exception in a SQL function with "user-defined function raised exception", and
Datasette's views show that, before any hook is called. So sql.register() passes the original message to remember(), on
the thread that runs the query. Everything that Datasette runs on a connection is run here under explained(), on the
same thread, which puts the message into the sqlite3 error as it passes. Queries cannot mix: a thread runs one at a
time.

An error that is kept, as in QueryInterrupted, holds its traceback, whose frames hold the query's cursor. If that cursor
is freed later on another thread, that thread waits for whatever query its connection runs then. So the frames are
cleared here, on the thread of the query.
"""

from __future__ import annotations

import functools
import threading
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from datasette.utils.sqlite import sqlite3

T = TypeVar("T")

# How CPython's messages for a failed function or aggregate begin.
GENERIC = "user-defined "
NO_MEMORY = "this query needs more memory than is available"
HINT = " (was it given TEXT that is not valid UTF-8?)"

_thread = threading.local()


def remember(message: str) -> None:
    """Keep the message of the error that is about to end the query on this thread."""
    _thread.message = message


def explained(function: Callable[..., T]) -> Callable[..., T]:
    """Run `function(connection)` so that an sqlite3 error from our functions has its original message."""

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> T:
        _thread.message = None
        try:
            return function(*arguments, **named)
        except MemoryError as error:
            # SQLite (sqlite_limits.py) or Python is out of memory: for pages, the query failed, not the server.
            traceback.clear_frames(error.__traceback__)
            raise sqlite3.OperationalError(NO_MEMORY) from None
        except Exception as error:
            text = str(error)
            if isinstance(error, sqlite3.Error) and text.startswith(GENERIC):
                # Nothing remembered: the function was not entered, or it is another plugin's.
                error.args = (_thread.message or text + HINT,)
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            _thread.message = None

    return run
