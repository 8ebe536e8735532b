"""Imports embeddings from Parquet into a table's side table: streamed, in bounded memory, in small transactions.

A row of the Parquet files belongs to the row of the table with the same path (or digest, or another matched column).
Run a stopped import again: rows that are already imported are skipped.
"""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from datasette_vision.errors import DimensionMismatch, InvalidArgument, InvalidVector
from datasette_vision.files.parquet import MODEL_METADATA, batches, open_shard, shards, vectors_of
from datasette_vision.files.storage import Place, place, storage_errors
from datasette_vision.tables import side_tables
from datasette_vision.tables.keys import key_of
from datasette_vision.tables.row_matching import Matcher
from datasette_vision.tables.schema import SideTable, SideTableRow, content_hash
from datasette_vision.util.progress import OnProgress, no_progress
from datasette_vision.util.sql_names import quote
from datasette_vision.util.transactions import in_transaction
from datasette_vision.vectors import embedding as vectors

BATCH_ROWS = 1000  # a transaction of about 20 ms: a Datasette that uses the file does not have to wait long
SHOWN = 20
UNIT = 1e-4  # an embedding this close to unit length is stored unchanged, to the bit

CREATE_TABLE = (
    "create table {} (id integer primary key, path text not null unique, digest text, width integer, height integer)"
)
FILE_COLUMNS = ("path", "digest", "width", "height")
TYPES = {"path": "text", "digest": "text", "width": "whole numbers", "height": "whole numbers", "error": "text"}


@dataclass(frozen=True)
class Plan:
    """What to import, and into which table.

    The column `match` of the Parquet files is compared with the table's column `on`. Paths are relative to the folder
    `base` if there is one. `model` is used if the files do not name theirs. With `create` the table and missing rows
    are created.
    """

    table: str
    sources: tuple[str, ...]
    match: str = "path"
    on: str | None = None
    source_column: str | None = None
    model: str | None = None
    base: str | None = None
    create: bool = False
    batch_rows: int = BATCH_ROWS


@dataclass
class ImportSummary:
    """The result of an import: numbers of rows in the Parquet files, the first names not in the table, and seconds."""

    total: int = 0
    imported: int = 0
    unchanged: int = 0
    failed: int = 0  # the image could not be embedded: imported with the reason
    unmatched: int = 0
    first_unmatched: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """The number of rows that have been read."""
        return self.imported + self.unchanged + self.failed + self.unmatched


@dataclass(frozen=True)
class _Embedded:
    """A row of the Parquet files, ready to be written."""

    name: str
    content_hash: str
    embedding: bytes | None
    error: str | None
    described: dict[str, Any]  # columns about the image, for a row that is created


class Importer:
    """Runs a plan on one database.

    The connection is in autocommit mode (isolation_level None). Raises InvalidArgument if the table, a column or a file
    is missing, or a file does not name its model; StorageFailed if a file cannot be read; DimensionMismatch if
    embeddings of one model have different sizes.
    """

    def __init__(self, connection: sqlite3.Connection, plan: Plan) -> None:
        self.plan = plan
        self.summary = ImportSummary()
        self._connection = connection
        self._shards = [(shard, self._model(shard)) for source in plan.sources for shard in _shards_of(source)]
        if plan.create and not side_tables.columns(connection, plan.table):
            connection.execute(CREATE_TABLE.format(quote(plan.table)))
        self._matcher = Matcher(connection, plan.table, plan.on or plan.match)
        self._side = SideTable(plan.table, key_of(connection, plan.table))
        self._side.create(connection)
        self._dimensions: dict[str, int] = {}

    @property
    def models(self) -> list[str]:
        """The models whose embeddings are imported."""
        return sorted({model for _, model in self._shards})

    @property
    def column(self) -> str:
        """The column of the table that is recorded as the source of the embeddings."""
        return self.plan.source_column or self._matcher.column

    def run(self, on_progress: OnProgress[ImportSummary] = no_progress) -> ImportSummary:
        """Import everything, calling `on_progress` after each transaction."""
        began = time.monotonic()
        for shard, model in self._shards:
            for batch in self._batches(shard, model):
                self._count(in_transaction(self._connection, functools.partial(self._write, model, batch)))
                self.summary.seconds = time.monotonic() - began
                on_progress(self.summary)
        self.summary.seconds = time.monotonic() - began
        return self.summary

    def _model(self, shard: Place) -> str:
        file = open_shard(shard)
        self.summary.total += file.metadata.num_rows
        for column in (self.plan.match, "embedding"):
            if column not in file.schema_arrow.names:
                found = ", ".join(file.schema_arrow.names)
                raise InvalidArgument(f"{shard.address}: expected a column {column}, found {found}")
        for column, expected in TYPES.items():
            if column in file.schema_arrow.names and not _holds(file.schema_arrow.field(column).type, expected):
                found = file.schema_arrow.field(column).type
                raise InvalidArgument(f"{shard.address}: expected {expected} in the column {column}, found {found}")
        mark = (file.schema_arrow.metadata or {}).get(MODEL_METADATA)
        model = mark.decode("utf-8", "replace") if mark else self.plan.model
        if model is None:
            raise InvalidArgument(f"{shard.address} does not name the model of its embeddings: pass it with --model")
        return str(model)

    def _batches(self, shard: Place, model: str) -> Iterator[list[_Embedded]]:
        file = open_shard(shard)
        wanted = [self.plan.match, "embedding", "error", *FILE_COLUMNS]
        columns = [name for name in file.schema_arrow.names if name in wanted]
        for batch in batches(shard, file, self.plan.batch_rows, columns=columns):
            matrix, missing = vectors_of(batch.column("embedding"))
            if not missing.all():
                self._check_size(shard, model, matrix.shape[1])
            with storage_errors(shard.address):
                rows = batch.drop_columns(["embedding"]).to_pylist()
            yield [
                self._row(row, vector if there else None)
                for row, vector, there in zip(rows, matrix, ~missing, strict=True)
            ]

    def _row(self, row: dict[str, Any], vector: vectors.Vector | None) -> _Embedded:
        error = row.get("error")
        blob = None
        if vector is None:
            error = error or "there is no embedding"
        else:
            try:
                blob = vectors.to_blob(vector if vectors.is_unit(vector, UNIT) else vectors.normalise(vector))
                error = None
            except InvalidVector as reason:
                error = str(reason)
        name = "" if row[self.plan.match] is None else str(row[self.plan.match])
        base = (self.plan.base or "").rstrip("/")
        if base and name.startswith(base + "/"):
            name = name[len(base) + 1 :]
        described = {column: row.get(column) for column in FILE_COLUMNS} | {self.plan.match: name}
        return _Embedded(name, row.get("digest") or (content_hash(blob) if blob else ""), blob, error, described)

    def _check_size(self, shard: Place, model: str, size: int) -> None:
        """Compare the size with earlier imports, and with the side table's embeddings of this model."""
        if model not in self._dimensions:
            found = self._connection.execute(
                f"select length(embedding) / 4 from {quote(self._side.name)} where model = ? and embedding is not null"
                " limit 1",
                [model],
            ).fetchone()
            self._dimensions[model] = found[0] if found else size
        if size != self._dimensions[model]:
            raise DimensionMismatch(
                f"{shard.address}: expected embeddings of {self._dimensions[model]} floats, as {model} has them in"
                f" {self._side.name}, found {size}"
            )

    def _write(self, model: str, batch: list[_Embedded], connection: sqlite3.Connection) -> ImportSummary:
        """Write a batch, in the open transaction, and return its counts."""
        counts = ImportSummary()
        column = self.column
        if self.plan.create:
            self._matcher.add(row.described for row in batch)
        keys = self._matcher.keys([row.name for row in batch])
        written: dict[tuple[object, ...], SideTableRow] = {}
        for number, row in enumerate(batch):
            if number not in keys:
                counts.unmatched += 1
                counts.first_unmatched.append(row.name)
                continue
            changed = False
            for key in keys[number]:
                if not self._is_there(key, column, model, row):
                    written[key] = SideTableRow(key, column, model, row.content_hash, row.embedding, row.error)
                    changed = True
            if not changed:
                counts.unchanged += 1
            elif row.error is None:
                counts.imported += 1
            else:
                counts.failed += 1
        self._side.write(connection, written.values())
        return counts

    def _is_there(self, key: tuple[object, ...], column: str, model: str, row: _Embedded) -> bool:
        """Whether the side table already has this row, or an embedding where this row has none."""
        matches = " and ".join(f"{quote(name)} = ?" for name in (*self._side.key_columns, "source_column", "model"))
        found = self._connection.execute(
            f"select content_hash, embedding, error from {quote(self._side.name)} where {matches}",
            (*key, column, model),
        ).fetchone()
        if found is None:
            return False
        return found == (row.content_hash, row.embedding, row.error) or (row.embedding is None and found[1] is not None)

    def _count(self, counts: ImportSummary) -> None:
        summary = self.summary
        summary.imported += counts.imported
        summary.unchanged += counts.unchanged
        summary.failed += counts.failed
        summary.unmatched += counts.unmatched
        summary.first_unmatched = (summary.first_unmatched + counts.first_unmatched)[:SHOWN]


def _holds(kind: Any, expected: str) -> bool:
    """Say whether a pyarrow.DataType holds text, whole numbers, or nulls only."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if expected == "text":
        return types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)
    return (types.is_integer(kind) and not types.is_uint64(kind)) or types.is_null(kind)


def _shards_of(source: str) -> list[Place]:
    found = list(shards(place(source)))
    if not found:
        raise InvalidArgument(f"{source}: there is no Parquet file")
    return found
