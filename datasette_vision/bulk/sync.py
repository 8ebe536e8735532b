"""Keeps one embedded column in step with its table: when to look, when to read, and what to embed.

A look compares keys, and embeds what is new. A check reads values, to find what was changed in place. Both rest 19
times as long as they used the processor, and at least as long as they took: together they use a twentieth of a core,
however large the table, and look as often on a busy machine as on a quiet one. What they find is embedded at once, a
few rows at a time in the queue, so that others who use the model are served in between.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.tally import Summary
from datasette_vision.engine.vision import Vision
from datasette_vision.tables import columns
from datasette_vision.tables.diff import ContentCheck, Glance, failures, glance, has_key, is_new
from datasette_vision.tables.rows import Connect, SourceTable
from datasette_vision.tables.side_tables import EmbeddedSource
from datasette_vision.util.transactions import Writer

RESTS = 19.0  # seconds, for each second of the processor's that looking or checking takes
SLICE_S = 0.1
KEYS_AT_A_TIME = 200  # in one SQL statement, and embedded together
SHOWN_FAILURES = 20
WORKERS = 2
MAX_QUEUED = 4

IN_STEP, EMBEDDING, FAILED, WAITING = "in step", "embedding", "failed", "waiting"


@dataclass
class Report:
    """How it goes. `queued` are the rows that are known to wait; `embedded` and `removed` count since the start.

    `failed` are the rows that have no embedding but a reason, of which `failures` holds the first, as (name of the row,
    reason). `error` is why the column as a whole is not kept in step, and `checked` whether each value has been read
    since the table last changed.
    """

    state: str = WAITING
    queued: int = 0
    embedded: int = 0
    removed: int = 0
    failed: int = 0
    checked: bool = False
    error: str | None = None
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Means:
    """What is needed to keep columns of a database in step.

    `awake` is entered while there is work, and gives the event that is set when it has to stop.
    """

    connect: Connect
    writer: Writer
    vision: Callable[[], Vision]
    awake: Callable[[], AbstractContextManager[threading.Event]]
    on_done: Callable[[SyncedColumn, Summary], None] = lambda kept, summary: None
    clock: Callable[[], float] = time.monotonic
    processor_clock: Callable[[], float] = time.thread_time


class SyncedColumn:
    """One column of a table, embedded by one model."""

    def __init__(self, source: EmbeddedSource, column: str, model: str, means: Means) -> None:
        self.source = source
        self.column = column
        self.model = model
        self.report = Report()
        self._means = means
        self._kind: str | None = None
        self._seen: Glance | None = None
        self._look_due = True
        self._check_due = True
        self._looked_last = False
        self._check: ContentCheck | None = None
        self._urgent = False
        self._wrote = False
        self._rests_until = 0.0

    @property
    def name(self) -> str:
        """The table, the column and the model, for the log."""
        return f"{self.source.table} ({self.column}, {self.model})"

    @property
    def impatient(self) -> bool:
        """Whether a value is known to have changed, and only not yet which."""
        return self._urgent

    def changed(self) -> None:
        """Be told that the database has changed."""
        self._look_due = self._check_due = True
        self.report.checked = False

    def rest(self, seconds: float) -> None:
        """Do nothing for so many seconds."""
        self._rests_until = self._means.clock() + seconds

    def step(self, connection: sqlite3.Connection) -> None:
        """Do what there is to do now, if anything: a look, or a part of a check. With both due, they take turns.

        Raises what embed_table() raises, and InvalidArgument for a column of names of files.
        """
        began, processor_began = self._means.clock(), self._means.processor_clock()
        if began < self._rests_until:
            return
        has_to_check = self._seen is not None and (self._check is not None or self._check_due)
        looks = self._look_due and not (has_to_check and self._looked_last)
        if looks:
            wanted = self._look(connection)
        elif has_to_check:
            wanted = self._go_on_checking(connection)
        else:
            return
        self._looked_last = looks
        if not self._urgent:
            used_s = self._means.processor_clock() - processor_began
            self.rest(max(RESTS * used_s, self._means.clock() - began))
        self.report.checked = not (self._look_due or self._check_due or self._check)
        if wanted is not None:
            self._embed(connection, wanted)
        if looks or wanted is not None:
            self.report.error = None

    def _look(self, connection: sqlite3.Connection) -> str | None:
        """Compare keys, and return the condition for the rows to embed."""
        if self._kind is None:
            table = SourceTable(connection, self.source.table)
            self._kind = columns.kind(table, table.column(self.column), None)
        before, wrote = self._seen, self._wrote
        seen = self._seen = glance(connection, self.source, self.column, self.model)
        self._look_due = self._wrote = False
        report = self.report
        report.queued = seen.new
        report.failed = seen.failed
        report.failures = (
            failures(connection, self.source, self.column, self.model, SHOWN_FAILURES) if seen.failed else []
        )
        if before is not None and seen.noted > before.noted and not wrote:
            # A job of somebody else is at it: to do the same would be done twice.
            self._look_due = True
            report.state = WAITING
            return None
        if seen.new or seen.gone:
            return is_new(self.source, self.column, self.model)
        report.state = IN_STEP
        self._urgent = before is not None and not before.new and not before.gone and before.length != seen.length
        return None

    def _go_on_checking(self, connection: sqlite3.Connection) -> str | None:
        """Read some values, and return the condition for those that changed."""
        if self._check is None:
            assert self._kind is not None  # a look comes first
            table, limit = SourceTable(connection, self.source.table), self._means.vision().limits.max_bytes
            self._check = ContentCheck(table, self.column, self.model, self._kind, limit)
            self._check_due = False
        keys, done = self._check.run(SLICE_S, KEYS_AT_A_TIME)
        if done:
            self._check, self._urgent = None, False
        return has_key(self.source.table, self.source.key, keys) if keys else None

    def _embed(self, connection: sqlite3.Connection, where: str) -> None:
        report = self.report
        embedded, removed = report.embedded, report.removed

        def on_progress(summary: Summary) -> None:
            report.queued = max(0, summary.total - summary.done)
            report.embedded = embedded + summary.embedded
            report.removed = removed + summary.removed

        report.state = EMBEDDING
        self._wrote = True
        with self._means.awake() as stop:
            summary = embed_table(
                self._means.connect,
                self.source.table,
                vision=self._means.vision(),
                column=self.column,
                kind=self._kind,
                model=self.model,
                where=where,
                workers=WORKERS,
                max_queued=MAX_QUEUED,
                writer=self._means.writer,
                on_progress=on_progress,
                stop=stop,
            )
        # What was written is a change of the database, and so it is looked at again.
        report.state = WAITING if summary.stopped else IN_STEP
        self._means.on_done(self, summary)
