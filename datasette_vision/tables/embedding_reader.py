"""Reads embeddings from side tables, as arrays."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from datasette_vision.tables.side_tables import EmbeddedSource, columns
from datasette_vision.util.sql_names import quote, rowid_name
from datasette_vision.vectors.codes import RowLabels
from datasette_vision.vectors.embedding import FLOAT32, Matrix

ROWS_PER_READ = 2048


class Batch(NamedTuple):
    """Some embeddings: labels (n,), keys (n,), vectors (n, d). Keys are row numbers of the source where it has such."""

    labels: RowLabels
    keys: RowLabels
    vectors: Matrix


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one column by one model. `label` is the name of the side table's rowid."""

    source: EmbeddedSource
    model: str
    column: str
    label: str

    @classmethod
    def of(cls, connection: sqlite3.Connection, source: EmbeddedSource, model: str, column: str) -> Embeddings:
        """Find the name of the side table's rowid."""
        names = columns(connection, source.side.name, source.schema)
        return cls(source, model, column, rowid_name(names) or "rowid")

    def in_schema(self, schema: str) -> Embeddings:
        """Return the same, for a connection that has the database under another name."""
        return replace(self, source=replace(self.source, schema=schema))

    @property
    def table(self) -> str:
        """The side table, quoted, with the name of its database."""
        return f"{quote(self.source.schema)}.{quote(self.source.side.name)}"

    @property
    def key_is_rowid(self) -> bool:
        """Whether the rows are known by their row numbers."""
        return self.source.key_is_rowid

    @property
    def _own_key(self) -> str:
        """The row number of the source where that is its key, else 0."""
        return f"cast(side.{quote(self.source.side.key_columns[0])} as integer)" if self.key_is_rowid else "0"

    @property
    def with_source(self) -> str:
        """SQL to join the source table, as `source`, to the side table, as `side`.

        `cross join` fixes the order in SQLite: first the row of the side table, then the source row by its key.
        """
        source = self.source
        keys = zip(source.key, source.side.key_columns, strict=True)
        joined = " and ".join(f"source.{quote(column)} = side.{quote(in_side)}" for column, in_side in keys)
        return f"cross join {quote(source.schema)}.{quote(source.table)} source on {joined}"

    def dimensions(self, connection: sqlite3.Connection) -> int | None:
        """Return the size of the first embedding, or None if there is none."""
        row = connection.execute(
            f"select length(embedding) / 4 from {self.table} where model = ? and source_column = ?"
            " and typeof(embedding) = 'blob' and length(embedding) > 0 and length(embedding) % 4 = 0 limit 1",
            (self.model, self.column),
        ).fetchone()
        return None if row is None else int(row[0])

    def count(self, connection: sqlite3.Connection) -> int:
        """Return the number of rows, with or without an embedding. Reads only the index of the side table."""
        row = connection.execute(
            f"select count(*) from {self.table} where model = ? and source_column = ?", (self.model, self.column)
        ).fetchone()
        return int(row[0])

    def read(self, connection: sqlite3.Connection, dimensions: int) -> Iterator[Batch]:
        """Yield all embeddings of so many dimensions, some at a time."""
        return self._batches(connection, f"{self.table} side where true", (), dimensions)

    def read_rows(self, connection: sqlite3.Connection, labels: list[int], dimensions: int) -> Batch:
        """Return those embeddings that there are under some labels."""
        chosen = f"json_each(?) chosen cross join {self.table} side on side.{self.label} = chosen.value where true"
        return _joined(list(self._batches(connection, chosen, (json.dumps(labels),), dimensions)), dimensions)

    def sample(self, connection: sqlite3.Connection, dimensions: int, count: int) -> Matrix:
        """Return some of the embeddings, about so many, from all over the table."""
        step = self.count(connection) // count | 1  # odd: half of all row numbers may be missing
        chosen = f"{self.table} side where side.{self.label} % ? = 0"
        return _joined(list(self._batches(connection, chosen, (step,), dimensions)), dimensions).vectors

    def _batches(
        self, connection: sqlite3.Connection, chosen: str, parameters: tuple[object, ...], dimensions: int
    ) -> Iterator[Batch]:
        cursor = connection.cursor()
        try:
            cursor.row_factory = None  # Datasette's row objects cost more than their contents
            cursor.execute(
                f"select side.{self.label}, {self._own_key}, side.embedding from {chosen} and side.model = ?"
                " and side.source_column = ? and typeof(side.embedding) = 'blob' and length(side.embedding) = ?",
                (*parameters, self.model, self.column, 4 * dimensions),
            )
            while rows := cursor.fetchmany(ROWS_PER_READ):
                labels, keys, blobs = zip(*rows, strict=True)
                yield Batch(
                    np.array(labels, dtype=np.int64),
                    np.array(keys, dtype=np.int64),
                    np.frombuffer(b"".join(blobs), dtype=FLOAT32).reshape(len(rows), dimensions),
                )
        finally:
            cursor.close()


def _joined(batches: list[Batch], dimensions: int) -> Batch:
    if not batches:
        return Batch(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, dimensions), np.float32))
    labels, keys, vectors = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return Batch(labels, keys, vectors)
