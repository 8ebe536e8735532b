"""The memory that this process uses and may use, and returning unused memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from datasette_vision.util.cgroups import CGROUPS, MEMBERSHIP, folders
from datasette_vision.util.garbage import elsewhere

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
LARGE_BLOCK = 4 << 20


def resident_mib() -> float | None:
    """Return the resident memory of this process in MiB, or None on systems without /proc."""
    held = _kibibytes(STATUS, "VmRSS:")
    return None if held is None else held / 1024


def available_bytes(
    cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP, meminfo: Path = MEMINFO, status: Path = STATUS
) -> int | None:
    """Return how many bytes this process may use in total: at most the limit of its container.

    This is the lowest limit of its control groups and their parents; or the machine's free memory plus what the process
    already uses, if that is less. None if the system does not say.
    """
    limits = [limit for folder in folders("memory", cgroups, membership) if (limit := _limit(folder)) is not None]
    machine = _kibibytes(meminfo, "MemAvailable:")
    if machine is not None:
        limits.append(1024 * (machine + (_kibibytes(status, "VmRSS:") or 0)))
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def _limit(folder: Path) -> int | None:
    """Return the limit of a control group, version 2 or 1, in bytes, or None."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" means no limit
            return int((folder / name).read_text("utf-8"))
    return None


def _kibibytes(path: Path, name: str) -> int | None:
    """Return the number in kB after a name, in a file of /proc."""
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        return int(next(line for line in path.read_text("utf-8").splitlines() if line.startswith(name)).split()[1])
    return None


def return_large_blocks() -> None:
    """Make the C library return large blocks to the system as soon as they are freed, in the whole process.

    By default, glibc does so until the first one of up to 32 MB is freed, and then keeps blocks of that size in its
    heaps, with holes between them: after 96 images on 8 threads a process held 299 MiB, with this setting 111 (it began
    with 93).
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            library = ctypes.CDLL(None)
            library.mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)
            library.mallopt(
                _M_TRIM_THRESHOLD, 4 * LARGE_BLOCK
            )  # otherwise every small block at the top is returned at once


def give_back() -> None:
    """Collect garbage, and return freed memory to the system.

    Call it on a thread that holds no lock and that nobody waits for: see garbage.py.
    """
    elsewhere.collect()
    trim()


def trim() -> None:
    """Return freed memory to the system. Without this call, glibc keeps memory that was freed in the middle of its
    heaps.
    """
    if sys.platform == "linux":
        # Other C libraries, such as musl, have no such function and return memory by themselves.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
