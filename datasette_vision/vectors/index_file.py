"""Indexes on disk: one file each, written completely or not at all, and mapped into memory instead of read.

::

    the graph, as usearch writes it | the codes (n, d) int8
    labels (n,) int64, scales (n,) float32, alive (n,) bool, if present
    a JSON object: the caller's description of the index, and position and SHA-256 of each part
    length of that, its SHA-256, INDEX_MAGIC

Each part begins at a multiple of 64 bytes. Parts that control where a program reads or jumps (the links of a graph, the
labels) are checked against their digests when the file is opened. Codes are not: they can only give wrong similarities.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from datasette_vision.util.partial_files import remove_leftovers, unfinished
from datasette_vision.vectors.eight_bit import Coded, Flat, Mask
from datasette_vision.vectors.hnsw import HnswGraph, new_graph

INDEX_MAGIC = b"\nvision1"
INDEX_FORMAT = 1
END = struct.Struct("<Q32s8s")
# usearch writes the number of vectors and their size in bytes (2 x 4 bytes), the vectors, then everything else.
GRAPH_HEAD = 8


class UnusableIndex(Exception):
    """This file is not an index, is damaged, or of another version. It can be rebuilt."""


@dataclass(frozen=True)
class Saved:
    """A saved index. `about` is what save_index() was given."""

    about: dict[str, Any]
    base: Flat | HnswGraph
    alive: Mask | None


def save_index(path: Path, about: dict[str, Any], base: Flat | HnswGraph, alive: Mask | None, dimensions: int) -> None:
    """Write an index, replacing an old one. Raises OSError, and leaves the old one unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, f".{path.name}-*.tmp")
    header: dict[str, Any] = {"format": INDEX_FORMAT, "dimensions": dimensions, "about": about, "parts": {}}
    with unfinished(path, ".tmp") as temporary:
        if isinstance(base, HnswGraph):
            header |= {"kind": "graph", "expansion": base.expansion}
            try:
                base.graph.save(str(temporary))
            except RuntimeError as error:  # usearch's error if the disk is full
                raise OSError(f"{path}: {error}") from None
            end_of_vectors = GRAPH_HEAD + len(base) * dimensions
            size = temporary.stat().st_size
            with temporary.open("rb") as file:
                header["parts"] |= {
                    "head": _part(file, 0, GRAPH_HEAD),
                    "vectors": _part(file, GRAPH_HEAD, end_of_vectors),
                    "links": _part(file, end_of_vectors, size),
                }
        else:
            header["kind"] = "flat"
        with temporary.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            if isinstance(base, Flat):
                _append(file, header, "codes", base.vectors.codes)
                _append(file, header, "scales", base.vectors.scales)
            _append(file, header, "labels", base.labels)
            if alive is not None:
                _append(file, header, "alive", alive)
            text = json.dumps(header).encode()
            file.write(text + END.pack(len(text), hashlib.sha256(text).digest(), INDEX_MAGIC))
            file.flush()
            os.fsync(file.fileno())


def open_index(path: Path) -> Saved:
    """Map an index into memory. Raises UnusableIndex, and OSError if there is none."""
    mapped = _mapped(path)
    header = _header(path, mapped)
    parts = header["parts"]

    def array(name: str, dtype: DTypeLike) -> NDArray[Any]:
        start, end = parts[name]["from"], parts[name]["to"]
        return np.frombuffer(mapped, dtype=dtype, count=(end - start) // np.dtype(dtype).itemsize, offset=start)

    checked = [name for name in parts if name not in {"codes", "vectors"}]
    if wrong := _wrong(mapped, parts, checked):
        raise UnusableIndex(f"{path} is damaged: {', '.join(wrong)}")
    labels: NDArray[np.int64] = array("labels", np.int64)
    alive = array("alive", np.bool_) if "alive" in parts else None
    base: Flat | HnswGraph
    if header["kind"] == "graph":
        graph = new_graph(header["dimensions"])
        try:
            graph.view(memoryview(mapped)[: parts["links"]["to"]])
        except Exception as error:  # usearch raises RuntimeError and others
            raise UnusableIndex(f"{path} cannot be opened: {error}") from None
        if len(graph) != len(labels):
            raise UnusableIndex(f"{path} holds {len(graph)} vectors and {len(labels)} labels")
        base = HnswGraph(labels, graph, header["expansion"], mapped)
    else:
        codes = array("codes", np.int8).reshape(-1, header["dimensions"])
        base = Flat(labels, Coded(codes, array("scales", np.float32)))
    return Saved(header["about"], base, alive)


def verify_index(path: Path) -> None:
    """Check every byte of an index. Raises UnusableIndex, and OSError if there is none."""
    with contextlib.closing(_mapped(path)) as mapped:
        parts = _header(path, mapped)["parts"]
        if wrong := _wrong(mapped, parts, list(parts)):
            raise UnusableIndex(f"{path} is damaged: {', '.join(wrong)}")


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
    content.tofile(file)
    file.seek(0, os.SEEK_END)
    header["parts"][name] = {
        "from": start,
        "to": start + content.nbytes,
        "sha256": hashlib.sha256(content.reshape(-1).view(np.uint8).data).hexdigest(),
    }


def _part(file: BinaryIO, start: int, end: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    file.seek(start)
    left = end - start
    while left and (piece := file.read(min(left, 1 << 20))):
        digest.update(piece)
        left -= len(piece)
    return {"from": start, "to": end, "sha256": digest.hexdigest()}
