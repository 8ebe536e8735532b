"""What the enrichments do with a batch of rows, on a thread: read, decode and infer, with an outcome for each row."""

from __future__ import annotations

import base64
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasette_vision.bulk import photos
from datasette_vision.bulk.embed_table import prepare_side_table
from datasette_vision.bulk.pipeline import Outcome, embed_all
from datasette_vision.engine.services import BulkTower
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import InvalidArgument, InvalidInput, VisionError
from datasette_vision.tables import columns, side_tables
from datasette_vision.tables.file_content import Base
from datasette_vision.tables.rows import KeyValues, SourceRow, SourceTable, connected
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.util.sql_names import quote
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.embedding import Vector

WORKERS = 2
MAX_QUEUED = 4

Write = Callable[[sqlite3.Connection], None]


class Empty(InvalidInput):
    """The value is NULL: there is nothing to do."""


@dataclass
class BatchResult:
    """What came of a batch: how it is written, and the rows that failed, as (position in the batch, reason)."""

    write: Write
    failed: list[tuple[int, str]]


class Batch:
    """Some rows of a table, given as Datasette's JSON has them, and a column of it.

    Raises InvalidArgument for a table or a column that cannot be used.
    """

    def __init__(self, connection: sqlite3.Connection, table: str, column: str, rows: Sequence[dict[str, Any]]) -> None:
        self._connection = connected(connection)
        self._lock = threading.Lock()
        self.source = SourceTable(connection, table)
        self._column = self.source.column(column)
        self._keys = [tuple(_value(row[name]) for name in self.source.key) for row in rows]
        base = photos.base_of(connection, table) if self._column == "path" else None
        self._base = None if base is None else Base(Path(base))
        self._kind = columns.kind(self.source, self._column, self._base)

    def embed(self, vision: Vision, model: str) -> BatchResult:
        """Embed the values into the side table. Raises what embed_table() raises."""
        tower = vision.text_tower(model) if self._kind == columns.TEXTS else vision.image_tower(model)
        side = self.source.side
        rows: list[SideTableRow] = []
        failed: list[tuple[int, str]] = []
        for outcome in self._outcomes(vision, tower):
            key, reason = self._keys[outcome.item], None if outcome.error is None else str(outcome.error)
            if isinstance(outcome.error, Empty):
                continue
            if reason is not None:
                failed.append((outcome.item, reason))
            embedding = None if outcome.vector is None else vectors.to_blob(outcome.vector)
            rows.append(SideTableRow(key, self._column, tower.model, outcome.content_hash or "", embedding, reason))

        def write(connection: sqlite3.Connection) -> None:
            prepare_side_table(connection, side, tower)
            # What cannot even be read keeps the embedding it had.
            side.write(
                connection, (row for row in rows if row.content_hash or not _has_embedding(connection, side, row))
            )

        return BatchResult(write, failed)

    def describe(
        self, vision: Vision, model: str, output: str, describe: Callable[[Vector], str], *, known: bool = False
    ) -> BatchResult:
        """Put what `describe` makes of a picture's embedding, or of its scores, into the column `output`.

        `known` takes embeddings that the side table has already. Raises InvalidArgument for a column of texts.
        """
        if self._kind == columns.TEXTS:
            raise InvalidArgument(f"{self._column} holds texts: expected a column of pictures")
        values: list[tuple[object, ...]] = []
        failed: list[tuple[int, str]] = []
        tower = vision.image_tower(model)
        for outcome in self._outcomes(vision, tower, self._known(tower) if known else None):
            if outcome.vector is not None:
                values.append((describe(outcome.vector), *self._keys[outcome.item]))
            elif not isinstance(outcome.error, Empty):
                failed.append((outcome.item, str(outcome.error)))
        this_row = " and ".join(f"{quote(name)} = ?" for name in self.source.key)
        sql = f"update {quote(self.source.name)} set {quote(output)} = ? where {this_row}"
        return BatchResult(lambda connection: _write_many(connection, sql, values), failed)

    def _outcomes(
        self, vision: Vision, tower: BulkTower, known: Callable[[str], Vector | None] | None = None
    ) -> Iterator[Outcome[int]]:
        reader = columns.Reader(self._kind, self._base, vision.limits.max_bytes)
        outcomes = embed_all(
            tower,
            range(len(self._keys)),
            lambda position: reader(self._row(self._keys[position], vision.limits.max_bytes)),
            workers=WORKERS,
            max_queued=MAX_QUEUED,
            known=known,
        )
        with contextlib.closing(outcomes):
            yield from outcomes

    def _row(self, key: KeyValues, max_bytes: int) -> SourceRow:
        name = f"{quote(self.source.name)}.{quote(self._column)}"
        this_row = " and ".join(f"{quote(part)} = ?" for part in self.source.key)
        with self._lock:
            found = self._connection.execute(
                f"select typeof({name}), length({name}),"
                f" case when typeof({name}) <> 'blob' or length({name}) <= {max_bytes} then {name} end"
                f" from {quote(self.source.name)} where {this_row}",
                key,
            ).fetchone()
        if found is None or found[0] == "null":  # or it was deleted meanwhile
            raise Empty("there is no value")
        return SourceRow(key, found[0], found[1], None, None, False, found[2], ", ".join(map(str, key)))

    def _known(self, tower: BulkTower) -> Callable[[str], Vector | None] | None:
        """Return what finds embeddings by their content, where there is an index for it."""
        source = side_tables.find_source(self._connection, self.source.name)
        if source is None or not self._has_contents(source.side):
            return None

        def find(content_hash: str) -> Vector | None:
            with self._lock:
                found = source.side.find(self._connection, content_hash, tower.model)
            return None if found is None or len(found) != 4 * tower.dimensions else vectors.from_blob(found)

        return find

    def _has_contents(self, side: SideTable) -> bool:
        plan = self._connection.execute(
            f"explain query plan select embedding from {quote(side.name)} where content_hash = '' and model = ''"
        )
        return any("SEARCH" in str(row[3]) for row in plan)


def image_column(connection: sqlite3.Connection, table: str) -> tuple[list[str], str | None]:
    """Return the columns of a table, and the one that holds pictures, if one does."""
    source = SourceTable(connected(connection), table)
    try:
        return source.columns, columns.choose_column(source, None, [])
    except VisionError:
        return source.columns, None


def _has_embedding(connection: sqlite3.Connection, side: SideTable, row: SideTableRow) -> bool:
    this_row = " and ".join(f"{quote(name)} = ?" for name in (*side.key_columns, "source_column", "model"))
    found = connection.execute(
        f"select 1 from {quote(side.name)} where {this_row} and embedding is not null",
        (*row.key, row.source_column, row.model),
    )
    return found.fetchone() is not None


def _write_many(connection: sqlite3.Connection, sql: str, values: list[tuple[object, ...]]) -> None:
    connection.executemany(sql, values)


def _value(value: Any) -> Any:
    """Return a value of Datasette's JSON as SQLite has it: a BLOB is an object there."""
    return base64.b64decode(value["encoded"]) if isinstance(value, dict) else value
