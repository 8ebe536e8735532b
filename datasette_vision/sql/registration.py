"""Registers the SQL functions on a connection.

The functions are listed in table.py. This module imports nothing heavy, because it runs when Datasette starts. The
implementations in functions.py are imported at the first call.
"""

from __future__ import annotations

import ctypes
import logging
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasette_vision.errors import DeadlineExceeded, InvalidImage, InvalidVector, VisionError
from datasette_vision.sql.table import SqlFunction, functions
from datasette_vision.util import garbage
from datasette_vision.util.lazy import Lazy

if TYPE_CHECKING:
    from datasette_vision.config.settings import Config
    from datasette_vision.engine.vision import Vision
    from datasette_vision.retrieval.indexes import KeepAwake
    from datasette_vision.sql.functions import ForeignEmbed, Functions

logger = logging.getLogger(__name__)


class Registration:
    """The SQL functions of one Vision, to register on any number of connections.

    `vision` is called at the first use of a function. `drop_in` adds the llm_embed… family, and `foreign_embed(model,
    input)` computes llm_embed() for models that are not ours. SQLite and Python together replace the message of an
    exception with a generic one: `on_error` gets the original, on the thread that runs the query, before the query
    fails. `stop` is called when the query's time is up, and returns whether it has interrupted the query; if not, the
    function raises an error. `search_wait_s` is how long a query waits while vision_search() reads a table for the
    first time. `keep_awake(name)` gives the block in which it then improves the index in the background.
    """

    def __init__(
        self,
        vision: Callable[[], Vision],
        *,
        drop_in: bool = True,
        foreign_embed: ForeignEmbed | None = None,
        on_error: Callable[[str], None] = lambda message: None,
        stop: Callable[[DeadlineExceeded], bool] = lambda error: False,
        search_wait_s: float | None = None,
        keep_awake: KeepAwake | None = None,
    ) -> None:
        def make() -> Functions:
            from datasette_vision.retrieval.search import Searcher  # heavy: NumPy
            from datasette_vision.sql.functions import Functions  # heavy: NumPy, Pillow

            return Functions(vision(), foreign_embed, Searcher(vision(), search_wait_s, keep_awake))

        garbage.elsewhere.watch()
        every = functions()
        implementations = self.functions = Lazy(make)
        self._bound: dict[int, list[tuple[str, int, Callable[..., Any]]]] = {}
        self._bind: Callable[[int], list[tuple[str, int, Callable[..., Any]]]] = lambda address: [
            (function.name, arity, _scalar(function, implementations, on_error, stop, address))
            for function in every
            if function.reads_tables
            for arity in function.arities
        ]
        self._scalars: list[tuple[str, int, Callable[..., Any]]] = []
        self._aggregates: list[tuple[str, type]] = []
        for function in every:
            if function.drop_in and not drop_in:
                continue
            if function.aggregate:
                self._aggregates.append((function.name, _aggregate(function.name, implementations, on_error)))
                continue
            if function.reads_tables:
                continue
            wrapped = _scalar(function, implementations, on_error, stop)
            self._scalars += [(function.name, arity, wrapped) for arity in function.arities]

    def register(self, connection: sqlite3.Connection) -> None:
        """Register every function in the table on a connection."""
        # A new connection at the address of an old one replaces its entry. So there are never more entries than
        # connections that existed at a time, and each is kept for as long as pysqlite3 may still use it.
        address = id(connection)
        bound = self._bound.setdefault(address, self._bound.get(address) or self._bind(address))
        for name, arity, scalar in (*self._scalars, *bound):
            connection.create_function(name, arity, scalar, deterministic=True)
        for name, aggregate in self._aggregates:
            connection.create_aggregate(name, 1, aggregate)


def register(connection: sqlite3.Connection, vision: Callable[[], Vision], **options: Any) -> None:
    """Register the functions on one connection. `options` are those of Registration."""
    Registration(vision, **options).register(connection)


def register_functions(
    connection: sqlite3.Connection, config: Config | None = None, *, vision: Vision | None = None
) -> None:
    """Register all SQL functions on a connection of sqlite3, or of a compatible module.

    A model is loaded when a function first needs it. Pass `config`, or a `vision` that several connections share.
    """

    def make() -> Vision:
        from datasette_vision.engine.vision import Vision  # heavy: NumPy, Pillow

        return Vision(config)

    Registration(Lazy(make).get if vision is None else lambda: vision).register(connection)


def _connection_at(address: int) -> sqlite3.Connection:
    """Return the connection at a memory address.

    A function that referred to its connection would keep it open forever: SQLite holds the function where Python's
    garbage collector does not see it, and connections do not support weak references. While a function of a connection
    is being called, one of its statements is running, so a cursor holds the connection, and it is still at its address.
    """
    connection: sqlite3.Connection = ctypes.cast(address, ctypes.py_object).value
    return connection


def _scalar(
    function: SqlFunction,
    implementations: Lazy[Functions],
    on_error: Callable[[str], None],
    stop: Callable[[DeadlineExceeded], bool],
    address: int | None = None,
) -> Callable[..., Any]:
    """Return the callable for SQLite. With the address of a connection, the connection is the first argument."""
    name = function.name
    implementation: Callable[..., Any] | None = None

    def call(*arguments: Any) -> Any:
        nonlocal implementation
        if None in arguments:
            return None
        try:
            if implementation is None:
                with garbage.elsewhere:
                    implementation = implementations.get().implementation(name)
            if function.instant:
                return implementation(*arguments)
            with garbage.elsewhere:
                if address is not None:
                    return implementation(_connection_at(address), *arguments)
                return implementation(*arguments)
        except (InvalidImage, InvalidVector):
            return None  # a row's bad data: vision_error() says what is wrong
        except DeadlineExceeded as error:
            if stop(error):
                return None  # the query has been interrupted
            raise _reported(name, error, on_error) from None
        except Exception as error:
            raise _reported(name, error, on_error) from None

    return call


def _aggregate(name: str, implementations: Lazy[Functions], on_error: Callable[[str], None]) -> type:
    class Aggregate:
        def __init__(self) -> None:
            self.inner: Any = None

        def step(self, value: Any) -> None:
            try:
                if self.inner is None:
                    with garbage.elsewhere:
                        self.inner = implementations.get().implementation(name)()
                if value is not None:
                    self.inner.step(value)
            except (InvalidImage, InvalidVector):
                pass  # a row's bad data does not count
            except Exception as error:
                raise _reported(name, error, on_error) from None

        def finalize(self) -> bytes | None:
            try:
                return self.inner.finalize() if self.inner is not None else None
            except (InvalidImage, InvalidVector):
                return None
            except Exception as error:
                raise _reported(name, error, on_error) from None

    return Aggregate


def _reported(name: str, error: Exception, on_error: Callable[[str], None]) -> VisionError:
    """Pass the error to `on_error`, and return the error to raise.

    Never raise the original: SQLite would replace the message of a MemoryError or an OverflowError with its own.
    """
    if isinstance(error, VisionError):
        message = f"{name}(): {error}"
    else:
        logger.error("%s() failed", name, exc_info=error)
        message = f"{name}(): internal error; see the server's log"
    on_error(message)
    return VisionError(message)
