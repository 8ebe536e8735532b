"""The side tables: `_vision_<table>` holds the embeddings of a table, beside it and never in it.

With a 2 KB embedding behind a 1 MB image, every scan would have to follow the image's overflow pages.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datasette_vision.tables import change_log
from datasette_vision.util.sql_names import quote as quote

SIDE_TABLE_PREFIX = "_vision_"
OWN_COLUMNS = ("source_column", "model", "content_hash", "embedding", "error", "embedded_at")
# Internal tables, which hold nothing for readers, with their columns.
LOADS = "_visionloads"
BOOKKEEPING = {
    change_log.LOG: ("side_table", "generation", "row", "stamp"),
    LOADS: ("name", "base", "pictures"),
}

# In this order. ANY is a type of STRICT tables, which stores values unchanged.
AFFINITIES = {
    " integer": ("INT",),
    " text": ("CHAR", "CLOB", "TEXT"),
    "": ("BLOB", "ANY"),
    " real": ("REAL", "FLOA", "DOUB"),
}


@dataclass(frozen=True)
class SideTable:
    """The side table of `table`, whose rows are identified by the `key` column(s)."""

    table: str
    key: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the side table."""
        return SIDE_TABLE_PREFIX + self.table

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The names of the key column(s) in the side table.

        They are those of the table. If a key column has the name of one of ours, it is prefixed with source_.
        """
        taken = {name.lower() for name in (*OWN_COLUMNS, *self.key)}
        names = []
        for column in self.key:
            name = column
            if column.lower() in OWN_COLUMNS:
                while name.lower() in taken:
                    name = f"source_{name}"
                taken.add(name.lower())
            names.append(name)
        return tuple(names)

    def create(self, connection: sqlite3.Connection) -> None:
        """Create the side table if it does not exist. It has one row for each source row, source column and model.

        From then on, every write increases its generation (change_log.py), also for one made before there were
        generations.
        """
        kinds = self._kinds(connection)
        key = ", ".join(f"{quote(column)}{kind} not null" for column, kind in zip(self.key_columns, kinds, strict=True))
        primary = ", ".join(quote(column) for column in (*self.key_columns, "source_column", "model"))
        connection.execute(
            f"create table if not exists {quote(self.name)} ({key}, source_column text not null, model text not null,"
            " content_hash text not null, embedding blob, error text, embedded_at text not null,"
            f" primary key ({primary}))"
        )
        # Lists which rows are embedded or failed, without reading the embeddings.
        connection.execute(
            f"create index if not exists {quote('_vision-models-' + self.name)}"
            f" on {quote(self.name)} (model, source_column, error)"
        )
        change_log.log_changes(connection, self.name, (*self.key_columns, "source_column", "model"))

    def _kinds(self, connection: sqlite3.Connection) -> list[str]:
        """Return the types of the key column(s), each with a leading space, that give them the same affinity as in the
        table.

        SQLite uses no index to compare columns of different affinities, and every join would read the whole side table.
        A view's columns, whose values can have any type, get none.
        """
        declared = dict(
            connection.execute(
                "select lower(c.name), c.type from sqlite_master m, pragma_table_xinfo(m.name) c"
                " where m.type = 'table' and m.name = ? collate nocase",
                (self.table,),
            ).fetchall()
        )
        rowid = "integer" if declared else ""
        return [_affinity(declared.get(column.lower(), rowid)) for column in self.key]

    def index_contents(self, connection: sqlite3.Connection) -> None:
        """Create an index on the content hash, which find() and searches for duplicates need."""
        connection.execute(
            f"create index if not exists {quote('_vision-contents-' + self.name)}"
            f" on {quote(self.name)} (content_hash, model)"
        )

    def find(self, connection: sqlite3.Connection, content_hash: str, model: str) -> bytes | None:
        """Return the embedding by `model` of a content, from any row, or None."""
        found = connection.execute(
            f"select embedding from {quote(self.name)} where content_hash = ? and model = ? and embedding is not null"
            " limit 1",
            (content_hash, model),
        ).fetchone()
        return None if found is None else bytes(found[0])

    def write(self, connection: sqlite3.Connection, rows: Iterable[SideTableRow]) -> None:
        """Add rows, replacing those with the same key, column and model."""
        columns = (*self.key_columns, *OWN_COLUMNS)
        marks = ", ".join("?" * (len(columns) - 1))
        connection.executemany(
            f"insert or replace into {quote(self.name)} ({', '.join(map(quote, columns))})"
            f" values ({marks}, strftime('%Y-%m-%dT%H:%M:%fZ'))",
            ((*row.key, row.source_column, row.model, row.content_hash, row.embedding, row.error) for row in rows),
        )


def _affinity(declared: str) -> str:
    """Return the type of a column's affinity, by SQLite's rules (datatype3.html, 3.1), with a leading space."""
    declared = declared.upper()
    for kind, words in AFFINITIES.items():
        if any(word in declared for word in words):
            return kind
    return " numeric" if declared else ""


@dataclass(frozen=True)
class SideTableRow:
    """One embedding, or the reason why there is none."""

    key: Sequence[object]
    source_column: str
    model: str
    content_hash: str
    embedding: bytes | None
    error: str | None = None


def content_hash(content: bytes) -> str:
    """Return the SHA-256, in hexadecimal, that identifies the content of a row."""
    return hashlib.sha256(content).hexdigest()
