"""Registers the SQL functions on a connection.

What there is stands in one table, sqltable.FUNCTIONS. Imports nothing heavy, since it runs when Datasette starts; the
work is in sqlfunctions.py, imported at the first call.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasette_vision.errors import InvalidImage, InvalidVector, VisionError
from datasette_vision.sqltable import FUNCTIONS

if TYPE_CHECKING:
    from datasette_vision.sqlfunctions import ForeignEmbed, Functions
    from datasette_vision.vision import Vision

logger = logging.getLogger(__name__)


class Registration:
    """The SQL functions over one Vision, to be registered on any number of connections.

    `vision` is asked for at the first call. `drop_in` adds the llm_embed… family; `foreign_embed(model, input)` answers
    llm_embed() for models that are not ours. SQLite and Python between them replace the message of an exception by one
    that says nothing: `on_error` gets the real one, on the thread that runs the query, before the query fails.
    """

    def __init__(
        self,
        vision: Callable[[], Vision],
        *,
        drop_in: bool = True,
        foreign_embed: ForeignEmbed | None = None,
        on_error: Callable[[str], None] = lambda message: None,
    ) -> None:
        functions = _Lazy(vision, foreign_embed)
        self._scalars: list[tuple[str, int, Callable[..., Any]]] = []
        self._aggregates: list[tuple[str, type]] = []
        for function in FUNCTIONS:
            if function.drop_in and not drop_in:
                continue
            if function.aggregate:
                self._aggregates.append((function.name, _aggregate(function.name, functions, on_error)))
                continue
            wrapped = _scalar(function.name, functions, on_error)
            self._scalars += [(function.name, arity, wrapped) for arity in function.arities]

    def register(self, connection: sqlite3.Connection) -> None:
        """Register every function of the table on a connection."""
        for name, arity, scalar in self._scalars:
            connection.create_function(name, arity, scalar, deterministic=True)
        for name, aggregate in self._aggregates:
            connection.create_aggregate(name, 1, aggregate)


def register(connection: sqlite3.Connection, vision: Callable[[], Vision], **options: Any) -> None:
    """Register the functions on one connection. `options` are those of Registration."""
    Registration(vision, **options).register(connection)


class _Lazy:
    """What the functions do, made at the first call."""

    def __init__(self, vision: Callable[[], Vision], foreign_embed: ForeignEmbed | None) -> None:
        self._make = vision, foreign_embed
        self._functions: Functions | None = None

    def get(self) -> Functions:
        if self._functions is None:
            from datasette_vision.sqlfunctions import Functions  # heavy: NumPy, Pillow

            vision, foreign_embed = self._make
            self._functions = Functions(vision(), foreign_embed)
        return self._functions


def _scalar(name: str, functions: _Lazy, on_error: Callable[[str], None]) -> Callable[..., Any]:
    implementation: Callable[..., Any] | None = None

    def call(*arguments: Any) -> Any:
        nonlocal implementation
        if None in arguments:
            return None
        try:
            if implementation is None:
                implementation = getattr(functions.get(), name)
            return implementation(*arguments)
        except (InvalidImage, InvalidVector):
            return None  # a row's bad data: vision_error() says what is wrong with it
        except Exception as error:
            raise _reported(name, error, on_error) from None

    return call


def _aggregate(name: str, functions: _Lazy, on_error: Callable[[str], None]) -> type:
    class Aggregate:
        def __init__(self) -> None:
            self.inner: Any = None

        def step(self, value: Any) -> None:
            try:
                if self.inner is None:
                    self.inner = getattr(functions.get(), name)()
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
