"""One index with the state of the side table that it holds: read from the table, saved, and opened again."""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasette_vision.tables import change_log
from datasette_vision.tables.change_log import State
from datasette_vision.tables.embedding_reader import ROWS_PER_READ, Embeddings
from datasette_vision.util.progress import OnProgress, Progress, no_progress
from datasette_vision.vectors import index_file
from datasette_vision.vectors.codes import Codes, empty, encode, space_of
from datasette_vision.vectors.index import Index, View
from datasette_vision.vectors.index_file import UnusableIndex

logger = logging.getLogger(__name__)

HISTORY = 1 << 14
# A saved index is useless if more than this part of its table has changed since.
CHANGED_PART = 4
# From here on reading the table takes so long that it is worth a file: 50,000 embeddings of 512.
SAVED_NUMBERS = 25_600_000
# Rows that say what the rows of a table have in common.
SPACE_SAMPLE = 4096
# Rows of an opened index that are compared with the table; of those that are found again, at least so many of them.
SAMPLED = 16
MIN_FOUND_SHARE = 0.75


@dataclass(frozen=True)
class Moment:
    """An index at one moment. `changed` counts the changes before it."""

    index: Index
    view: View
    state: State | None
    changed: int


@dataclass
class IndexEntry:
    """An index and the state of the table that it holds. `history` is how it got there, oldest first.

    `changed` counts the rows brought in. `saved_at` is that count in the saved index, None if there is none.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    index: Index | None = None
    state: State | None = None
    history: deque[tuple[State, int | None]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    changed: int = 0
    saved_at: int | None = None
    can_save: bool = True

    @property
    def unsaved(self) -> int | None:
        """The number of changes that the saved index lacks, or None if none is saved."""
        return None if self.saved_at is None else self.changed - self.saved_at

    def since(self, state: State) -> list[int] | None:
        """Return the rows that changed between an earlier state and the index's own; None if unknown."""
        if state == self.state:
            return []
        history = list(self.history)
        for position, (then, _) in enumerate(history):
            if then == state:
                rows = [row for _, row in history[position + 1 :]]
                return None if None in rows else [row for row in rows if row is not None]
        return None

    def bring_in(
        self, connection: sqlite3.Connection, wanted: Embeddings, changes: list[tuple[State, int]], state: State
    ) -> None:
        """Apply changes to the index that lead from its state to this one."""
        assert self.index is not None
        rows = sorted({row for _, row in changes})
        for start in range(0, len(rows), ROWS_PER_READ):
            some = rows[start : start + ROWS_PER_READ]
            there = wanted.read_rows(connection, some, self.index.dimensions)
            self.index.change(np.array(some, dtype=np.int64), *there)
        self.history.extend(changes)
        self.state = state
        self.changed += len(rows)

    def read(
        self,
        connection: sqlite3.Connection,
        wanted: Embeddings,
        dimensions: int,
        on_progress: OnProgress[Progress] = no_progress,
        folder: Path | None = None,
    ) -> None:
        """Read the whole table, as a connection sees it within one snapshot.

        Of a large one the codes are kept in a file without a name in `folder`, not in memory.
        """
        place = wanted.source.schema, wanted.source.side.name
        state = change_log.state(connection, *place)
        total = wanted.count(connection)
        space = space_of(wanted.sample(connection, dimensions, SPACE_SAMPLE), dimensions)
        large = folder if total * dimensions > SAVED_NUMBERS else None
        rows, count = empty(space, total, allocate=index_file.allocator(large)), 0
        for read in wanted.read(connection, dimensions):
            batch = encode(space, *read)
            rows.put(batch, count)
            count += len(batch)
            on_progress(Progress("reading", count, total))
        history = change_log.recent(connection, *place, HISTORY)
        with self.lock:
            self._put(Index(space, rows.first(count)), state, history)
            self.saved_at = None

    def open(self, path: Path, connection: sqlite3.Connection, wanted: Embeddings, dimensions: int) -> bool:
        """Open the saved index and apply the changes since; return whether that was possible."""
        try:
            saved = index_file.open_index(path)
        except OSError:
            return False
        except UnusableIndex as error:
            logger.warning("%s: rebuilding the index", error)
            return False
        place = wanted.source.schema, wanted.source.side.name
        state = change_log.state(connection, *place)
        if state is None or saved.about | _about(wanted, dimensions, None) != saved.about:
            return False
        before = State(*saved.about["state"])
        limit = max(HISTORY, len(saved.base) // CHANGED_PART)
        changes = [] if before == state else change_log.changes(connection, *place, before, limit)
        index = Index(saved.space, saved.base)
        if changes is None or not _fits(index, connection, wanted, {row for _, row in changes}):
            logger.info("%s is of another state of the table: rebuilding the index", path)
            return False
        with self.lock:
            self._put(index, before, [])
            self.saved_at = self.changed
            self.bring_in(connection, wanted, changes, state)
            self.history.clear()
            self.history.extend(change_log.recent(connection, *place, HISTORY))
        return True

    def moment(self) -> Moment:
        """Return the index as it is now."""
        with self.lock:
            assert self.index is not None
            return Moment(self.index, self.index.view, self.state, self.changed)

    def settle(self, then: Moment, base: Codes, path: Path, wanted: Embeddings) -> None:
        """Save a base that holds what the index did at a moment, and put it in.

        It is taken from the file: mapped memory is the system's to take and to give back. Raises OSError, with the
        base in place all the same.
        """
        problem = None
        assert then.state is not None
        try:
            index_file.save_index(path, _about(wanted, then.index.dimensions, then.state), then.view.space, base)
            base = index_file.open_index(path).base
        except OSError as error:
            problem = error
        with self.lock:
            # If another index has been read meanwhile, this one was only for the file.
            if self.index is then.index and then.index.view.base is then.view.base:
                then.index.replace_base(then.view, base)
                self.saved_at = then.changed if problem is None else None
                self.can_save = self.can_save and problem is None
        if problem is not None:
            raise problem

    def _put(self, index: Index, state: State | None, history: list[tuple[State, int | None]]) -> None:
        self.index, self.state = index, state
        self.history.clear()
        self.history.extend(history)


def file_of(database: str, wanted: Embeddings) -> Path:
    """Return the path of the saved index of a table: in a folder beside the database file."""
    names = (wanted.source.side.name, wanted.column, wanted.model)
    readable = "-".join(
        re.sub(r"[^\w.-]+", "_", name)[:40] for name in (wanted.source.table, wanted.column, wanted.model)
    )
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:8]
    return Path(f"{database}-vision") / f"{readable}-{digest}.index"


def _about(wanted: Embeddings, dimensions: int, state: State | None) -> dict[str, Any]:
    about: dict[str, Any] = {
        "table": wanted.source.side.name,
        "column": wanted.column,
        "model": wanted.model,
        "dimensions": dimensions,
    }
    return about if state is None else about | {"state": list(state)}


def _fits(index: Index, connection: sqlite3.Connection, wanted: Embeddings, changed: set[int]) -> bool:
    """Check whether rows of an index match the table: a database loaded from a dump has other rowids."""
    labels = index.view.base.labels
    sample = [int(label) for label in labels[:: max(1, len(labels) // SAMPLED)] if int(label) not in changed]
    found = 0
    read = wanted.read_rows(connection, sample, index.dimensions)
    for label, vector in zip(read.labels.tolist(), read.vectors, strict=True):
        nearest, similarities = index.search(vector, 10)
        # If more than ten are identical, it need not be among them.
        found += label in nearest.tolist() or (len(similarities) > 0 and float(similarities[-1]) > 0.999)
    return found >= MIN_FOUND_SHARE * len(sample)
