"""Keeps one embedded column in sync with its table: decides when to look, when to read, and what to embed.

A look compares keys, and embeds new rows. A check reads values, to find those that were changed in place. Both rest 19
times as long as they used the CPU, and at least as long as they took. Together they use a twentieth of a core, however
large the table, and look as often on a busy machine as on an idle one. Rows that they find are embedded at once, a few
at a time in the queue, so that other users of the model are served in between.
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

RESTS = 19.0  # seconds, for each second of CPU time that looking or checking takes
SLICE_S = 0.1
KEYS_AT_A_TIME = 200  # in one SQL statement, and embedded together
SHOWN_FAILURES = 20
WORKERS = 2
MAX_QUEUED = 4

IN_STEP, EMBEDDING, FAILED, WAITING = "in step", "embedding", "failed", "waiting"


@dataclass
class Report:
    """The state of a column. `queued` is the number of rows known to be waiting; `embedded` and `removed` count since
    the start.

    `failed` is the number of rows with an error instead of an embedding; `failures` holds the first ones, as (name of
    the row, reason). `error` is why the column as a whole is not in sync, and `checked` whether each value has been
    read since the table last changed.
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
class SyncResources:
    """The resources for keeping the columns of a database in sync.

    `awake` is entered while there is work, and gives the event that is set when the work has to stop.
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

    def __init__(self, source: EmbeddedSource, column: str, model: str, resources: SyncResources) -> None:
        self.source = source
        self.column = column
        self.model = model
        self.report = Report()
        self._resources = resources
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
        """Whether a value is known to have changed, but not yet which one."""
        return self._urgent

    def changed(self) -> None:
        """Record that the database has changed."""
        self._look_due = self._check_due = True
        self.report.checked = False

    def rest(self, seconds: float) -> None:
        """Pause for this many seconds."""
        self._rests_until = self._resources.clock() + seconds

    def step(self, connection: sqlite3.Connection) -> None:
        """Do the work that is due, if any: a look, or a part of a check. If both are due, they take turns.

        Raises the errors of embed_table(), and InvalidArgument for a column of file names.
        """
        began, processor_began = self._resources.clock(), self._resources.processor_clock()
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
            used_s = self._resources.processor_clock() - processor_began
            self.rest(max(RESTS * used_s, self._resources.clock() - began))
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
            # Another job is embedding this table: doing the same would be done twice.
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
            table, limit = SourceTable(connection, self.source.table), self._resources.vision().limits.max_bytes
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
        with self._resources.awake() as stop:
            summary = embed_table(
                self._resources.connect,
                self.source.table,
                vision=self._resources.vision(),
                column=self.column,
                kind=self._kind,
                model=self.model,
                where=where,
                workers=WORKERS,
                max_queued=MAX_QUEUED,
                writer=self._resources.writer,
                on_progress=on_progress,
                stop=stop,
            )
        # Our own writes change the database too, so it is looked at again.
        report.state = WAITING if summary.stopped else IN_STEP
        self._resources.on_done(self, summary)
