"""Unfinished files, each written beside its final path. Leftovers of killed processes can be told from files in use.

The writer holds a lock on the file, which the system releases when the process ends, however it ends. So leftovers are
recognised at once, whatever their time. On file systems without locks, they are recognised by age.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
# Without locks: no file takes this long to write. A time in the future counts as old: the clock was set back.
STALE_S = 3600.0


@contextlib.contextmanager
def unfinished(path: Path, suffix: str) -> Iterator[Path]:
    """Give an empty file beside `path` to write to, and rename it to `path` at the end.

    If the block raises, the file is removed and `path` stays as it was. Raises OSError.
    """
    temporary, descriptor = _locked(path, suffix)
    try:
        try:
            yield temporary
            if fcntl is None:  # Windows cannot rename an open file
                os.close(descriptor)
                descriptor = -1
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove files in a folder that killed processes were writing, if their names match a glob.

    Files that cannot be removed stay. Raises OSError if the folder cannot be read.
    """
    for leftover in list(folder.glob(pattern)):
        with contextlib.suppress(OSError):
            _remove(leftover)


def _locked(path: Path, suffix: str) -> tuple[Path, int]:
    """Create a file, and return it with the descriptor that holds its lock."""
    while True:
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}{suffix}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Another process may have come between the two, and have taken the file for a leftover.
            if os.path.samestat(os.fstat(descriptor), os.stat(temporary)):  # noqa: PTH116
                return temporary, descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove(leftover: Path) -> None:
    if fcntl is None:
        leftover.unlink()  # Windows refuses while it is open
        return
    descriptor = os.open(leftover, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process is writing to it
        except OSError:
            if abs(time.time() - os.fstat(descriptor).st_mtime) <= STALE_S:
                return
        leftover.unlink()
    finally:
        os.close(descriptor)
