"""The shared parts of the jobs in this folder and in files/: counting, writing, and stopping."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from datasette_vision.bulk.pipeline import Outcome
from datasette_vision.engine.services import BulkTower
from datasette_vision.tables.rows import KeyValues
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.util import memory
from datasette_vision.util.progress import OnProgress
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.embedding import Vector

SHOWN_FAILURES = 20
# Inferences. Images of different sizes fragment the threads' heaps: a job would grow by a fifth in 20,000.
TRIM_EVERY = 200


@dataclass
class Summary:
    """The result or the progress of a job: numbers of rows with a value in the column, and seconds.

    `computed` counts inferences: fewer than `embedded` if rows have the same content. `failures` holds the first ones,
    as (name of the row, reason).
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
        """The number of finished rows."""
        return self.embedded + self.unchanged + self.failed

    @property
    def per_second(self) -> float:
        """New embeddings per second."""
        return self.embedded / self.seconds if self.seconds > 0 else 0.0

    def fail(self, name: str, reason: str) -> None:
        """Count a failure, and keep the first ones."""
        self.failed += 1
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append((name, reason))


class Tally:
    """Counts the outcomes of items in a summary. `on_progress` gets it, always the same object, after each item."""

    def __init__(self, summary: Summary, on_progress: OnProgress[Any], stop: threading.Event | None = None) -> None:
        """When `stop` is set, counting ends after the current item, and the summary says `stopped`."""
        self._summary = summary
        self._on_progress = on_progress
        self._stop = stop
        self._began = time.monotonic()
        self._unchanged = 0
        # Counted separately, because it is counted on the threads of the pipeline.
        self._skipped = 0

    def skip(self) -> None:
        """Count an item that need not even be read. For the function that yields the items."""
        self._skipped += 1

    def count(
        self,
        outcomes: Generator[Outcome[Any], None, None],
        name: Callable[[Any], str],
        take: Callable[[Outcome[Any]], None],
    ) -> None:
        """Count each outcome, and pass it to `take`, until the last one or `stop`. `name` returns the name of an
        item.
        """
        summary = self._summary
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                if outcome.unchanged:
                    self._unchanged += 1
                elif outcome.error is not None:
                    summary.fail(name(outcome.item), str(outcome.error))
                else:
                    summary.embedded += 1
                    summary.computed += outcome.computed
                take(outcome)
                if outcome.computed and summary.computed % TRIM_EVERY == 0:
                    memory.trim()
                self.report()
                if self._stop is not None and self._stop.is_set():
                    summary.stopped = True
                    return

    def report(self) -> None:
        """Update the summary, and report it."""
        self._summary.unchanged = self._unchanged + self._skipped
        self._summary.seconds = time.monotonic() - self._began
        self._on_progress(self._summary)


class ByContent:
    """Finds embeddings of a tower by the content that they were made from. Thread-safe."""

    def __init__(
        self, side: SideTable, connection: sqlite3.Connection, tower: BulkTower, lock: threading.Lock | None = None
    ) -> None:
        """`lock` is held while the connection is used."""
        self._side = side
        self._connection = connection
        self._tower = tower
        self._lock = lock or threading.Lock()

    def __call__(self, content_hash: str) -> Vector | None:
        """Return an embedding of this content, (d,) float32, from any row, or None."""
        with self._lock:
            found = self._side.find(self._connection, content_hash, self._tower.model)
        return None if found is None or len(found) != 4 * self._tower.dimensions else vectors.from_blob(found)


def side_table_row(
    outcome: Outcome[Any], key: KeyValues, column: str, model: str, before: tuple[str | None, str | None]
) -> SideTableRow | None:
    """Return the row to write for an outcome, None if the existing one stays.

    `before` is the (content hash, error) of the existing row. A row whose value cannot even be read keeps its
    embedding.
    """
    digest, reason = outcome.content_hash or "", None if outcome.error is None else str(outcome.error)
    is_embedded = before[0] is not None and before[1] is None
    if outcome.unchanged or (reason is not None and (before == (digest, reason) or (is_embedded and not digest))):
        return None
    embedding = None if outcome.vector is None else vectors.to_blob(outcome.vector)
    return SideTableRow(key, column, model, digest, embedding, reason)
