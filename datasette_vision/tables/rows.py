"""Reads the rows of a table or view, by key, in chunks, so that a checkpoint never waits for a long read."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasette_vision.errors import InvalidArgument, Unreadable
from datasette_vision.tables import keys
from datasette_vision.tables.schema import SideTable
from datasette_vision.util.sql_names import literal, quote

CHUNK_ROWS = 256
CHUNK_BYTES = 8_000_000
SAMPLED_VALUES = 20
SAMPLE_LENGTH = 4096

KeyValues = tuple[object, ...]
Connect = Callable[[], sqlite3.Connection]


@dataclass(frozen=True)
class Wanted:
    """Selects rows: those whose value in `column` is not NULL, and that match `where` (SQL).

    Values of more than `max_bytes` are not read. Neither are values whose digest in the column `digest` equals the one
    stored in the side table.
    """

    column: str
    model: str
    max_bytes: int
    where: str | None = None
    digest: str | None = None
    force: bool = False  # whatever the side table has


@dataclass
class SourceRow:
    """A row: its key, its value, and its entry in the side table.

    `kind` is the value's typeof() in SQLite, `size` its length in bytes, or in characters for a text. `label` is the
    name of the row in messages.
    """

    key: KeyValues
    kind: str
    size: int
    known_hash: str | None
    known_error: str | None
    same_digest: bool
    value: Any
    label: str

    def take(self) -> Any:
        """Return the value, once: so that the row does not keep an image of some megabytes in memory."""
        value, self.value = self.value, None
        return value


def connector(database: Path | str | Connect) -> Connect:
    """Return a function that opens a connection to a database, in autocommit mode and for use on any thread.

    Raises Unreadable if there is no such file.
    """
    if callable(database):
        return database
    path = Path(database)
    if not path.is_file():
        raise Unreadable(f"{database}: there is no such database")
    return lambda: sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)


def connected(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Prepare a connection for reading: text that is not UTF-8 must not stop the work."""
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    connection.execute("pragma busy_timeout = 60000")
    return connection


class SourceTable:
    """A table or view with a key that identifies its rows.

    Without `key`, keys.describe() decides; views that are not embedded yet need one. Raises InvalidArgument if there is
    no such table or column, or if a given key does not identify rows.
    """

    def __init__(self, connection: sqlite3.Connection, table: str, key: Sequence[str] = ()) -> None:
        found = keys.describe(connection, table)
        if found is None:
            raise InvalidArgument(f"there is no table or view {table!r}; there are: {_tables(connection)}")
        self.name, self.is_view, self.columns = found.name, found.is_view, list(found.columns)
        self.own_key = found.own_key
        self._connection = connection
        self.key = tuple(map(self.column, key)) or found.key
        if not self.key:
            kind = "is a view" if self.is_view else "has no key"
            raise InvalidArgument(f"{self.name} {kind}: name the column(s) that identify its rows with --key")
        # Rows are visited in their order on disk, which needs no sorting.
        self._order = (found.rowid,) if found.rowid else self.own_key or self.key
        if self.is_view or self.key != self.own_key:
            self._check_key()

    @property
    def side(self) -> SideTable:
        """The table's side table."""
        return SideTable(self.name, self.key)

    def column(self, name: str) -> str:
        """Return the name of a column as the table has it. Raises InvalidArgument if there is none."""
        for column in self.columns:
            if column.lower() == name.lower():
                return column
        raise InvalidArgument(f"{self.name} has no column {name!r}; its columns are: {', '.join(self.columns)}")

    def count(self, column: str, where: str | None = None) -> int:
        """Count the rows whose `column` is not NULL. Raises InvalidArgument if the SQL in `where` is not valid."""
        # count(column) would read every image; the start of the row says whether the value is NULL.
        name = quote(column)
        sql = f"select count(*) from {quote(self.name)} where {name} is not null and {_condition(where)}"
        try:
            found = self._connection.execute(sql).fetchone()[0]
        except self._connection.OperationalError as error:  # it may be from another SQLite module
            if where is None or "locked" in str(error):
                raise
            raise InvalidArgument(f"--where: {error}, in: {where}") from None
        return int(found)

    def samples(self, column: str, where: str | None = None) -> list[Any]:
        """Return the beginnings of the first texts and BLOBs."""
        name = quote(column)
        found = self._connection.execute(
            f"select substr({name}, 1, {SAMPLE_LENGTH}) from {quote(self.name)}"
            f" where typeof({name}) in ('text', 'blob') and {_condition(where)} limit {SAMPLED_VALUES}"
        )
        return [value for (value,) in found]

    def rows(self, wanted: Wanted) -> Iterator[SourceRow]:
        """Yield the selected rows. The side table must exist.

        No read transaction is open while a row is being processed, except for a view that SQLite can only read as a
        whole.
        """
        if self.is_view and not self._can_go_on(wanted):
            yield from map(self._row, self._connection.execute(self._query(wanted, after=False, limit=False)))
            return
        last: KeyValues | None = None
        while True:
            sql = self._query(wanted, after=last is not None, limit=True)
            cursor = self._connection.execute(sql, last or ())
            chunk: list[Any] = []
            size = 0
            for values in cursor:
                chunk.append(values)
                size += len(values[5]) if isinstance(values[5], bytes) else 0
                if size > CHUNK_BYTES:
                    break
            complete = size <= CHUNK_BYTES and len(chunk) < CHUNK_ROWS
            cursor.close()
            if chunk:
                last = chunk[-1][-len(self._order) :]
            for number, values in enumerate(chunk):
                chunk[number] = None
                yield self._row(values)
            if complete:
                return

    def gone(self, column: str, limit: int) -> list[tuple[KeyValues, bool]]:
        """Return keys in the side table without a row that has a value in `column`: (key, whether the row was
        deleted).
        """
        side = self.side
        keys = ", ".join(map(quote, side.key_columns))
        own = ", ".join(map(quote, self.key))
        table = quote(self.name)
        every = f"select {keys} from {quote(side.name)}"
        sql = (
            f"select *, 1 from ({every} except select {own} from {table})"
            f" union all select *, 0 from ({every} where source_column = ? except"
            f" select {own} from {table} where {quote(column)} is not null) limit ?"
        )
        return [(row[:-1], bool(row[-1])) for row in self._connection.execute(sql, (column, limit))]

    def _check_key(self) -> None:
        names = ", ".join(map(quote, self.key))
        found = self._connection.execute(
            f"select {names}, count(*) from {quote(self.name)} group by {names} having count(*) > 1 limit 1"
        ).fetchone()
        if found is not None:
            raise InvalidArgument(
                f"--key {', '.join(self.key)} does not identify the rows of {self.name}:"
                f" {found[-1]} rows have {', '.join(map(repr, found[:-1]))}"
            )

    def _can_go_on(self, wanted: Wanted) -> bool:
        """Whether the rows after a key can be found without reading all earlier rows again."""
        plan = self._connection.execute(
            "explain query plan " + self._query(wanted, after=True, limit=True), (None,) * len(self._order)
        )
        details = " ".join(str(row[3]) for row in plan)
        return "SEARCH" in details and not any(
            word in details for word in ("MATERIALIZE", "CO-ROUTINE", "B-TREE", "MERGE")
        )

    def _query(self, wanted: Wanted, *, after: bool, limit: bool) -> str:
        """Return the query: kind, size, hash, error, same digest, value, key…, order…."""
        table, name = quote(self.name), f"{quote(self.name)}.{quote(wanted.column)}"
        side = self.side
        # The plus removes the column's affinity: the key is compared unchanged, using the side table's index.
        same_row = " and ".join(
            f"_side.{quote(own)} = +{table}.{quote(column)}"
            for own, column in zip(side.key_columns, self.key, strict=True)
        )

        def noted(what: str) -> str:
            return (
                f"(select {what} from {quote(side.name)} _side where {same_row}"
                f" and _side.source_column = {literal(wanted.column)} and _side.model = {literal(wanted.model)})"
            )

        same = "0"
        if wanted.digest is not None and not wanted.force:
            same = f"{table}.{quote(wanted.digest)} = {noted('case when error is null then content_hash end')}"
        value = (
            f"case when {same} or (typeof({name}) = 'blob' and length({name}) > {wanted.max_bytes})"
            f" then null else {name} end"
        )
        columns = [f"{table}.{quote(column)}" for column in (*self.key, *self._order)]
        order = ", ".join(columns[len(self.key) :])
        beyond = f" and ({order}) > ({', '.join('?' * len(self._order))})" if after else ""
        return (
            f"select typeof({name}), length({name}), {noted('content_hash')}, {noted('error')}, {same}, {value},"
            f" {', '.join(columns)} from {table} where {name} is not null and {_condition(wanted.where)}{beyond}"
            + (f" order by {order} limit {CHUNK_ROWS}" if limit else "")
        )

    def _row(self, values: Sequence[Any]) -> SourceRow:
        kind, size, known_hash, known_error, same, value = values[:6]
        key = tuple(values[6 : 6 + len(self.key)])
        return SourceRow(
            key=key,
            kind=kind,
            size=size,
            known_hash=known_hash,
            known_error=known_error,
            same_digest=bool(same),
            value=value,
            label=", ".join(f"{name} {part!r}" for name, part in zip(self.key, key, strict=True)),
        )


def _condition(where: str | None) -> str:
    return f"({where}\n)" if where else "1"  # the newline ends a comment


def _tables(connection: sqlite3.Connection) -> str:
    names = connection.execute(
        "select name from sqlite_master where type in ('table', 'view') and name not like 'sqlite~_%' escape '~'"
        " and name not like '~_vision%' escape '~' order by name limit 20"
    )
    return ", ".join(name for (name,) in names) or "none"
