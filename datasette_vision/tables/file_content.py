"""Reads local files: only below a folder, only regular files, only up to a size."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from datasette_vision.errors import InvalidImage, Unreadable


def read_image(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file. Raises OSError, Unreadable if it is not a regular file, InvalidImage if it is too
    large.

    A pipe or a device, which may block or never end, is opened only long enough to see what it is.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("cannot be read: it is not a regular file")
        size, content = status.st_size, b""
        if size <= max_bytes:
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(max_bytes + 1)
            size = len(content)
    finally:
        os.close(descriptor)
    if size > max_bytes:
        raise InvalidImage(
            f"an image of {size / 1e6:.1f} MB is more than the {max_bytes / 1e6:g} MB allowed (max_image_mb)"
        )
    return content


class Base:
    """A folder, and the files below it by path."""

    def __init__(self, folder: Path) -> None:
        """Raises Unreadable if there is no such folder."""
        self.folder = folder.expanduser().resolve()
        if not self.folder.is_dir():
            raise Unreadable(f"{folder}: there is no such folder")

    def find(self, path: str | bytes) -> Path:
        """Return the file of a path in the table: relative to the folder, or absolute but below it.

        Raises Unreadable if it leads elsewhere, including through a link: a table may be untrusted.
        """
        try:
            found = (self.folder / os.fsdecode(path)).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL
            raise Unreadable(f"cannot be read: {error}") from None
        if not found.is_relative_to(self.folder):
            raise Unreadable(f"leads out of the folder {self.folder}")
        return found
