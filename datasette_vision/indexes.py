"""The indexes of a process: one for each database file, table, column and model, shared by all connections.

An index holds a side table as it was in one state. A query comes with the state that its connection sees, which may be
an older or a newer one, and gets the index together with the rows that differ between the two: it looks at those
itself, so that it finds what its own snapshot of the database holds, whatever others write meanwhile. Once there are
more than a few of them, they are brought into the index.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from datasette_vision import generations
from datasette_vision.eightbit import Flat, coded, empty
from datasette_vision.errors import Busy
from datasette_vision.generations import State
from datasette_vision.identifiers import quote
from datasette_vision.index import Index, View
from datasette_vision.sidereader import Embeddings

logger = logging.getLogger(__name__)

# Changed rows that a query looks at itself: some 5 µs each.
FEW = 64
# Changed rows that a query brings into the index before it goes on: some 20 ms.
SOME = 4096


@dataclass
class Entry:
    """An index and the state of the side table that it holds; `history` is how it came there, oldest first."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    index: Index | None = None
    state: State | None = None
    history: deque[tuple[State, int | None]] = field(default_factory=lambda: deque(maxlen=4 * SOME))
    reading: Reading | None = None

    def put(self, index: Index, state: State, history: list[tuple[State, int | None]]) -> None:
        """Take a new index in."""
        self.index, self.state = index, state
        self.history.clear()
        self.history.extend(history)

    def since(self, state: State) -> list[int] | None:
        """Return the rows that changed from a state that was before until the index's own; None when not known."""
        if state == self.state:
            return []
        for position, (then, _) in enumerate(self.history):
            if then == state:
                rows = [row for _, row in list(self.history)[position + 1 :]]
                return None if None in rows else [row for row in rows if row is not None]
        return None


class Reading:
    """A side table being read into memory, on a thread of its own."""

    def __init__(self) -> None:
        self.rows = 0
        self.done = threading.Event()
        self.error: BaseException | None = None


class Indexes:
    """The indexes of a process. Thread-safe.

    A query waits `wait_s` seconds at most while a table is read for the first time, or for as long as it takes where
    that is None; then Busy is raised, and the reading goes on.
    """

    def __init__(self, wait_s: float | None = None) -> None:
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, ...], Entry] = {}

    def view(
        self, connection: sqlite3.Connection, wanted: Embeddings, dimensions: int, state: State
    ) -> tuple[View, list[int]] | None:
        """Return an index, and the rows of the side table in which it may differ from what the connection sees.

        `state` is what generations.state() says on this connection, inside of the same transaction. None when there is
        no index for it: then only the table itself can tell. Raises Busy.
        """
        path = database_path(connection, wanted.source.schema)
        entry = self._entry((path, wanted.source.side.name, wanted.model, wanted.column))
        for _ in range(2):  # what is read may be newer than the connection's snapshot, but leads to it
            with entry.lock:
                found = self._fitting(entry, connection, wanted, dimensions, state)
                if found is not None:
                    return found
                if path == "":
                    # Nobody else can open a database in memory, nor know what another connection has not committed.
                    if connection.in_transaction:
                        return None
                    reading = Reading()
                    self._read(entry, reading, connection, wanted, dimensions)
                    continue
                reading = self._start(entry, path, connection, wanted, dimensions)
            if not reading.done.wait(self._wait_s):
                raise Busy(
                    f"the embeddings of {wanted.source.table} are being read, {reading.rows:,} of them so far:"
                    " try again in a moment (once `datasette vision index` has been run they need no reading)"
                )
            if reading.error is not None:
                raise reading.error
        with entry.lock:
            return self._fitting(entry, connection, wanted, dimensions, state)

    def forget(self, connection: sqlite3.Connection, wanted: Embeddings) -> None:
        """Drop an index that does not fit its table: the next query makes it anew."""
        path = database_path(connection, wanted.source.schema)
        entry = self._entry((path, wanted.source.side.name, wanted.model, wanted.column))
        logger.warning("the index of %s does not fit it any more: it is made anew", wanted.source.table)
        with entry.lock:
            entry.index = None

    def _entry(self, key: tuple[str, ...]) -> Entry:
        with self._lock:
            return self._entries.setdefault(key, Entry())

    def _fitting(
        self, entry: Entry, connection: sqlite3.Connection, wanted: Embeddings, dimensions: int, state: State
    ) -> tuple[View, list[int]] | None:
        """Return the index as it is, and the rows that differ, or None when they are too many or not known."""
        if entry.index is None or entry.index.dimensions != dimensions:
            return None
        rows = entry.since(state)
        if rows is None:
            place = wanted.source.schema, wanted.source.side.name
            newer = entry.state and generations.changes(connection, *place, entry.state, SOME)
            if newer is None:
                return None
            rows = [row for _, row in newer]
            if len(rows) > FEW and not connection.in_transaction:  # what is not committed may never have been
                _bring_in(entry.index, connection, wanted, rows)
                entry.state = state
                entry.history.extend(newer)
                rows = []
        return (entry.index.view, sorted(set(rows))) if len(rows) <= SOME else None

    def _start(
        self, entry: Entry, path: str, connection: sqlite3.Connection, wanted: Embeddings, dimensions: int
    ) -> Reading:
        """Begin to read on a thread with a connection of its own, unless one does already."""
        if entry.reading is not None and not entry.reading.done.is_set():
            return entry.reading
        reading = entry.reading = Reading()
        own = open_to_read(type(connection), path)
        if own is None:
            self._read(entry, reading, connection, wanted, dimensions)
            return reading
        in_main = replace(wanted, source=replace(wanted.source, schema="main"))

        def work() -> None:
            with contextlib.closing(own):
                self._read(entry, reading, own, in_main, dimensions)

        threading.Thread(target=work, name="datasette-vision-index", daemon=True).start()
        return reading

    def _read(
        self, entry: Entry, reading: Reading, connection: sqlite3.Connection, wanted: Embeddings, dimensions: int
    ) -> None:
        """Read the embeddings as a connection sees them, and put them into the entry."""
        try:
            with snapshot(connection, wanted.source.schema):
                place = wanted.source.schema, wanted.source.side.name
                state = generations.state(connection, *place)
                rows = empty(dimensions, wanted.count(connection))
                for labels, vectors in wanted.read(connection, dimensions):
                    codes, usable = coded(vectors)
                    batch = Flat(labels[usable], codes)
                    rows.put(batch, reading.rows)
                    reading.rows += len(batch)
                history = generations.recent(connection, *place, 4 * SOME)
            if state is not None:
                with entry.lock:
                    entry.put(Index(rows.first(reading.rows), dimensions), state, history)
        except BaseException as error:
            reading.error = error
        finally:
            reading.done.set()


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection, schema: str) -> Iterator[None]:
    """Have all that is read within see one state of a database, whatever others commit meanwhile."""
    cursor = connection.cursor()
    # A statement that is not at its end holds its view of the database: this one has a row more than is taken from it.
    cursor.execute(f"select 1 from (select count(*) from {quote(schema)}.sqlite_master) union all values (2), (3)")
    cursor.fetchone()
    try:
        yield
    finally:
        cursor.close()


def database_path(connection: sqlite3.Connection, schema: str) -> str:
    """Return the path of a database's file, "" for one in memory."""
    for _, name, path in connection.execute("pragma database_list"):
        if name == schema:
            return path or ""
    return ""


def open_to_read(connect: Callable[..., sqlite3.Connection], path: str) -> sqlite3.Connection | None:
    """Open a database file to read it on any thread, or return None where it cannot be opened a second time."""
    for mode in ("mode=ro", "mode=ro&immutable=1"):  # the second, where a write-ahead log cannot be made beside it
        try:
            connection = connect(
                f"{Path(path).absolute().as_uri()}?{mode}", uri=True, check_same_thread=False, isolation_level=None
            )
            connection.execute("select count(*) from sqlite_master").fetchone()
        except Exception as error:  # each SQLite module has its own class of errors
            logger.debug("%s cannot be opened with %s: %s", path, mode, error)
        else:
            return connection
    return None


def _bring_in(index: Index, connection: sqlite3.Connection, wanted: Embeddings, rows: list[int]) -> None:
    labels, vectors = wanted.read_rows(connection, sorted(set(rows)), index.dimensions)
    index.change(np.array(rows, dtype=np.int64), labels, vectors)
