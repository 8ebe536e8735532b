"""The columns that identify the rows of a table or view: in its side table, and in addresses."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from datasette_vision.errors import InvalidArgument
from datasette_vision.tables.schema import OWN_COLUMNS, SIDE_TABLE_PREFIX, SideTable
from datasette_vision.util.sql_names import quote, rowid_name


@dataclass(frozen=True)
class KeyedTable:
    """A table or view: its columns, and the columns that identify its rows.

    `key` is used for embeddings: the key of its side table, if that matches; else the primary key, else the rowid.
    `own_key` is used in addresses: the same without the side table, except for a view, which has no other key. Both are
    empty for a view without a side table. `side_table` is the name of the side table, `rowid` that of the rowid, None
    if there is none. `key_is_rowid` says whether the key is the rowid, under any name.
    """

    name: str
    is_view: bool
    columns: tuple[str, ...]
    rowid: str | None
    own_key: tuple[str, ...]
    key: tuple[str, ...]
    side_table: str | None
    key_is_rowid: bool


def describe(connection: sqlite3.Connection, table: str, schema: str = "main") -> KeyedTable | None:
    """Return the table or view of a name, compared as SQLite compares names; None if there is none."""
    master = f"{quote(schema)}.sqlite_master"
    row = connection.execute(
        f"select name, type from {master} where type in ('table', 'view') and name = ? collate nocase", (table,)
    ).fetchone()
    if row is None:
        return None
    name, is_view = row[0], row[1] == "view"
    described = connection.execute(f"pragma {quote(schema)}.table_xinfo({quote(name)})").fetchall()
    columns = tuple(row[1] for row in described if row[6] != 1)  # without the hidden ones of a virtual table
    rowid = None if is_view or _is_without_rowid(connection, name, schema) else rowid_name(list(columns))
    own_key = tuple(row[1] for row in sorted((row for row in described if row[5]), key=lambda row: row[5]))
    own_key = own_key or ((rowid,) if rowid else ())
    side = connection.execute(
        f"select name from {master} where type = 'table' and name = ? collate nocase", (SIDE_TABLE_PREFIX + name,)
    ).fetchone()
    side_key = None if side is None else _side_key(connection, side[0], schema)
    key = None if side_key is None else _meant(name, side_key, own_key, (*columns, *([rowid] if rowid else [])))
    its_key = key or own_key
    key_is_rowid = rowid is not None and (
        its_key == (rowid,)
        or (len(own_key) == 1 and its_key == own_key and not _has_key_index(connection, name, schema))
    )
    return KeyedTable(
        name,
        is_view,
        columns,
        rowid,
        own_key=(key or ()) if is_view else own_key,
        key=its_key,
        side_table=side[0] if key else None,
        key_is_rowid=key_is_rowid,
    )


def key_of(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    """Return the column(s) that identify a table's rows.

    Raises InvalidArgument if it has none, such as a view that has not been embedded yet.
    """
    found = describe(connection, table)
    if found is None or not found.key:
        raise InvalidArgument(f"{table} has no key that identifies its rows")
    return found.key


def _is_without_rowid(connection: sqlite3.Connection, table: str, schema: str) -> bool:
    place = quote(schema)
    for index in connection.execute(f"pragma {place}.index_list({quote(table)})").fetchall():
        if index[3] == "pk":
            stored = connection.execute(f"pragma {place}.index_xinfo({quote(index[1])})").fetchall()
            return not any(row[1] == -1 for row in stored)  # the index of a primary key ends with the rowid
    return False


def _has_key_index(connection: sqlite3.Connection, table: str, schema: str) -> bool:
    """Say whether a primary key has an index: one that is the row number itself has none."""
    return any(row[3] == "pk" for row in connection.execute(f"pragma {quote(schema)}.index_list({quote(table)})"))


def _side_key(connection: sqlite3.Connection, side_table: str, schema: str) -> tuple[str, ...] | None:
    """Return the key columns of a side table; None for another table with such a name."""
    columns = [row[1] for row in connection.execute(f"pragma {quote(schema)}.table_info({quote(side_table)})")]
    own = tuple(name.lower() for name in columns[-len(OWN_COLUMNS) :])
    return tuple(columns[: -len(OWN_COLUMNS)]) if own == OWN_COLUMNS else None


def _meant(
    table: str, side_key: tuple[str, ...], own_key: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return the columns of a table that the key columns of its side table refer to, None if there are none."""
    if _same(SideTable(table, own_key).key_columns, side_key):
        return own_key
    by_name = {name.lower(): name for name in reversed(columns)}
    key = []
    for name in side_key:
        while name.lower() not in by_name and name.lower().startswith("source_"):
            name = name[len("source_") :]
        if name.lower() not in by_name:
            return None
        key.append(by_name[name.lower()])
    return tuple(key) if _same(SideTable(table, tuple(key)).key_columns, side_key) else None


def _same(names: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return [name.lower() for name in names] == [name.lower() for name in others]
