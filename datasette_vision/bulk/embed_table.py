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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from datasette_vision.bulk import photos
from datasette_vision.bulk.pipeline import Outcome, embed_all
from datasette_vision.bulk.tally import ByContent, Summary, Tally, side_table_row
from datasette_vision.engine.services import BulkTower
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import DimensionMismatch, InvalidArgument
from datasette_vision.tables import columns
from datasette_vision.tables.file_content import Base
from datasette_vision.tables.rows import Connect, KeyValues, SourceRow, SourceTable, Wanted, connected, connector
from datasette_vision.tables.schema import OWN_COLUMNS, SideTable, SideTableRow
from datasette_vision.util.progress import OnProgress, no_progress
from datasette_vision.util.sql_names import quote
from datasette_vision.util.transactions import Transactions, Writer, writer_on

GONE_AT_A_TIME = 10_000
# Inferences. Pictures of all sizes leave holes in the heaps of the threads: a job would grow by a fifth in 20,000.
TRIM_EVERY = 200


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
    on_failure: Callable[[KeyValues, str], None] = lambda key, reason: None,
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
    ever the same object, after each row, and `on_failure` the key of each row that failed, with the reason. When `stop`
    is set, what is ready is written and the summary says `stopped`; what is ready is also written when an exception
    passes, be it KeyboardInterrupt.

    Raises InvalidArgument for a table, column, key or `where` that cannot be used, DimensionMismatch when the side
    table has embeddings of another size by this model, Unreadable for the database or the folder, UnknownModel,
    WrongTask, ModelCorrupt, Busy and sqlite3.Error, or what `writer` raises.
    """
    summary = Summary()
    tally = Tally(summary, on_progress, stop)
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
        summary.total = source.count(chosen, where)
        kind = kind or columns.kind(source, chosen, folder, where)
        tower = vision.text_tower(model)  # of a classifier this raises WrongTask: scores are no embeddings
        if kind != columns.TEXTS:
            tower = vision.image_tower(model)
        side = source.side
        writer(lambda connection: prepare_side_table(connection, side, tower, force=force))
        limit = vision.limits.max_bytes
        wanted = Wanted(chosen, tower.model, limit, where, source.column(digest) if digest else None, force)
        keyless: list[str] = []
        outcomes = embed_all(
            tower,
            _to_read(source.rows(wanted), tally, keyless),
            columns.Reader(kind, folder, limit),
            in_order=False,
            workers=workers,
            max_queued=max_queued,
            unchanged=None if force else _is_unchanged,
            known=None if force else ByContent(side, finder, tower),
        )
        with Transactions[SideTableRow](writer, side.write) as transactions:

            def take(outcome: Outcome[SourceRow]) -> None:
                row = outcome.item
                if outcome.error is not None:
                    on_failure(row.key, str(outcome.error))
                written = side_table_row(outcome, row.key, chosen, tower.model, (row.known_hash, row.known_error))
                if written is not None:
                    transactions.add(written)

            tally.count(outcomes, lambda row: row.label, take)
        for label in keyless:
            summary.fail(label, "its key is NULL, or text that is not UTF-8")
        if prune and not summary.stopped:
            summary.removed = remove_gone(writer, source, chosen)
        tally.report()
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


def _to_read(rows: Iterator[SourceRow], tally: Tally, keyless: list[str]) -> Iterator[SourceRow]:
    """Yield the rows that have to be read, and name those whose key cannot be used."""
    for row in rows:
        if row.same_digest:
            tally.skip()
        elif not _usable(row.key):
            keyless.append(row.label)
        else:
            yield row


def _is_unchanged(row: SourceRow, content_hash: str) -> bool:
    return row.known_hash == content_hash and row.known_error is None


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
