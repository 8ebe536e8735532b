"""Embeds a whole table or view into its side table: new and changed rows only, and it can be stopped and run again.

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
# Inferences. Images of different sizes fragment the threads' heaps: a job would grow by a fifth in 20,000.
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
    """Embed new and changed rows of a column into `_vision_<table>`, remove embeddings of deleted rows, and return the
    counts.

    `column` holds images (BLOBs, data: URIs or base64), texts, or, with the folder `base`, paths of image files below
    it. `kind` says which, as in columns.py; by default the first values decide. Without `column`, the column that was
    embedded before or that holds images is used. Rows are identified by the table's key; for a view, `key` names the
    columns. `where` is SQL. The column `digest`, if there is one, holds the SHA-256 of each content: values whose
    digest is stored already are not read. `force` embeds all rows again. Without `prune` nothing is removed, which is
    faster if `where` selects a few rows of a large table.

    For a row that fails, the side table has the reason, and each run tries it again, because the cause may be gone. A
    value that cannot even be read keeps its embedding.

    `database` is a path, or a function that opens connections, in autocommit mode and usable on any thread, if a
    process must use a certain SQLite. `writer` writes, by default on a separate connection. Nothing is locked during
    inference: transactions write finished rows a few times a second. `on_progress` gets the summary, always the same
    object, after each row, and `on_failure` the key of each failed row, with the reason. When `stop` is set, finished
    rows are written and the summary says `stopped`. Finished rows are also written if an exception passes, including
    KeyboardInterrupt.

    Raises InvalidArgument for an invalid table, column, key or `where`, DimensionMismatch if the side table has
    embeddings of another size from this model, Unreadable for the database or the folder, UnknownModel, WrongTask,
    ModelCorrupt, Busy and sqlite3.Error, or the errors of `writer`.
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
            # A table made by load: load knows its folder, the digests, and which files exist.
            folder, digest = Base(Path(loaded)), "digest"
            where = f"gone_at is null and ({where or 1}\n)"
        summary.total = source.count(chosen, where)
        kind = kind or columns.kind(source, chosen, folder, where)
        tower = vision.text_tower(model)  # raises WrongTask for a classifier: scores are not embeddings
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
            columns.ContentReader(kind, folder, limit),
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
    """Prepare the side table for the embeddings of a tower.

    Raises InvalidArgument if its rows have another key, DimensionMismatch if it has embeddings of another size from
    this model, unless all are replaced.
    """
    side.create(connection)
    found = connection.execute("select name from pragma_table_info(?)", (side.name,)).fetchall()
    key = tuple(name for (name,) in found[: -len(OWN_COLUMNS)])
    if tuple(name.lower() for (name,) in found[-len(OWN_COLUMNS) :]) != OWN_COLUMNS:
        names = ", ".join(name for (name,) in found)
        raise InvalidArgument(
            f"{side.name} has other columns than a side table: expected {', '.join((*side.key_columns, *OWN_COLUMNS))},"
            f" found {names}. Fix them, or drop the table and embed {side.table} again"
        )
    if key != side.key_columns:
        raise InvalidArgument(
            f"{side.name} identifies the rows of {side.table} by {', '.join(key)}: pass that as --key"
        )
    side.index_contents(connection)
    found = connection.execute(
        f"select length(embedding) / 4 from {quote(side.name)} where model = ? and embedding is not null limit 1",
        (tower.model,),
    ).fetchone()
    if found is not None and found[0] != tower.dimensions and not force:
        raise DimensionMismatch(
            f"{side.name} has embeddings of {tower.model} of {found[0]} floats, and the installed {tower.model} makes"
            f" {tower.dimensions}: --force embeds all again"
        )


def _to_read(rows: Iterator[SourceRow], tally: Tally, keyless: list[str]) -> Iterator[SourceRow]:
    """Yield the rows that must be read, and report those whose key cannot be used."""
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
    """Whether a key identifies a row: SQLite allows NULL in parts of a primary key."""
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
    """Remove embeddings of deleted rows, and of this column if its value is gone; return their number."""
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
