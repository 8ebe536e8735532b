"""Startup times: one line in the server's log when everything is ready."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path


class Timeline:
    """The times at which parts of a start were reached, in seconds since the process began. Thread-safe."""

    def __init__(self, *awaited: str) -> None:
        """The line is logged when all of `awaited` are over."""
        self._began = process_began()
        self._lock = threading.Lock()
        self._awaited = set(awaited)
        self._marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Record that something is ready."""
        with self._lock:
            self._marks.setdefault(name, time.monotonic() - self._began)

    def over(self, part: str) -> None:
        """Record that a part of the start is over. The last one logs the line."""
        with self._lock:
            last = self._awaited == {part}
            self._awaited.discard(part)
        if last:
            # Datasette's log is uvicorn's, which shows only warnings and above from other loggers.
            logging.getLogger("uvicorn.error").info("%s", self)

    def __str__(self) -> str:
        """The line: "start, in seconds: Datasette imported 0.35, server started 0.44, clip text 0.52, …"."""
        with self._lock:
            return "start, in seconds: " + ", ".join(f"{name} {at:.2f}" for name, at in self._marks.items())


def process_began() -> float:
    """Return when this process began, on the clock of time.monotonic(). Without /proc, return the current time."""
    try:
        fields = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22, starttime; see proc(5)
        return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic()
