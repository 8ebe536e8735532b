"""Finds the side tables of a database, their sources, and their contents."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from datasette_vision.tables import keys
from datasette_vision.tables.schema import BOOKKEEPING, OWN_COLUMNS, SIDE_TABLE_PREFIX, SideTable
from datasette_vision.util.sql_names import quote

# The prefixes of all tables that this package makes.
OWN_PREFIX = "_vision"


@dataclass(frozen=True)
class EmbeddedSource:
    """A table or view with a side table. `key` names its key columns, `rowid` its rowid if it has one.

    `key_is_rowid` says whether the two are the same.
    """

    schema: str
    side: SideTable
    is_view: bool
    rowid: str | None
    key_is_rowid: bool = False

    @property
    def table(self) -> str:
        """The name of the table or view."""
        return self.side.table

    @property
    def key(self) -> tuple[str, ...]:
        """The column(s) that identify its rows."""
        return self.side.key


@dataclass(frozen=True)
class EmbeddedColumn:
    """The embeddings of one column by one model. `errors` counts the rows with an error instead."""

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
    """Return the table or view with this name that has a side table, compared as SQLite compares names; or None."""
    found = keys.describe(connection, table, schema)
    if found is None or found.side_table is None:
        return None
    return EmbeddedSource(
        schema,
        SideTable(found.side_table[len(SIDE_TABLE_PREFIX) :], found.key),
        found.is_view,
        found.rowid,
        found.key_is_rowid,
    )


@dataclass(frozen=True)
class OwnTable:
    """A table that this package made. `source` is the table or view that it belongs to.

    `source` is None for internal tables, and for a side table whose source no longer exists.
    """

    name: str
    source: str | None


def own_tables(connection: sqlite3.Connection) -> list[OwnTable]:
    """Return the tables of a database that this package made, recognised by their names and columns.

    A table that only has such a name is not ours.
    """
    names = connection.execute(
        "select name from sqlite_master where type = 'table' and substr(name, 1, ?) = ? collate nocase order by name",
        (len(OWN_PREFIX), OWN_PREFIX),
    ).fetchall()
    found = (_own_table(connection, name) for (name,) in names)
    return [table for table in found if table is not None]


def own_table(connection: sqlite3.Connection, name: str) -> OwnTable | None:
    """Return a table that this package made by name, compared as SQLite compares names; None if it is not ours."""
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
    """Return the embeddings in a database: for each table, column and model, the number of rows."""
    return [found for source in sources(connection, schema) for found in contents(connection, source)]


def contents(connection: sqlite3.Connection, source: EmbeddedSource) -> list[EmbeddedColumn]:
    """Return the contents of a side table, by model and column. Reads an index, not the embeddings."""
    side = f"{quote(source.schema)}.{quote(source.side.name)}"
    rows = connection.execute(
        f"select model, source_column, count(*), count(error) from {side}"
        " group by model, source_column order by model, source_column"
    ).fetchall()
    return [EmbeddedColumn(source, column, model, count - errors, errors) for model, column, count, errors in rows]


def pairs(connection: sqlite3.Connection, source: EmbeddedSource) -> list[tuple[str, str]]:
    """Return the (model, column) pairs in a side table, in order.

    Reads one row of each: for `select distinct`, SQLite would read the whole index.
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
