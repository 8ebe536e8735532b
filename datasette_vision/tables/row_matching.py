"""Finds the rows of a table that have given values in one of its columns, for batches of values."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from datasette_vision.errors import InvalidArgument
from datasette_vision.tables import side_tables
from datasette_vision.tables.keys import key_of
from datasette_vision.util.sql_names import quote

# Temporary tables, of this connection only.
BATCH_TABLE = "_vision_batch"
COPY = "_vision_copy"


class Matcher:
    """Finds rows of `table` by the values of `column`.

    Raises InvalidArgument if there is no such table or column. If the column has no index, a sorted temporary copy of
    it and of the key is made once, on disk and not in memory.
    """

    def __init__(self, connection: sqlite3.Connection, table: str, column: str) -> None:
        columns = side_tables.columns(connection, table)
        if not columns:
            raise InvalidArgument(
                f"there is no table {table!r}; use --create to make it from the rows of the Parquet files"
            )
        if column not in columns:
            raise InvalidArgument(f"{table} has no column {column!r}; its columns are: {', '.join(columns)}")
        self.column = column
        self._connection = connection
        self._table = table
        self._columns = columns
        self._key = key_of(connection, table)
        connection.execute(f"create temp table if not exists {BATCH_TABLE} (number integer primary key, name)")
        self._indexed = self._has_index()
        self._place = quote(table) if self._indexed else self._copied()

    def keys(self, names: Sequence[str]) -> dict[int, list[tuple[object, ...]]]:
        """Return the keys of the rows with each name, by its position in `names`. Names without a row are left out."""
        self._connection.execute(f"delete from temp.{BATCH_TABLE}")
        self._connection.executemany(f"insert into temp.{BATCH_TABLE} values (?, ?)", enumerate(names))
        key = ", ".join(f"t.{quote(column)}" for column in self._key)
        found: dict[int, list[tuple[object, ...]]] = {}
        # cross join: the batch first, then the index, whatever SQLite estimates of their sizes.
        for number, *values in self._connection.execute(
            f"select b.number, {key} from temp.{BATCH_TABLE} b"
            f" cross join {self._place} t on t.{quote(self.column)} = b.name"
        ):
            found.setdefault(number, []).append(tuple(values))
        return found

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Add missing rows to the table, with those of their columns that the table has."""
        if not self._indexed:
            raise InvalidArgument(
                f"rows can be added to {self._table} by {self.column} only if that has an index:"
                f" create unique index … on {quote(self._table)} ({quote(self.column)})"
            )
        rows = list(rows)
        there = self.keys([str(row[self.column]) for row in rows])
        columns = [column for column in self._columns if rows and column in rows[0]]
        marks = ", ".join("?" * len(columns))
        new = {row[self.column]: row for number, row in enumerate(rows) if number not in there}
        self._connection.executemany(
            f"insert into {quote(self._table)} ({', '.join(map(quote, columns))}) values ({marks})",
            ([row[column] for column in columns] for row in new.values()),
        )

    def _has_index(self) -> bool:
        query = f"explain query plan select 1 from {quote(self._table)} where {quote(self.column)} = ?"
        return "SEARCH" in str(self._connection.execute(query, [""]).fetchall())

    def _copied(self) -> str:
        columns = ", ".join(dict.fromkeys(map(quote, (self.column, *self._key))))
        self._connection.execute(f"drop table if exists temp.{COPY}")
        self._connection.execute(f"create temp table {COPY} as select {columns} from {quote(self._table)}")
        self._connection.execute(f"create index temp.{COPY}_by_name on {COPY} ({quote(self.column)})")
        return f"temp.{COPY}"
