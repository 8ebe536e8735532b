"""The indexes of a process: one for each database file, table, column and model, shared by all connections.

An index holds one state of a side table. A query comes with the state that its connection sees, which may be older or
newer, and gets the index together with the rows that differ between the two. It reads those rows itself, so that it
finds the contents of its own snapshot, whatever others write meanwhile. Once there are more than a few such rows, they
are added to the index.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from datasette_vision.errors import Busy
from datasette_vision.retrieval import index_maintenance
from datasette_vision.retrieval.index_entry import IndexEntry, file_of
from datasette_vision.retrieval.index_maintenance import Step
from datasette_vision.tables import change_log
from datasette_vision.tables.change_log import State
from datasette_vision.tables.embedding_reader import Embeddings
from datasette_vision.util.caller import current
from datasette_vision.util.connections import database_path, open_to_read, snapshot
from datasette_vision.vectors.index import View

logger = logging.getLogger(__name__)

# Changed rows that a query reads itself: about 5 µs each.
FEW = 64
# Changed rows that a query adds to the index before it continues: about 20 ms.
SOME = 4096

# A named block that keeps the server awake: gives an event that says when to stop.
KeepAwake = Callable[[str], AbstractContextManager[threading.Event]]


class Reading:
    """A table that is being read into memory, on a separate thread."""

    def __init__(self) -> None:
        self.rows = 0
        self.done = threading.Event()
        self.error: BaseException | None = None


class Indexes:
    """The indexes of a process. Thread-safe.

    A query waits at most `wait_s` seconds while a table is read for the first time, or without limit if that is None.
    Then Busy is raised, and the reading continues. Work that makes an index faster runs in the background, in
    `keep_awake`, one at a time, and ends with the process; without `improve` it does not run.
    """

    def __init__(
        self, wait_s: float | None = None, keep_awake: KeepAwake | None = None, *, improve: bool = True
    ) -> None:
        self._wait_s = wait_s
        self._improves = improve
        self._keep_awake = keep_awake or (lambda name: contextlib.nullcontext(threading.Event()))
        self._lock = threading.Lock()
        self._entries: dict[tuple[str, ...], IndexEntry] = {}
        self._readings: dict[tuple[str, ...], Reading] = {}
        self._working: set[tuple[str, ...]] = set()
        self._given_up: set[tuple[str, ...]] = set()
        # States of connections whose file was replaced by another, so that their state cannot be reached.
        self._unreachable: dict[tuple[str, ...], State] = {}
        self._one_at_a_time = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        weakref.finalize(self, _stop, self._stopped, self._threads)

    def view(
        self, connection: sqlite3.Connection, wanted: Embeddings, dimensions: int, state: State
    ) -> tuple[View, list[int]] | None:
        """Return an index, and the rows of the side table in which it may differ from what the connection sees.

        `state` is change_log.state() on this connection, inside the same transaction. None if there is no index for it:
        then only the table itself can be searched. Raises Busy.
        """
        path = database_path(connection, wanted.source.schema)
        key = _key(path, wanted)
        for _ in range(2):  # the state read may be newer than the connection's snapshot, but is derived from it
            entry = self._entry(key)
            with _within_deadline(entry, wanted):
                found = self._fitting(entry, connection, wanted, dimensions, state)
            if found is not None:
                self._improve(key, entry, connection, wanted)
                return found
            if self._unreachable.get(key) == state:
                return None
            if path == "" and connection.in_transaction:
                # Nobody else can open a database in memory, and uncommitted changes are only for this connection.
                return None
            current().admit()  # the threads of a server must not all wait here
            reading = self._read(key, entry, connection, wanted, dimensions)
            if not _wait(reading.done, self._wait_s):
                raise Busy(
                    f"the embeddings of {wanted.source.table} are being read, {reading.rows:,} of them so far:"
                    " try again in a moment (run `datasette vision index` once to avoid this)"
                )
            if reading.error is not None:
                raise copy.copy(reading.error)  # a raised exception holds the frames that it passes
        with _within_deadline(entry, wanted):
            found = self._fitting(entry, connection, wanted, dimensions, state)
        if found is None:
            self._unreachable[key] = state  # so that not every query reads the whole table again
        return found

    def dimensions(self, connection: sqlite3.Connection, wanted: Embeddings) -> int | None:
        """Return the dimensions of an index in memory, None if there is none, or it is empty."""
        path = database_path(connection, wanted.source.schema)
        entry = self._entries.get(_key(path, wanted))
        index = None if entry is None else entry.index
        return index.dimensions if index else None

    def forget(self, connection: sqlite3.Connection, wanted: Embeddings) -> None:
        """Drop an index that does not match its table, and its file: the next query rebuilds it."""
        path = database_path(connection, wanted.source.schema)
        logger.warning("the index of %s does not match it: rebuilding the index", wanted.source.table)
        with self._lock:
            self._entries.pop(_key(path, wanted), None)
        if path:
            with contextlib.suppress(OSError):
                file_of(path, wanted).unlink()

    def wait(self) -> None:
        """Wait until nothing runs in the background."""
        for thread in list(self._threads):
            thread.join()

    def _entry(self, key: tuple[str, ...]) -> IndexEntry:
        with self._lock:
            return self._entries.setdefault(key, IndexEntry())

    def _fitting(
        self, entry: IndexEntry, connection: sqlite3.Connection, wanted: Embeddings, dimensions: int, state: State
    ) -> tuple[View, list[int]] | None:
        """Return the index as it is, and the rows that differ, or None if they are too many or unknown."""
        if entry.index is None or entry.state is None or entry.index.dimensions != dimensions:
            return None
        rows = entry.since(state)
        if rows is None:
            changes = change_log.changes(connection, *_place(wanted), entry.state, SOME)
            if changes is None:
                return None
            rows = [row for _, row in changes]
            if len(rows) > FEW and not connection.in_transaction:  # uncommitted changes may be rolled back
                entry.bring_in(connection, wanted, changes, state)
                rows = []
        return (entry.index.view, sorted(set(rows))) if len(rows) <= SOME else None

    def _read(
        self,
        key: tuple[str, ...],
        entry: IndexEntry,
        connection: sqlite3.Connection,
        wanted: Embeddings,
        dimensions: int,
    ) -> Reading:
        """Start reading on a thread with its own connection, unless one is reading already."""
        with self._lock:
            reading = self._readings.get(key)
            if reading is not None and not reading.done.is_set():
                return reading
            reading = self._readings[key] = Reading()
        path = key[0]
        own = open_to_read(type(connection), path) if path else None

        def work(connection: sqlite3.Connection, wanted: Embeddings) -> None:
            try:
                with snapshot(connection, wanted.source.schema):
                    # If updating an old index from its file is faster, do that.
                    if not (path and entry.open(file_of(path, wanted), connection, wanted, dimensions)):
                        entry.read(
                            connection,
                            wanted,
                            dimensions,
                            lambda progress: setattr(reading, "rows", progress.done),
                            file_of(path, wanted).parent if path and self._improves else None,
                        )
            except BaseException as error:
                # Its traceback would keep cursors of this connection, and free them on another thread.
                reading.error = error.with_traceback(None)
            finally:
                reading.done.set()

        if own is None:
            work(connection, wanted)
        else:

            def work_on_own() -> None:
                with contextlib.closing(own):
                    work(own, wanted.in_schema("main"))

            try:
                threading.Thread(target=work_on_own, name="datasette-vision-index", daemon=True).start()
            except RuntimeError:  # the system has no more threads: this one does it
                work_on_own()
        return reading

    def _improve(
        self, key: tuple[str, ...], entry: IndexEntry, connection: sqlite3.Connection, wanted: Embeddings
    ) -> None:
        """Start the next useful step for an index in the background, unless one is running."""
        step = index_maintenance.next_step(entry)
        if not self._improves or step is None or self._stopped.is_set():
            return
        if not key[0]:
            return  # for a database in memory nothing is saved, and nobody else can read it
        with self._lock:
            if key in self._working or key in self._given_up:
                return
            self._working.add(key)
        wanted = wanted.in_schema("main")
        connect = type(connection)

        def work() -> None:
            try:
                with self._one_at_a_time, self._keep_awake(f"index of {wanted.source.table}") as stopping:
                    self._do(key, entry, connect, wanted, stopping)
            except OSError as error:
                logger.warning("the index of %s cannot be saved: %s", wanted.source.table, error)
            except Exception:
                logger.exception("the index of %s could not be improved", wanted.source.table)
                self._given_up.add(key)  # so that not every query tries it again
            finally:
                with self._lock:
                    self._working.discard(key)
                    self._threads.remove(thread)

        thread = threading.Thread(target=work, name="datasette-vision-index-work", daemon=True)
        with self._lock:
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads: a later query tries again
                logger.warning("the index of %s cannot be improved now: %s", wanted.source.table, error)
                self._working.discard(key)
            else:
                self._threads.append(thread)

    def _do(
        self,
        key: tuple[str, ...],
        entry: IndexEntry,
        connect: Callable[..., sqlite3.Connection],
        wanted: Embeddings,
        stopping: threading.Event,
    ) -> None:
        path = file_of(key[0], wanted) if key[0] else None
        while (
            path
            and not self._stopped.is_set()
            and not stopping.is_set()
            and (step := index_maintenance.next_step(entry))
        ):
            logger.info("index of %s: %s", wanted.source.table, step.value)
            if step is Step.REBUILD:
                entry = self._rebuild(key, entry, connect, wanted)
            else:
                index_maintenance.save(entry, path, wanted)

    def _rebuild(
        self, key: tuple[str, ...], old: IndexEntry, connect: Callable[..., sqlite3.Connection], wanted: Embeddings
    ) -> IndexEntry:
        """Read a table into a new index that replaces the old one."""
        assert old.index is not None
        connection = open_to_read(connect, key[0])
        if connection is None:
            raise RuntimeError(f"{key[0]} cannot be opened a second time")
        entry = IndexEntry(can_save=old.can_save)
        with contextlib.closing(connection), snapshot(connection, "main"):
            entry.read(connection, wanted, old.index.dimensions, folder=file_of(key[0], wanted).parent)
        with self._lock:
            self._entries[key] = entry
        return entry


def _wait(event: threading.Event, at_most_s: float | None) -> bool:
    """Wait for an event until the caller's deadline, and at most this many seconds; return whether it is set."""
    caller = current()
    if at_most_s is None and caller.deadline is None:
        return event.wait()
    return event.wait(caller.seconds_left(threading.TIMEOUT_MAX if at_most_s is None else at_most_s))


@contextlib.contextmanager
def _within_deadline(entry: IndexEntry, wanted: Embeddings) -> Iterator[None]:
    """Hold the lock of an entry. Raises Busy if others hold it until the caller's deadline."""
    if not entry.lock.acquire(timeout=current().seconds_left(threading.TIMEOUT_MAX)):
        raise Busy(f"the index of {wanted.source.table} is being brought up to date: try again in a moment")
    try:
        yield
    finally:
        entry.lock.release()


def _key(path: str, wanted: Embeddings) -> tuple[str, ...]:
    return path, wanted.source.side.name, wanted.model, wanted.column


def _place(wanted: Embeddings) -> tuple[str, str]:
    return wanted.source.schema, wanted.source.side.name


def _stop(stopped: threading.Event, threads: list[threading.Thread]) -> None:
    """Let background work finish before the libraries that it uses are unloaded."""
    stopped.set()
    for thread in list(threads):
        thread.join(timeout=10)
