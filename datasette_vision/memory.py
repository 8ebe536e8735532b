"""How much memory this process holds, and giving back what it no longer needs."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

from datasette_vision.garbage import elsewhere

STATUS = Path("/proc/self/status")


def resident_mib() -> float | None:
    """Return the resident memory of this process in MiB, or None where the system has no /proc to tell it."""
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    except OSError:
        return None
    return int(line.split()[1]) / 1024


def give_back() -> None:
    """Let go of what nothing refers to any more, and return freed memory to the system.

    Call it on a thread that holds no lock and that nobody waits for: see garbage.py.
    """
    elsewhere.collect()
    trim()


def trim() -> None:
    """Return freed memory to the system: glibc keeps what was freed in the middle of its heaps until it is told to."""
    if sys.platform == "linux":
        # Other C libraries, musl for one, have no such function and give back by themselves.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
