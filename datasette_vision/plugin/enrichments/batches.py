"""The work of the enrichments on a batch of rows, on a thread: read, decode and infer, with an outcome for each row."""

from __future__ import annotations

import base64
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasette_vision.bulk import photos
from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.pipeline import Outcome, embed_all
from datasette_vision.bulk.tally import ByContent
from datasette_vision.engine.services import BulkTower
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import InvalidArgument, InvalidInput, VisionError
from datasette_vision.tables import columns, side_tables
from datasette_vision.tables.diff import has_key
from datasette_vision.tables.file_content import Base
from datasette_vision.tables.rows import Connect, KeyValues, SourceRow, SourceTable, connected
from datasette_vision.tables.schema import SideTable
from datasette_vision.util.sql_names import quote
from datasette_vision.util.transactions import Writer
from datasette_vision.vectors.embedding import Vector

WORKERS = 2
MAX_QUEUED = 4

# The failed rows of a batch, as (position in the batch, reason).
Failed = list[tuple[int, str]]


class Empty(InvalidInput):
    """The value is NULL: there is nothing to do."""


class Batch:
    """Some rows of a table, in Datasette's JSON format, and one of its columns.

    Raises InvalidArgument for an invalid table or column.
    """

    def __init__(
        self, connect: Connect, writer: Writer, table: str, column: str, rows: Sequence[dict[str, Any]]
    ) -> None:
        self._connect = connect
        self._writer = writer
        self._connection = connected(connect())
        self._lock = threading.Lock()
        self.source = SourceTable(self._connection, table)
        self._column = self.source.column(column)
        self._keys = [tuple(_value(row[name]) for name in self.source.key) for row in rows]
        base = photos.base_of(self._connection, table) if self._column == "path" else None
        self._base = None if base is None else Base(Path(base))
        self._kind = columns.kind(self.source, self._column, self._base)

    def close(self) -> None:
        """Close the connection that rows are read through."""
        self._connection.close()

    def embed(self, vision: Vision, model: str) -> Failed:
        """Embed the values into the side table. Raises the errors of embed_table()."""
        positions = {key: position for position, key in enumerate(self._keys)}
        failed: Failed = []
        embed_table(
            self._connect,
            self.source.name,
            vision=vision,
            column=self._column,
            kind=self._kind,
            model=model,
            where=has_key(self.source.name, self.source.key, self._keys),
            prune=False,
            workers=WORKERS,
            max_queued=MAX_QUEUED,
            writer=self._writer,
            on_failure=lambda key, reason: failed.append((positions[key], reason)),
        )
        return failed

    def describe(
        self, vision: Vision, model: str, output: str, describe: Callable[[Vector], str], *, known: bool = False
    ) -> Failed:
        """Write the result of `describe` for an image's embedding or scores into the column `output`.

        `known` accepts embeddings that the side table has already. Raises InvalidArgument for a column of texts.
        """
        if self._kind == columns.TEXTS:
            raise InvalidArgument(f"{self._column} holds texts: expected a column of images")
        values: list[tuple[object, ...]] = []
        failed: Failed = []
        tower = vision.image_tower(model)
        for outcome in self._outcomes(vision, tower, self._known(tower) if known else None):
            if outcome.vector is not None:
                values.append((describe(outcome.vector), *self._keys[outcome.item]))
            elif not isinstance(outcome.error, Empty):
                failed.append((outcome.item, str(outcome.error)))
        this_row = " and ".join(f"{quote(name)} = ?" for name in self.source.key)
        sql = f"update {quote(self.source.name)} set {quote(output)} = ? where {this_row}"
        self._writer(lambda connection: connection.executemany(sql, values).rowcount)
        return failed

    def _outcomes(
        self, vision: Vision, tower: BulkTower, known: Callable[[str], Vector | None] | None = None
    ) -> Iterator[Outcome[int]]:
        reader = columns.ContentReader(self._kind, self._base, vision.limits.max_bytes)
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
        """Return a function that finds embeddings by content, if there is an index for it."""
        source = side_tables.find_source(self._connection, self.source.name)
        if source is None or not self._has_contents(source.side):
            return None
        return ByContent(source.side, self._connection, tower, self._lock)

    def _has_contents(self, side: SideTable) -> bool:
        plan = self._connection.execute(
            f"explain query plan select embedding from {quote(side.name)} where content_hash = '' and model = ''"
        )
        return any("SEARCH" in str(row[3]) for row in plan)


def image_column(connection: sqlite3.Connection, table: str) -> tuple[list[str], str | None]:
    """Return the columns of a table, and the one that holds images, if any."""
    source = SourceTable(connected(connection), table)
    try:
        return source.columns, columns.choose_column(source, None, [])
    except VisionError:
        return source.columns, None


def _value(value: Any) -> Any:
    """Return a value of Datasette's JSON as SQLite has it: a BLOB is an object there."""
    return base64.b64decode(value["encoded"]) if isinstance(value, dict) else value
