"""Lets a person read why a SQL function failed.

CPython replaces the message of every exception raised in a SQL function by "user-defined function raised exception",
and Datasette's views show that, before any hook is asked. So sql.register() tells remember() the real message, on the
thread that runs the query; and whatever Datasette runs on a connection is run here under explained(), on that same
thread, which puts the message into the sqlite3 error as it passes. No two queries can mix: a thread runs one at a time.

Datasette has no hook around a query. The one place that all reads go through is Database.execute_fn (0.65) or
Database._execute_fn (1.0), and likewise for writes: those are wrapped.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from datasette.utils.sqlite import sqlite3

if TYPE_CHECKING:
    from datasette.database import Database

T = TypeVar("T")

# How CPython's messages for a failed function or aggregate begin.
GENERIC = "user-defined "
HINT = " (was it given TEXT that is not valid UTF-8?)"
WRAPPED = ("_execute_fn", "_execute_write_fn"), ("execute_fn", "execute_write_fn")

_thread = threading.local()


def remember(message: str) -> None:
    """Keep the message of the error that is about to end the query on this thread."""
    _thread.message = message


def explained(function: Callable[..., T]) -> Callable[..., T]:
    """Run `function(connection)` so that an sqlite3 error out of our functions carries its real message."""

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> T:
        _thread.message = None
        try:
            return function(*arguments, **named)
        except sqlite3.Error as error:
            text = str(error)
            if text.startswith(GENERIC):
                # Nothing remembered: the function was not even entered, or it is another plugin's.
                error.args = (_thread.message or text + HINT,)
            raise
        finally:
            _thread.message = None

    return run


def install() -> None:
    """Wrap what runs queries. Does nothing the second time."""
    from datasette.database import Database

    private, public = WRAPPED
    for name in private if hasattr(Database, private[0]) else public:
        original = getattr(Database, name)
        if not hasattr(original, "explains_sql_errors"):
            setattr(Database, name, _wrap(original))


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def wrapper(self: Database, fn: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return await original(self, explained(fn), *arguments, **named)

    wrapper.explains_sql_errors = True  # type: ignore[attr-defined]
    return wrapper
