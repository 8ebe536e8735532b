"""The recorded state of each file in the table of photos, and how a file's row is written."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass

from datasette_vision.bulk.folders import FoundImage
from datasette_vision.bulk.photos import PHOTO_COLUMNS, ImageStorage, moment, readable_path
from datasette_vision.bulk.pipeline import Outcome
from datasette_vision.tables.schema import SideTable
from datasette_vision.util.sql_names import quote

# The source column of embeddings of files, as if the column of paths had been embedded.
COLUMN = "path"


@dataclass(frozen=True)
class RecordedFile:
    """The recorded state of a file."""

    id: int
    size: int
    modified: str
    digest: str | None
    format: str | None
    error: str | None
    gone_at: str | None
    embedded_hash: str | None
    embedding_error: str | None

    @property
    def embedded(self) -> bool:
        return self.embedded_hash is not None and self.embedded_hash == self.digest and self.embedding_error is None


@dataclass
class FileToRead:
    """A file that must be read. `same` says afterwards whether its content is the recorded one."""

    found: FoundImage
    path: str | bytes
    noted: RecordedFile | None
    same: bool = False


class PhotoTable:
    """The table that load fills, with its side table."""

    def __init__(self, side: SideTable, model: str, storage: ImageStorage) -> None:
        self._side = side
        self._table = quote(side.table)
        self._model = model
        self._storage = storage

    def noted(self, reader: sqlite3.Connection, path: str | bytes) -> RecordedFile | None:
        """Return the recorded state of a path, as the table holds it."""
        # The plus removes the column's affinity: otherwise SQLite searches the whole side table.
        row = reader.execute(
            f"select p.id, p.size, p.modified, p.digest, p.format, p.error, p.gone_at, s.content_hash, s.error"
            f" from {self._table} p left join {quote(self._side.name)} s on s.id = +p.id and s.source_column = ?"
            " and s.model = ? where p.path = ?",
            (COLUMN, self._model, path),
        ).fetchone()
        return None if row is None else RecordedFile(*row)

    def write(self, writer: sqlite3.Connection, outcome: Outcome[FileToRead]) -> int:
        """Write the result of a file, in the open transaction, and return the row's id."""
        file, photo = outcome.item, outcome.inspected
        values: dict[str, object] = {
            "size": file.found.size,
            "modified": moment(file.found.modified),
            "error": None,
            "gone_at": None,
        }
        if photo is not None:
            values |= {**photo.described, "digest": outcome.content_hash}
            if self._storage.column is not None:
                values[self._storage.column] = photo.image
        elif outcome.error is not None and not file.same:
            values["error"] = str(outcome.error)
            if outcome.content_hash is not None:
                values |= {**dict.fromkeys(PHOTO_COLUMNS), "digest": outcome.content_hash}
                if self._storage.column is not None:
                    values[self._storage.column] = None
        key = file.noted.id if file.noted is not None else None
        if key is None:  # two patterns may have found the same file
            row = writer.execute(f"select id from {self._table} where path = ?", (file.path,)).fetchone()
            key = row[0] if row is not None else None
        if key is not None:
            columns = ", ".join(f"{quote(column)} = ?" for column in values)
            writer.execute(f"update {self._table} set {columns} where id = ?", (*values.values(), key))
            return key
        values = {"path": file.path, "name": readable_path(os.path.basename(file.path)), **values}  # noqa: PTH119
        columns, marks = ", ".join(map(quote, values)), ", ".join("?" * len(values))
        added = writer.execute(f"insert into {self._table} ({columns}) values ({marks})", tuple(values.values()))
        assert added.lastrowid is not None
        return added.lastrowid
