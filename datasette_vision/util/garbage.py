"""Keeps Python's garbage collector off the threads that a SQL query waits for.

A thread inside a SQL function holds the mutex of its SQLite connection, and freeing a cursor of that connection on
another thread waits for the mutex. Python's collector runs on whichever thread happens to allocate, and frees what it
finds. If that is such a cursor, left in a cycle by an earlier query, and the SQL function waits for that thread, both
wait forever.

So while SQL functions that wait are in use, automatic collection is off. Instead one thread collects, which nobody
waits for and which holds no lock.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Mapping
from typing import Any

from datasette_vision.errors import Busy

# Between two rows of a query its functions wait for nothing, but the query still holds its mutex. So the collector
# stays off for some seconds after the last call.
LINGER_S = 10.0
POLL_S = 0.05
IDLE_POLL_S = 1.0
# A full collection visits all objects. At most this share of the time is spent on it.
FULL_PART = 0.05
# A collection that takes longer than this is waiting for a mutex, possibly that of the calling thread.
STUCK_S = 1.0


class CollectElsewhere:
    """A block during which only a dedicated thread collects garbage. Any number of threads can enter it, also nested.

    It uses no lock: the collector could run in a thread that holds it. The threads share only single assignments, and
    entries of a dictionary that only their own thread writes.
    """

    def __init__(self, linger_s: float = LINGER_S, stuck_s: float = STUCK_S) -> None:
        self._linger_s = linger_s
        self._stuck_s = stuck_s
        self._depths: dict[int, int] = {}  # of the threads in the block
        self._until = 0.0
        self._took_over = False  # automatic collection is off, and was on before
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # only tried, never waited for
        self._collecting: tuple[int, object] | None = None  # (thread, a marker of this collection)
        self._harmless: set[int] = set()  # threads on which collecting is safe, because nobody waits for them

    def watch(self) -> None:
        """Track from now on which thread is collecting."""
        if self._on_collection not in gc.callbacks:
            gc.callbacks.append(self._on_collection)

    def collect(self, generation: int = 2) -> None:
        """Collect on this thread, which must hold no lock, and which nobody may wait for."""
        ident = threading.get_ident()
        self._harmless.add(ident)
        try:
            gc.collect(generation)
        finally:
            self._harmless.discard(ident)

    def __enter__(self) -> None:
        """Raises Busy if a collection in progress does not end: it may be waiting for this very thread."""
        ident = threading.get_ident()
        self._depths[ident] = self._depths.get(ident, 0) + 1
        try:
            if gc.isenabled():
                self._took_over = True
                gc.disable()
            if self._thread is None:
                self._start()
            if self._collecting is not None:
                self._let_finish(ident)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        ident = threading.get_ident()
        self._until = time.monotonic() + self._linger_s
        depth = self._depths.pop(ident) - 1
        if depth:
            self._depths[ident] = depth

    def _start(self) -> None:
        if not self._starting.acquire(blocking=False):
            return  # another thread does it
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="datasette-vision-garbage", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError:
            if self._took_over:
                self._took_over = False
                gc.enable()
            raise Busy("the system has no thread left: try again in a moment") from None
        finally:
            self._starting.release()

    def _on_collection(self, phase: str, _: Mapping[str, Any]) -> None:
        self._collecting = (threading.get_ident(), object()) if phase == "start" else None

    def _let_finish(self, ident: int) -> None:
        """Wait for a collection that began before this block was entered, on a thread that others may wait for."""
        found = self._collecting
        until = time.monotonic() + self._stuck_s
        while found is not None and found is self._collecting:
            if found[0] == ident or found[0] in self._harmless:
                return
            if time.monotonic() > until:
                raise Busy("Python is freeing the memory of an earlier query: try again in a moment")
            time.sleep(0.001)

    def _work(self) -> None:
        full_from = 0.0
        while True:
            time.sleep(POLL_S if self._took_over else IDLE_POLL_S)
            if not self._took_over:
                continue
            if not self._depths and time.monotonic() > self._until:
                self._hand_back()
                continue
            began = time.monotonic()
            generation = _due(full=began >= full_from)
            if generation is not None:
                self.collect(generation)
                if generation == 2:
                    ended = time.monotonic()
                    full_from = ended + (ended - began) / FULL_PART

    def _hand_back(self) -> None:
        self._took_over = False
        gc.enable()
        if self._depths:  # a thread entered meanwhile, and may have found the collector off
            self._took_over = True
            gc.disable()


def _due(*, full: bool) -> int | None:
    """Return the oldest generation that automatic collection would collect now, None if there is none."""
    counts, thresholds = gc.get_count(), gc.get_threshold()
    for generation in (2, 1, 0) if full else (1, 0):
        if counts[generation] > thresholds[generation] > 0:
            return generation
    return None


elsewhere = CollectElsewhere()
