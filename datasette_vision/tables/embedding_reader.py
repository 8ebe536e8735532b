"""Reads embeddings from side tables, as arrays."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from datasette_vision.tables.side_tables import EmbeddedSource, columns
from datasette_vision.util.sql_names import quote, rowid_name
from datasette_vision.vectors.eight_bit import RowLabels
from datasette_vision.vectors.embedding import FLOAT32, Matrix

ROWS_PER_READ = 2048


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

    def read(self, connection: sqlite3.Connection, dimensions: int) -> Iterator[tuple[RowLabels, Matrix]]:
        """Yield all embeddings with this many dimensions, in batches: labels (n,) and vectors (n, d)."""
        return self._batches(
            connection,
            f"select {self.label}, embedding from {self.table} where model = ? and source_column = ?"
            " and typeof(embedding) = 'blob' and length(embedding) = ?",
            (self.model, self.column, 4 * dimensions),
            dimensions,
        )

    def read_rows(self, connection: sqlite3.Connection, labels: list[int], dimensions: int) -> tuple[RowLabels, Matrix]:
        """Return the embeddings with these labels, if they exist: labels (n,) and vectors (n, d)."""
        batches = list(
            self._batches(
                connection,
                f"select side.{self.label}, embedding from json_each(?) chosen cross join {self.table} side"
                f" on side.{self.label} = chosen.value where model = ? and source_column = ?"
                " and typeof(embedding) = 'blob' and length(embedding) = ?",
                (json.dumps(labels), self.model, self.column, 4 * dimensions),
                dimensions,
            )
        )
        if not batches:
            return np.empty(0, np.int64), np.empty((0, dimensions), np.float32)
        return np.concatenate([batch[0] for batch in batches]), np.concatenate([batch[1] for batch in batches])

    def _batches(
        self, connection: sqlite3.Connection, sql: str, parameters: tuple[object, ...], dimensions: int
    ) -> Iterator[tuple[RowLabels, NDArray[np.float32]]]:
        cursor = connection.cursor()
        try:
            cursor.row_factory = None  # Datasette's row objects cost more than their contents
            cursor.execute(sql, parameters)
            while rows := cursor.fetchmany(ROWS_PER_READ):
                labels, blobs = zip(*rows, strict=True)
                yield (
                    np.array(labels, dtype=np.int64),
                    np.frombuffer(b"".join(blobs), dtype=FLOAT32).reshape(len(rows), dimensions),
                )
        finally:
            cursor.close()
