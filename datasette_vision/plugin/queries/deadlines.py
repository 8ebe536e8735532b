"""Interrupts queries whose time is up.

Datasette checks the time after every thousand steps of SQLite. One step may take 50 ms, for example to make and sort a
BLOB of 9 MB: such a query ran for half a minute with a limit of three seconds. An interruption takes effect at every
row.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

# Datasette's own limit, which knows more about the query, goes first.
GRACE_S = 0.25


class Deadlines:
    """Calls a function that interrupts a query when its time is up, on one thread, which starts at the first query."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: dict[object, tuple[float, Callable[[], object]]] = {}
        self._wakes_at = float("inf")
        self._started = False

    @contextlib.contextmanager
    def within(self, seconds: float, interrupt: Callable[[], object]) -> Iterator[None]:
        """Call `interrupt` if the block runs for longer than this, but never after its end."""
        query, deadline = object(), time.monotonic() + seconds
        with self._changed:
            self._running[query] = deadline, interrupt
            if not self._started:
                threading.Thread(target=self._watch, name="datasette-vision-deadlines", daemon=True).start()
                self._started = True
            elif deadline < self._wakes_at:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._running.pop(query, None)

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for query, (deadline, interrupt) in list(self._running.items()):
                    if deadline <= now:
                        del self._running[query]
                        interrupt()
                self._wakes_at = min((deadline for deadline, _ in self._running.values()), default=float("inf"))
                self._changed.wait(None if self._wakes_at == float("inf") else max(0.0, self._wakes_at - now))
