"""Searchable tables: a table, its side table of embeddings, and how to join their rows."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from datasette_vision.tables import keys, side_tables
from datasette_vision.tables.keys import KeyedTable
from datasette_vision.util.sql_names import quote

SAMPLE_ROWS = 20
# Up to so many embeddings, comparing all in SQL takes less time than a page. Above, the index is used.
LARGE = 20_000
# Images up to this size are selected with their row, so that a query's page shows them.
SMALL_VALUE_BYTES = 64 * 1024


@dataclass(frozen=True)
class EmbeddedTable:
    """A table with embeddings.

    `path_key` holds the columns that identify rows in addresses, `key` those that its embeddings use, `side_key` the
    same in the side table (tables/keys.py). `rowid` is the name of its rowid, if it has one. `pairs` are the (model,
    column) pairs of its embeddings, by name. `image_columns` are the columns that hold images, `blob_columns` those
    that hold any BLOBs. With `is_large` there are too many embeddings to compare all of them each time.
    """

    table: str
    side_table: str
    columns: tuple[str, ...]
    path_key: tuple[str, ...]
    key: tuple[str, ...]
    side_key: tuple[str, ...]
    rowid: str | None
    pairs: tuple[tuple[str, str], ...]
    blob_columns: tuple[str, ...]
    image_columns: tuple[str, ...]
    small_images: bool
    is_view: bool
    is_large: bool

    def image_column(self, source_column: str) -> str | None:
        """Return the column to show for rows found by `source_column`: itself, or another with images, or None."""
        if source_column in self.image_columns:
            return source_column
        return self.image_columns[0] if self.image_columns else None


def read_embedded_table(connection: sqlite3.Connection, table: str) -> EmbeddedTable | None:
    """Describe a table with its embeddings, or return None if it has none."""
    known, source = keys.describe(connection, table), side_tables.find_source(connection, table)
    pairs = side_tables.pairs(connection, source) if source else []
    if known is None or source is None or not pairs:
        return None
    blobs, images, small = _look(connection, known.name, known.columns)
    return EmbeddedTable(
        table=source.table,
        side_table=source.side.name,
        columns=known.columns,
        path_key=known.own_key,
        key=source.key,
        side_key=source.side.key_columns,
        rowid=source.rowid,
        pairs=tuple(pairs),
        blob_columns=blobs,
        image_columns=images,
        small_images=small,
        is_view=source.is_view,
        is_large=_highest_row(connection, source.side.name) > LARGE,
    )


def image_columns(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    """Return the columns of a table that hold images, judging by its first rows."""
    return _look(connection, table, tuple(side_tables.columns(connection, table)))[1]


def columns_of(connection: sqlite3.Connection, table: KeyedTable) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return (the columns of a table that are embedded, those that hold images).

    Views are not read unless they are embedded: the first row of a view may take arbitrarily long.
    """
    source = side_tables.find_source(connection, table.name)
    pairs = side_tables.pairs(connection, source) if source else []
    if table.is_view and not pairs:
        return frozenset(), ()
    return frozenset(column for _, column in pairs), _look(connection, table.name, table.columns)[1]


def tables(connection: sqlite3.Connection) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the tables and views of a database that have embeddings: (name, (model, column) pairs)."""
    found = [(source.table, side_tables.pairs(connection, source)) for source in side_tables.sources(connection)]
    return [(table, pairs) for table, pairs in found if pairs]


def _highest_row(connection: sqlite3.Connection, side_table: str) -> int:
    return connection.execute(f"select coalesce(max(_rowid_), 0) from {quote(side_table)}").fetchone()[0]


def _look(
    connection: sqlite3.Connection, table: str, columns: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """(columns with BLOBs, those with images, whether the images are small), judging by the first rows."""
    from datasette_vision.images.decode import sniff  # heavy: Pillow

    if not columns:
        return (), (), True
    # For a large BLOB, typeof() and length() read only the header of the row.
    facts = ", ".join(f"typeof({quote(name)}), length({quote(name)})" for name in columns)
    rows = connection.execute(f"select {facts} from {quote(table)} limit {SAMPLE_ROWS}").fetchall()
    blobs, images, largest = [], [], 0
    for place, name in enumerate(columns):
        lengths = [row[2 * place + 1] for row in rows if row[2 * place] == "blob"]
        if not lengths:
            continue
        blobs.append(name)
        start = connection.execute(
            f"select substr({quote(name)}, 1, 64) from {quote(table)} where typeof({quote(name)}) = 'blob' limit 1"
        ).fetchone()
        if start and sniff(bytes(start[0])):
            images.append(name)
            largest = max(largest, *lengths)
    return tuple(blobs), tuple(images), largest <= SMALL_VALUE_BYTES
