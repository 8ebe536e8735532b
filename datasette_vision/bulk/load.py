"""Loads folders of image files into a table, and embeds them: each file is read once, and again only if it has changed.

::

    summary = load("photos.db", ["~/Pictures"], vision=Vision(config_for_bulk()), model="clip")
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasette_vision.bulk import duplicates, embed_table, photos
from datasette_vision.bulk.folders import Walk
from datasette_vision.bulk.photo_rows import COLUMN, FileToRead, PhotoTable
from datasette_vision.bulk.photos import ImageStorage, readable_path
from datasette_vision.bulk.pipeline import Inspected, Outcome, embed_all
from datasette_vision.bulk.tally import ByContent, Summary, Tally, side_table_row
from datasette_vision.engine.services import BulkTower
from datasette_vision.engine.vision import Vision
from datasette_vision.tables.file_content import read_image
from datasette_vision.tables.rows import SourceTable, connected
from datasette_vision.tables.schema import SideTable
from datasette_vision.util.progress import OnProgress, no_progress
from datasette_vision.util.sql_names import quote
from datasette_vision.util.transactions import Transactions, Writer, writer_on

FILES_PER_CHUNK = 5000


@dataclass
class LoadSummary(Summary):
    """The result of loading. `unchanged` counts the files that have not changed.

    `gone` counts files that no longer exist, and `duplicates` photos that look like an earlier one. `skipped` files are
    not images, `links` were not followed, `unreadable` lists folders and files, with the reason.
    """

    gone: int = 0
    duplicates: int = 0
    skipped: int = 0
    links: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def load(
    database: Path | str,
    paths: Sequence[str],
    *,
    vision: Vision,
    table: str = "photos",
    model: str | None = None,
    storage: ImageStorage = ImageStorage(pixels=512),  # noqa: B008
    base: Path | str | None = None,
    workers: int | None = None,
    on_progress: OnProgress[LoadSummary] = no_progress,
    stop: threading.Event | None = None,
) -> LoadSummary:
    """Load the image files in `paths` (folders, files, globs) into a table, created if missing, and embed them.

    Files with the same size and time as in the table are not read. Files with known content are not embedded again,
    wherever they have moved. Files that no longer exist are marked in `gone_at`. `near_duplicate_group` is the id of
    the first photo that looks the same.

    Paths in the table are relative to `base`: by default the folder that is loaded first, or the common folder of
    several. Files elsewhere have absolute paths. A `base` given later says where the folder is now.

    `on_progress` and `stop` are as for embed_table(). Raises Unreadable for a path that does not exist, InvalidArgument
    for a table that load() did not make, and the errors of embed_table().
    """
    summary = LoadSummary()
    tally = Tally(summary, on_progress, stop)
    walk = Walk(paths)
    tower = vision.text_tower(model)  # raises WrongTask for a classifier: scores are not embeddings
    tower = vision.image_tower(model)
    connect = _creating(database)
    with contextlib.ExitStack() as stack:
        writer, reader, finder = (stack.enter_context(contextlib.closing(connect())) for _ in range(3))
        connected(reader)
        connected(finder)
        write = writer_on(writer)
        where = str(Path(base).expanduser().resolve()) if base is not None else _common(walk)
        where = photos.prepare_photo_table(writer, table, where, storage, move=base is not None)
        side = SideTable(table, ("id",))
        embed_table.prepare_side_table(writer, side, tower)
        summary.total = walk.count()
        files = _Load(tally, walk, side, tower, where, storage, vision, reader)
        outcomes = embed_all(
            tower,
            files.to_read(),
            lambda file: read_image(Path(file.found.path), vision.limits.max_bytes),
            workers=workers,
            unchanged=files.is_unchanged,
            known=ByContent(side, finder, tower),
            inspect=files.inspect,
        )
        with Transactions[Outcome[FileToRead]](write, files.write) as transactions:
            tally.count(outcomes, lambda file: readable_path(file.path), transactions.add)
        summary.skipped, summary.links, summary.unreadable = walk.skipped, walk.links, walk.unreadable
        if not summary.stopped:
            summary.gone = files.mark_gone(write)
            summary.removed = embed_table.remove_gone(write, SourceTable(reader, table), COLUMN)
            summary.duplicates = duplicates.write_groups(reader, write, table)
        tally.report()
        return summary


class _Load:
    """The files of one call of load(), and their results."""

    def __init__(
        self,
        tally: Tally,
        walk: Walk,
        side: SideTable,
        tower: BulkTower,
        base: str,
        storage: ImageStorage,
        vision: Vision,
        reader: sqlite3.Connection,
    ) -> None:
        self._tally = tally
        self._walk = walk
        self._side = side
        self._model = tower.model
        self._photos = PhotoTable(side, tower.model, storage)
        self._base = base
        self._storage = storage
        self._decoder = vision.decoder
        assert tower.preprocess is not None, "the tower is of images"
        self._preprocess = tower.preprocess
        self._reader = reader
        self._table = quote(side.table)
        (self._last,) = reader.execute(f"select coalesce(max(id), 0) from {self._table}").fetchone()
        self._seen = bytearray(self._last + 1)
        self._returned: list[int] = []

    # On the threads of the pipeline

    def to_read(self) -> Iterator[FileToRead]:
        """Yield the files that must be read."""
        for found in self._walk:
            path = photos.stored(photos.relative(found.path, self._base))
            noted = self._photos.noted(self._reader, path)
            if noted is not None:
                if noted.id <= self._last:
                    self._seen[noted.id] = 1
                same = (noted.size, noted.modified) == (found.size, photos.moment(found.modified))
                if same and noted.error is None and noted.embedded:
                    if noted.gone_at is not None:
                        self._returned.append(noted.id)
                    self._tally.skip()
                    continue
            yield FileToRead(found, path, noted)

    def is_unchanged(self, file: FileToRead, content_hash: str) -> bool:
        noted = file.noted
        file.same = noted is not None and noted.digest == content_hash and noted.format is not None
        return file.same and noted is not None and noted.embedded

    def inspect(self, file: FileToRead, content: bytes) -> Inspected | None:
        if file.same:
            return None
        return Inspected(*photos.describe_photo(content, self._storage, self._decoder, self._preprocess))

    # On the thread of the caller

    def write(self, writer: sqlite3.Connection, outcomes: list[Outcome[FileToRead]]) -> None:
        """Write the rows of photos, and of their embeddings, in the open transaction."""
        rows = []
        for outcome in outcomes:
            noted = outcome.item.noted
            key = self._photos.write(writer, outcome)
            before = (None, None) if noted is None else (noted.embedded_hash, noted.embedding_error)
            row = side_table_row(outcome, (key,), COLUMN, self._model, before)
            if row is not None:
                rows.append(row)
        self._side.write(writer, rows)

    def mark_gone(self, writer: Writer) -> int:
        """Mark files that were not found, unmark files that are back, and return the number of missing files."""

        def mark(connection: sqlite3.Connection, rows: list[tuple[str | None, int]]) -> None:
            connection.executemany(f"update {self._table} set gone_at = ? where id = ?", rows)

        now = photos.moment(time.time_ns())
        with Transactions(writer, mark) as transactions:
            for key in self._returned:
                transactions.add((None, key))
            last = gone = 0
            while rows := self._reader.execute(
                f"select id, path, gone_at from {self._table} where id > ? and id <= ? order by id limit ?",
                (last, self._last, FILES_PER_CHUNK),
            ).fetchall():
                last = rows[-1][0]
                for key, path, gone_at in rows:
                    if self._seen[key] or not self._walk.covers(photos.absolute(path, self._base)):
                        continue
                    gone += 1
                    if gone_at is None:
                        transactions.add((now, key))
        return gone


def _common(walk: Walk) -> str:
    """Return the folder that contains all roots of a walk."""
    folders = [os.path.dirname(root.folder) if root.is_file else root.folder for root in walk.roots]  # noqa: PTH120
    try:
        return os.path.commonpath(folders)
    except ValueError:  # on several drives
        return folders[0]


def _creating(database: Path | str) -> Callable[[], sqlite3.Connection]:
    """Return a function that opens connections to a database, and creates it if necessary."""
    return lambda: sqlite3.connect(database, timeout=60, isolation_level=None, check_same_thread=False)
