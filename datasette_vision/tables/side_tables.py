"""Finds the side tables of a database, what they belong to, and what is in them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from datasette_vision.tables.schema import BOOKKEEPING, OWN_COLUMNS, SIDE_TABLE_PREFIX, SideTable
from datasette_vision.util.sql_names import quote, rowid_name

# How the names of all tables begin that this package makes.
OWN_PREFIX = "_vision"


@dataclass(frozen=True)
class EmbeddedSource:
    """A table or view that has a side table. `key` names its columns, `rowid` its row number where it has one."""

    schema: str
    side: SideTable
    is_view: bool
    rowid: str | None

    @property
    def table(self) -> str:
        """The name of the table or view."""
        return self.side.table

    @property
    def key(self) -> tuple[str, ...]:
        """The column(s) by which its rows are known."""
        return self.side.key


@dataclass(frozen=True)
class EmbeddedColumn:
    """The embeddings of one column by one model. `errors` counts the rows that have none, but a reason."""

    source: EmbeddedSource
    column: str
    model: str
    embeddings: int
    errors: int


def sources(connection: sqlite3.Connection, schema: str = "main") -> list[EmbeddedSource]:
    """Return the tables and views of a database that have a side table, by name."""
    names = connection.execute(
        f"select name from {quote(schema)}.sqlite_master where type in ('table', 'view') and exists ("
        f"select 1 from {quote(schema)}.sqlite_master side where side.type = 'table'"
        " and side.name = ? || sqlite_master.name collate nocase) order by name",
        (SIDE_TABLE_PREFIX,),
    )
    found = (find_source(connection, name, schema) for (name,) in names.fetchall())
    return [source for source in found if source is not None]


def find_source(connection: sqlite3.Connection, table: str, schema: str = "main") -> EmbeddedSource | None:
    """Return a table or view that has a side table by its name, as SQLite compares names; None when there is none."""
    master = f"{quote(schema)}.sqlite_master"
    row = connection.execute(
        f"select name, type from {master} where type in ('table', 'view') and name = ? collate nocase", (table,)
    ).fetchone()
    side = connection.execute(
        f"select name from {master} where type = 'table' and name = ? collate nocase", (SIDE_TABLE_PREFIX + table,)
    ).fetchone()
    if row is None or side is None:
        return None
    side_columns = columns(connection, side[0], schema)
    if tuple(name.lower() for name in side_columns[-len(OWN_COLUMNS) :]) != OWN_COLUMNS:
        return None
    name, is_view = row[0], row[1] == "view"
    rowid = None if is_view else _rowid(connection, name, schema)
    key = _key(connection, name, schema, tuple(side_columns[: -len(OWN_COLUMNS)]), rowid)
    return (
        None
        if key is None
        else EmbeddedSource(schema, SideTable(side[0][len(SIDE_TABLE_PREFIX) :], key), is_view, rowid)
    )


@dataclass(frozen=True)
class OwnTable:
    """A table that this package made. `source` is the table or view that it belongs to.

    `source` is None for bookkeeping, and for a side table whose source is gone.
    """

    name: str
    source: str | None


def own_tables(connection: sqlite3.Connection) -> list[OwnTable]:
    """Return the tables of a database that this package made, known by their names and columns.

    A table that only has a name like ours is somebody else's.
    """
    names = connection.execute(
        "select name from sqlite_master where type = 'table' and substr(name, 1, ?) = ? collate nocase order by name",
        (len(OWN_PREFIX), OWN_PREFIX),
    ).fetchall()
    found = (_own_table(connection, name) for (name,) in names)
    return [table for table in found if table is not None]


def own_table(connection: sqlite3.Connection, name: str) -> OwnTable | None:
    """Return a table that this package made by its name, as SQLite compares names; None when it is not ours."""
    row = connection.execute(
        "select name from sqlite_master where type = 'table' and name = ? collate nocase", (name,)
    ).fetchone()
    return None if row is None else _own_table(connection, row[0])


def _own_table(connection: sqlite3.Connection, name: str) -> OwnTable | None:
    is_side_table = name[: len(SIDE_TABLE_PREFIX)].lower() == SIDE_TABLE_PREFIX
    wanted = OWN_COLUMNS if is_side_table else BOOKKEEPING.get(name.lower())
    if wanted is None or not set(wanted) <= {column.lower() for column in columns(connection, name)}:
        return None
    source = None
    if is_side_table:
        source = connection.execute(
            "select name from sqlite_master where type in ('table', 'view') and name = ? collate nocase",
            (name[len(SIDE_TABLE_PREFIX) :],),
        ).fetchone()
    return OwnTable(name, None if source is None else source[0])


def embedded(connection: sqlite3.Connection, schema: str = "main") -> list[EmbeddedColumn]:
    """Return what is embedded in a database: for each table, column and model, the number of rows."""
    return [found for source in sources(connection, schema) for found in contents(connection, source)]


def contents(connection: sqlite3.Connection, source: EmbeddedSource) -> list[EmbeddedColumn]:
    """Return what a side table holds, by model and column. Walks an index, not the embeddings."""
    side = f"{quote(source.schema)}.{quote(source.side.name)}"
    rows = connection.execute(
        f"select model, source_column, count(*), count(error) from {side}"
        " group by model, source_column order by model, source_column"
    ).fetchall()
    return [EmbeddedColumn(source, column, model, count - errors, errors) for model, column, count, errors in rows]


def pairs(connection: sqlite3.Connection, source: EmbeddedSource) -> list[tuple[str, str]]:
    """Return the (model, column) pairs in a side table, in their order.

    Looks at one row of each: for `select distinct`, SQLite would walk the whole index.
    """
    first = f"select model, source_column from {quote(source.schema)}.{quote(source.side.name)}"
    order = "order by model, source_column limit 1"
    found: list[tuple[str, str]] = []
    row = connection.execute(f"{first} {order}").fetchone()
    while row is not None:
        model, column = row
        found.append((model, column))
        row = (
            connection.execute(f"{first} where model = ? and source_column > ? {order}", (model, column)).fetchone()
            or connection.execute(f"{first} where model > ? {order}", (model,)).fetchone()
        )
    return found


def columns(connection: sqlite3.Connection, table: str, schema: str = "main") -> list[str]:
    """Return the names of the columns of a table or view."""
    return [row[1] for row in connection.execute(f"pragma {quote(schema)}.table_info({quote(table)})")]


def primary_key(connection: sqlite3.Connection, table: str, schema: str = "main") -> tuple[str, ...]:
    """Return the column(s) of a table's declared primary key, in its order; () when it has none."""
    rows = connection.execute(f"pragma {quote(schema)}.table_info({quote(table)})").fetchall()
    return tuple(row[1] for row in sorted((row for row in rows if row[5]), key=lambda row: row[5]))


def _rowid(connection: sqlite3.Connection, table: str, schema: str) -> str | None:
    place = quote(schema)
    for index in connection.execute(f"pragma {place}.index_list({quote(table)})").fetchall():
        if index[3] == "pk":
            stored = connection.execute(f"pragma {place}.index_xinfo({quote(index[1])})").fetchall()
            if not any(row[1] == -1 for row in stored):  # the index of a primary key ends with the row number, if any
                return None
    return rowid_name(columns(connection, table, schema))


def _key(
    connection: sqlite3.Connection, table: str, schema: str, side_key: tuple[str, ...], rowid: str | None
) -> tuple[str, ...] | None:
    """Return the column(s) of a table that the key columns of its side table stand for."""
    declared = primary_key(connection, table, schema)
    if declared and _same(SideTable(table, declared).key_columns, side_key):
        return declared
    own = {name.lower(): name for name in columns(connection, table, schema)}
    if rowid is not None:
        own.setdefault(rowid, rowid)
    key = []
    for name in side_key:
        while name.lower() not in own and name.lower().startswith("source_"):
            name = name[len("source_") :]
        if name.lower() not in own:
            return None
        key.append(own[name.lower()])
    return tuple(key) if _same(SideTable(table, tuple(key)).key_columns, side_key) else None


def _same(names: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return [name.lower() for name in names] == [name.lower() for name in others]
