"""Embeds a whole table or view into its side table: what is new or changed, stopped or killed and run again at will.

::

    vision = Vision(config_for_bulk())
    summary = embed_table("photos.db", "photos", vision=vision, model="clip")
    print(summary.embedded, summary.failed, summary.failures)
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasette_vision.bulk import photos
from datasette_vision.bulk.pipeline import Outcome, embed_all
from datasette_vision.engine.services import BulkTower
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import DimensionMismatch, InvalidArgument
from datasette_vision.tables import columns
from datasette_vision.tables.file_content import Base
from datasette_vision.tables.rows import Connect, KeyValues, SourceRow, SourceTable, Wanted, connected, connector
from datasette_vision.tables.schema import OWN_COLUMNS, SideTable, SideTableRow
from datasette_vision.util import memory
from datasette_vision.util.progress import OnProgress, no_progress
from datasette_vision.util.sql_names import quote
from datasette_vision.util.transactions import Transactions, Writer, writer_on
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.embedding import Vector

SHOWN_FAILURES = 20
GONE_AT_A_TIME = 10_000
# Inferences. Pictures of all sizes leave holes in the heaps of the threads: a job would grow by a fifth in 20,000.
TRIM_EVERY = 200


@dataclass
class Summary:
    """What came of a job, and how far it is: numbers of rows with a value in the column, and seconds.

    `computed` counts inferences: fewer than `embedded` where rows have the same content. `failures` are the first, as
    (name of the row, reason).
    """

    total: int = 0
    embedded: int = 0
    unchanged: int = 0
    failed: int = 0
    removed: int = 0
    computed: int = 0
    stopped: bool = False
    seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def done(self) -> int:
        """The rows that are dealt with."""
        return self.embedded + self.unchanged + self.failed

    @property
    def per_second(self) -> float:
        """New embeddings a second."""
        return self.embedded / self.seconds if self.seconds > 0 else 0.0

    def fail(self, name: str, reason: str) -> None:
        """Count a failure, and keep the first ones."""
        self.failed += 1
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append((name, reason))


def embed_table(
    database: Path | str | Connect,
    table: str,
    *,
    vision: Vision,
    column: str | None = None,
    kind: str | None = None,
    model: str | None = None,
    key: Sequence[str] = (),
    base: Path | str | None = None,
    where: str | None = None,
    digest: str | None = None,
    force: bool = False,
    prune: bool = True,
    workers: int | None = None,
    max_queued: int | None = None,
    writer: Writer | None = None,
    on_progress: OnProgress[Summary] = no_progress,
    stop: threading.Event | None = None,
) -> Summary:
    """Embed what is new or changed of a column into `_vision_<table>`, remove what is gone, and say what was done.

    `column` holds images (BLOBs, data: URIs or base64), texts, or, with the folder `base`, paths of image files below
    it: `kind` says which, in the words of columns.py; without it its first values do. Without `column` the one is taken
    that was embedded before, or holds images. Rows are known by the table's key; for a view, `key` names the columns.
    `where` is SQL. The column `digest`, if there is one, holds the SHA-256 of each content: where it is noted already,
    nothing is read. `force` embeds all anew; without `prune` nothing is removed, which is quicker where `where` chooses
    a few rows of a large table.

    A row that fails has its reason in the side table, and is tried again each time: the reason may be gone. What cannot
    even be read keeps the embedding it had.

    `database` is a path, or a function that opens connections, in autocommit mode and usable on any thread, where a
    process has to go through an SQLite of its choice; `writer` writes, by default on one more of them. Nothing is
    locked while inference runs: a transaction takes what is ready, some times a second. `on_progress` gets the summary,
    ever the same object, after each row. When `stop` is set, what is ready is written and the summary says `stopped`;
    what is ready is also written when an exception passes, be it KeyboardInterrupt.

    Raises InvalidArgument for a table, column, key or `where` that cannot be used, DimensionMismatch when the side
    table has embeddings of another size by this model, Unreadable for the database or the folder, UnknownModel,
    WrongTask, ModelCorrupt, Busy and sqlite3.Error, or what `writer` raises.
    """
    began = time.monotonic()
    connect = connector(database)
    with contextlib.ExitStack() as stack:
        reader, finder = (connected(stack.enter_context(contextlib.closing(connect()))) for _ in range(2))
        writer = writer or writer_on(stack.enter_context(contextlib.closing(connect())))
        source = SourceTable(reader, table, key)
        folder = None if base is None else Base(Path(base))
        chosen = source.column(column) if column else columns.choose_column(source, folder, _embedded(reader, source))
        if folder is None and chosen == "path" and (loaded := photos.base_of(reader, source.name)) is not None:
            # A table that load made: it knows its folder and the digests, and which files are there.
            folder, digest = Base(Path(loaded)), "digest"
            where = f"gone_at is null and ({where or 1}\n)"
        summary = Summary(total=source.count(chosen, where))
        kind = kind or columns.kind(source, chosen, folder, where)
        tower = vision.text_tower(model)  # of a classifier this raises WrongTask: scores are no embeddings
        if kind != columns.TEXTS:
            tower = vision.image_tower(model)
        side = source.side
        writer(lambda connection: prepare_side_table(connection, side, tower, force=force))
        limit = vision.limits.max_bytes
        wanted = Wanted(chosen, tower.model, limit, where, source.column(digest) if digest else None, force)
        job = _Job(summary, source.side, wanted, finder)
        outcomes = embed_all(
            tower,
            job.rows(source),
            columns.Reader(kind, folder, limit),
            in_order=False,
            workers=workers,
            max_queued=max_queued,
            unchanged=None if force else job.is_unchanged,
            known=None if force else job.known,
        )
        transactions = Transactions[SideTableRow](writer, side.write)
        with transactions, contextlib.closing(outcomes):
            for outcome in outcomes:
                job.take(outcome, transactions)
                if outcome.computed and summary.computed % TRIM_EVERY == 0:
                    memory.trim()
                summary.seconds = time.monotonic() - began
                on_progress(summary)
                if stop is not None and stop.is_set():
                    summary.stopped = True
                    break
        job.finish()
        if prune and not summary.stopped:
            summary.removed = remove_gone(writer, source, chosen)
        summary.seconds = time.monotonic() - began
        on_progress(summary)
        return summary


def prepare_side_table(
    connection: sqlite3.Connection, side: SideTable, tower: BulkTower, *, force: bool = False
) -> None:
    """Have the side table ready for the embeddings of a tower.

    Raises InvalidArgument when its rows are known by another key, DimensionMismatch when it has embeddings of this
    model of another size, unless they are all made anew.
    """
    side.create(connection)
    found = connection.execute("select name from pragma_table_info(?)", (side.name,)).fetchall()
    key = tuple(name for (name,) in found[: -len(OWN_COLUMNS)])
    if tuple(name.lower() for (name,) in found[-len(OWN_COLUMNS) :]) != OWN_COLUMNS:
        names = ", ".join(name for (name,) in found)
        raise InvalidArgument(
            f"{side.name} has other columns than a side table: expected {', '.join((*side.key_columns, *OWN_COLUMNS))},"
            f" found {names}. Put them right, or drop it and embed {side.table} again"
        )
    if key != side.key_columns:
        raise InvalidArgument(f"{side.name} knows the rows of {side.table} by {', '.join(key)}: give that as --key")
    side.index_contents(connection)
    found = connection.execute(
        f"select length(embedding) / 4 from {quote(side.name)} where model = ? and embedding is not null limit 1",
        (tower.model,),
    ).fetchone()
    if found is not None and found[0] != tower.dimensions and not force:
        raise DimensionMismatch(
            f"{side.name} has embeddings of {tower.model} of {found[0]} floats, and the installed {tower.model} makes"
            f" {tower.dimensions}: --force embeds all anew"
        )


class _Job:
    """The rows on their way in, and what becomes of them."""

    def __init__(self, summary: Summary, side: SideTable, wanted: Wanted, finder: sqlite3.Connection) -> None:
        self._summary = summary
        self._side = side
        self._wanted = wanted
        self._finder = finder
        self._finding = threading.Lock()
        self._skipped = 0
        self._keyless: list[str] = []
        self._counted = 0

    # On the threads of the pipeline

    def rows(self, source: SourceTable) -> Iterator[SourceRow]:
        """Yield the rows that have to be read."""
        for row in source.rows(self._wanted):
            if row.same_digest:
                self._skipped += 1
            elif not _usable(row.key):
                self._keyless.append(row.label)
            else:
                yield row

    def is_unchanged(self, row: SourceRow, content_hash: str) -> bool:
        return row.known_hash == content_hash and row.known_error is None

    def known(self, content_hash: str) -> Vector | None:
        with self._finding:
            found = self._side.find(self._finder, content_hash, self._wanted.model)
        return None if found is None else vectors.from_blob(found)

    # On the thread of the caller

    def take(self, outcome: Outcome[SourceRow], transactions: Transactions[SideTableRow]) -> None:
        """Count an outcome, and have it written."""
        summary, row = self._summary, outcome.item
        self._count_skipped()
        if outcome.unchanged:
            summary.unchanged += 1
        elif outcome.vector is not None:
            summary.embedded += 1
            summary.computed += outcome.computed
            transactions.add(self._row(row, outcome.content_hash, vectors.to_blob(outcome.vector), None))
        else:
            reason = str(outcome.error)
            summary.fail(row.label, reason)
            has_embedding = row.known_hash is not None and row.known_error is None
            noted = (row.known_hash, row.known_error) == (outcome.content_hash or "", reason)
            if not noted and not (has_embedding and outcome.content_hash is None):
                transactions.add(self._row(row, outcome.content_hash, None, reason))

    def finish(self) -> None:
        """Count what was not read."""
        self._count_skipped()
        for label in self._keyless:
            self._summary.fail(label, "its key is NULL, or text that is not UTF-8")

    def _count_skipped(self) -> None:
        skipped = self._skipped
        self._summary.unchanged += skipped - self._counted
        self._counted = skipped

    def _row(
        self, row: SourceRow, content_hash: str | None, embedding: bytes | None, error: str | None
    ) -> SideTableRow:
        return SideTableRow(row.key, self._wanted.column, self._wanted.model, content_hash or "", embedding, error)


def _usable(key: KeyValues) -> bool:
    """Whether a row can be known by its key: SQLite lets parts of a primary key be NULL."""
    try:
        return all(part is not None and (not isinstance(part, str) or part.encode() is not None) for part in key)
    except UnicodeEncodeError:
        return False


def _embedded(connection: sqlite3.Connection, source: SourceTable) -> list[str]:
    """Return the columns that were embedded before."""
    try:
        rows = connection.execute(f"select distinct source_column from {quote(source.side.name)}").fetchall()
    except connection.OperationalError:  # no side table yet
        return []
    return [str(row[0]) for row in rows]


def remove_gone(writer: Writer, source: SourceTable, column: str) -> int:
    """Remove the embeddings of rows that are gone, and of this column where its value is; return their number."""
    side = source.side
    this_row = " and ".join(f"{quote(name)} = ?" for name in side.key_columns)
    removed = 0

    def delete(connection: sqlite3.Connection, rows: list[tuple[KeyValues, bool]]) -> None:
        nonlocal removed
        for key, whole in rows:
            sql = f"delete from {quote(side.name)} where {this_row}" + ("" if whole else " and source_column = ?")
            removed += connection.execute(sql, key if whole else (*key, column)).rowcount

    while gone := source.gone(column, GONE_AT_A_TIME):
        with Transactions(writer, delete) as transactions:
            for row in gone:
                transactions.add(row)
    return removed
