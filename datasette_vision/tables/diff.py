"""Finds rows that are not in sync with their side table (new, changed and deleted ones) as cheaply as possible.

New and deleted rows are found by keys alone. A value that was changed in place can only be found by reading it, unless
its length changed too: SQLite stores the length at the start of the row. There are no triggers on source tables.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Sequence
from typing import NamedTuple

from datasette_vision.errors import InvalidInput
from datasette_vision.tables import columns
from datasette_vision.tables.rows import KeyValues, SourceRow, SourceTable, Wanted
from datasette_vision.tables.side_tables import EmbeddedSource
from datasette_vision.util.sql_names import literal, quote


class Glance(NamedTuple):
    """The state of a column: its rows with a value, how many of them have an entry in the side table, and their total
    length.

    `gone` counts entries of rows that no longer exist, `failed` entries with an error.
    """

    rows: int
    noted: int
    gone: int
    failed: int
    length: int

    @property
    def new(self) -> int:
        """The number of rows without an entry."""
        return self.rows - self.noted


def glance(connection: sqlite3.Connection, source: EmbeddedSource, column: str, model: str) -> Glance:
    """Compare the keys of a table with those of its side table. Reads no values and no embeddings."""
    table, side = quote(source.table), quote(source.side.name)
    # Qualified with the table: SQLite treats the quoted name of a missing column as a text.
    name = f"{table}.{quote(column)}"
    of_this = f"source_column = {literal(column)} and model = {literal(model)}"
    rows, noted, length, there, failed = connection.execute(
        f"select count(*), coalesce(sum({_noted(source, column, model)}), 0), coalesce(sum(length({name})), 0),"
        f" (select count(*) from {side} where {of_this}),"
        f" (select count(*) from {side} where {of_this} and error is not null)"
        f" from {table} where {name} is not null and {_has_key(source)}"
    ).fetchone()
    return Glance(rows, noted, there - noted, failed, length)


def failures(
    connection: sqlite3.Connection, source: EmbeddedSource, column: str, model: str, limit: int
) -> list[tuple[str, str]]:
    """Return the first rows without an embedding, as (name of the row, reason)."""
    keys = source.side.key_columns
    found = connection.execute(
        f"select {', '.join(map(quote, keys))}, error from {quote(source.side.name)} where error is not null"
        " and source_column = ? and model = ? limit ?",
        (column, model, limit),
    )
    return [
        (", ".join(f"{name} {part!r}" for name, part in zip(source.key, row[:-1], strict=True)), row[-1])
        for row in map(tuple, found)
    ]


def is_new(source: EmbeddedSource, column: str, model: str) -> str:
    """Return the SQL condition for rows without an entry."""
    return f"not {_noted(source, column, model)} and {_has_key(source)}"


def has_key(table: str, columns: Sequence[str], keys: Sequence[KeyValues]) -> str:
    """Return the SQL condition for rows with one of these keys, of which there are few enough for SQL."""
    names = ", ".join(f"{quote(table)}.{quote(name)}" for name in columns)
    values = ", ".join(f"({', '.join(map(_literal, key))})" for key in keys)
    return f"({names}) in (values {values})"


class ContentCheck:
    """Reads the values of a column, some at a time, and finds those that differ from what was embedded.

    `kind` is IMAGES or TEXTS of columns.py. Values of more than `max_bytes` are not read.
    """

    def __init__(self, table: SourceTable, column: str, model: str, kind: str, max_bytes: int) -> None:
        self._read = columns.ContentReader(kind, None, max_bytes)
        self._rows = table.rows(Wanted(column, model, max_bytes))

    def run(self, seconds: float, limit: int) -> tuple[list[KeyValues], bool]:
        """Continue for this many seconds: returns the keys of changed rows, at most `limit`, and whether the end was
        reached.
        """
        until = time.monotonic() + seconds
        changed: list[KeyValues] = []
        for row in self._rows:
            if self._is_changed(row):
                changed.append(row.key)
            if len(changed) >= limit or time.monotonic() >= until:
                return changed, False
        return changed, True

    def _is_changed(self, row: SourceRow) -> bool:
        try:
            digest = hashlib.sha256(self._read(row)).hexdigest()
        except (OSError, InvalidInput):
            return row.known_hash is not None and row.known_error is None
        # New rows have no entry, and are found sooner.
        return row.known_hash is not None and row.known_hash != digest


def _noted(source: EmbeddedSource, column: str, model: str) -> str:
    same_row = " and ".join(
        f"_noted.{quote(own)} = {quote(source.table)}.{quote(name)}"
        for own, name in zip(source.side.key_columns, source.key, strict=True)
    )
    return (
        f"exists (select 1 from {quote(source.side.name)} _noted where {same_row}"
        f" and _noted.source_column = {literal(column)} and _noted.model = {literal(model)})"
    )


def _has_key(source: EmbeddedSource) -> str:
    return " and ".join(f"{quote(source.table)}.{quote(name)} is not null" for name in source.key)


def _literal(value: object) -> str:
    """Write a key value as SQL, with the type that it has in SQLite."""
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, str):
        return literal(value) if "\0" not in value else f"cast(x'{value.encode().hex()}' as text)"
    return {"inf": "9e999", "-inf": "-9e999"}.get(repr(value), repr(value))
