"""Indexes on disk: one file each, written completely or not at all, and mapped into memory instead of read.

::

    the arrays of the space, and of its codes (codes.py)
    a JSON object: what the caller says of the index, and place, type, shape and SHA-256 of each array
    length of that, its SHA-256, MAGIC

Each array begins at a multiple of 64 bytes. All are checked against their digests at opening, but for the codes
themselves, which can only give wrong similarities.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from datasette_vision.util.partial_files import remove_leftovers, unfinished
from datasette_vision.vectors.codes import Codes, Space

INDEX_MAGIC = b"\nvision1"
# 1, of version 0.1, held 8-bit codes or a graph.
INDEX_FORMAT = 2
END = struct.Struct("<Q32s8s")
UNCHECKED = {"signs", "levels", "scales", "along"}


class UnusableIndex(Exception):
    """This file is not an index, is damaged, or of another version. It can be rebuilt."""


@dataclass(frozen=True)
class Saved:
    """A saved index. `about` is what save_index() was given."""

    about: dict[str, Any]
    space: Space
    base: Codes


def save_index(path: Path, about: dict[str, Any], space: Space, base: Codes) -> None:
    """Write an index, in place of what was there. Raises OSError; what was there stays then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, f".{path.name}-*.tmp")
    header: dict[str, Any] = {"format": INDEX_FORMAT, "about": about, "parts": {}}
    with unfinished(path, ".tmp") as temporary, temporary.open("wb") as file:
        for arrays in (space, base):
            for field in fields(arrays):
                _append(file, header, field.name, getattr(arrays, field.name))
        text = json.dumps(header).encode()
        file.write(text + END.pack(len(text), hashlib.sha256(text).digest(), INDEX_MAGIC))
        file.flush()
        os.fsync(file.fileno())


def open_index(path: Path) -> Saved:
    """Map an index into memory. Raises UnusableIndex, and OSError if there is none."""
    mapped = _mapped(path)
    header = _header(path, mapped)
    parts = header["parts"]

    def array(name: str) -> NDArray[Any]:
        part = parts[name]
        flat = np.frombuffer(mapped, part["dtype"], math.prod(part["shape"]), part["from"])
        return flat.reshape(part["shape"])

    if wrong := _wrong(mapped, parts, [name for name in parts if name not in UNCHECKED]):
        raise UnusableIndex(f"{path} is damaged: {', '.join(wrong)}")
    space = Space(*(array(field.name) for field in fields(Space)))
    return Saved(header["about"], space, Codes(*(array(field.name) for field in fields(Codes))))


def verify_index(path: Path) -> None:
    """Check every byte of an index. Raises UnusableIndex, and OSError if there is none."""
    with contextlib.closing(_mapped(path)) as mapped:
        parts = _header(path, mapped)["parts"]
        if wrong := _wrong(mapped, parts, list(parts)):
            raise UnusableIndex(f"{path} is damaged: {', '.join(wrong)}")


def allocator(folder: Path | None) -> Callable[..., NDArray[Any]]:
    """Return what gives memory as np.empty() does: of files without names in a folder, so that the system may take it.

    Where there is no folder, or no room in it, it is plain memory.
    """

    def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if folder is None or not size or not hasattr(os, "posix_fallocate"):
            return np.empty(shape, dtype)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                # All of it: where the disk is full, writing to what is only mapped would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
                return np.frombuffer(mmap.mmap(file.fileno(), size), dtype).reshape(shape)
        except OSError:
            return np.empty(shape, dtype)

    return allocate


def _mapped(path: Path) -> mmap.mmap:
    """Map a file into memory. Raises UnusableIndex for an empty one, and OSError if there is none."""
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise UnusableIndex(f"{path} is empty") from None


def _header(path: Path, mapped: mmap.mmap) -> dict[str, Any]:
    if len(mapped) < END.size or mapped[-len(INDEX_MAGIC) :] != INDEX_MAGIC:
        raise UnusableIndex(f"{path} is not an index, or is incomplete")
    length, digest, _ = END.unpack(mapped[-END.size :])
    text = mapped[max(0, len(mapped) - END.size - length) : len(mapped) - END.size]
    if len(text) != length or hashlib.sha256(text).digest() != digest:
        raise UnusableIndex(f"{path} is damaged: its end")
    header: dict[str, Any] = json.loads(text)
    if header["format"] != INDEX_FORMAT:
        raise UnusableIndex(f"{path} is of format {header['format']}, not {INDEX_FORMAT}")
    return header


def _wrong(mapped: mmap.mmap, parts: dict[str, Any], names: list[str]) -> list[str]:
    """Return the names of the parts whose digest does not match."""
    with memoryview(mapped) as whole:
        return [
            name
            for name in names
            if hashlib.sha256(whole[parts[name]["from"] : parts[name]["to"]]).hexdigest() != parts[name]["sha256"]
        ]


def _append(file: BinaryIO, header: dict[str, Any], name: str, array: NDArray[Any]) -> None:
    file.write(bytes(-file.tell() % 64))
    start = file.tell()
    content = np.ascontiguousarray(array)
    file.write(content.reshape(-1).view(np.uint8).data)
    header["parts"][name] = {
        "from": start,
        "to": start + content.nbytes,
        "dtype": content.dtype.str,
        "shape": content.shape,
        "sha256": hashlib.sha256(content.reshape(-1).view(np.uint8).data).hexdigest(),
    }
