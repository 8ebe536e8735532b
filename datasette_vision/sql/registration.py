"""Registers the SQL functions on a connection.

What there is stands in one table, in table.py. Imports nothing heavy, since it runs when Datasette starts; the
work is in functions.py, imported at the first call.
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
    """The SQL functions over one Vision, to be registered on any number of connections.

    `vision` is asked for at the first call. `drop_in` adds the llm_embed… family; `foreign_embed(model, input)` answers
    llm_embed() for models that are not ours. SQLite and Python between them replace the message of an exception by one
    that says nothing: `on_error` gets the real one, on the thread that runs the query, before the query fails.
    `stop` is called when the query's time is up, and says whether it has interrupted the query; else that is an error.
    `search_wait_s` is how long a query waits while vision_search() reads a table for the first time, and
    `keep_awake(name)` gives the block in which it then makes searching faster, in the background.
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
        """Register every function of the table on a connection."""
        # A connection made where one was before takes that one's: so there are never more than there were connections
        # at a time, and each is kept for as long as pysqlite3 may still hold it.
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
    """Have all SQL functions on a connection of sqlite3, or of a module like it.

    Models are loaded when a function first needs one, with `config`, or by `vision`, which connections may share.
    """

    def make() -> Vision:
        from datasette_vision.engine.vision import Vision  # heavy: NumPy, Pillow

        return Vision(config)

    Registration(Lazy(make).get if vision is None else lambda: vision).register(connection)


def _connection_at(address: int) -> sqlite3.Connection:
    """Return the connection that lives at an address.

    A function that held its connection would keep it open for ever: SQLite holds the function, out of sight of
    Python's garbage collector; and connections cannot be referred to weakly. While a function of a connection is being
    called, a statement of it is running, and so a cursor holds the connection: it is there, at its address.
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
    """Return what SQLite calls. With the address of a connection, the implementation gets that first."""
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
            return None  # a row's bad data: vision_error() says what is wrong with it
        except DeadlineExceeded as error:
            if stop(error):
                return None  # to a query that has been interrupted
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
    """Tell `on_error` what went wrong, and return what to raise.

    Never the original: SQLite's own words for a MemoryError or an OverflowError would take the place of ours.
    """
    if isinstance(error, VisionError):
        message = f"{name}(): {error}"
    else:
        logger.error("%s() failed", name, exc_info=error)
        message = f"{name}(): internal error; the server's log says more"
    on_error(message)
    return VisionError(message)
