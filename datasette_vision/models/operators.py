"""Reads which operators an ONNX file uses, without any package, and without reading weights."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path

# Field numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. All but the last are messages.
MODEL_GRAPH, MODEL_FUNCTION = 7, 25
GRAPH_NODE, FUNCTION_NODE = 1, 7
NODE_ATTRIBUTE, ATTRIBUTE_GRAPHS = 5, (6, 11)
NODE_OPERATOR = 4
# The wire types of protocol buffers: https://protobuf.dev/programming-guides/encoding/
VARINT, EIGHT_BYTES, COUNTED, FOUR_BYTES = 0, 1, 2, 5
GROUP = (3, 4)  # start, end

WireField = tuple[int, int, int]


def uses(path: Path, operators: Collection[str]) -> bool:
    """Whether a graph, or a graph or function within it, has a node of one of these operators.

    False for anything that is not an ONNX file. Raises OSError.
    """
    wanted = {name.encode() for name in operators}
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return any(operator in wanted for operator in _operators(data))
        except (IndexError, ValueError):  # includes an empty file
            return False


def _operators(data: mmap.mmap) -> Iterator[bytes]:
    for number, start, end in _fields(data, 0, len(data)):
        if number == MODEL_GRAPH:
            yield from _of_nodes(data, start, end, GRAPH_NODE)
        elif number == MODEL_FUNCTION:
            yield from _of_nodes(data, start, end, FUNCTION_NODE)


def _of_nodes(data: mmap.mmap, start: int, end: int, node: int) -> Iterator[bytes]:
    for number, first, last in _fields(data, start, end):
        if number == node:
            for part, begins, ends in _fields(data, first, last):
                if part == NODE_OPERATOR:
                    yield data[begins:ends]
                elif part == NODE_ATTRIBUTE:
                    for value, opens, closes in _fields(data, begins, ends):
                        if value in ATTRIBUTE_GRAPHS:
                            yield from _of_nodes(data, opens, closes, GRAPH_NODE)


def _fields(data: mmap.mmap, place: int, end: int) -> Iterator[WireField]:
    """Yield (number, start, end) of each length-delimited field of a message. Raises IndexError or ValueError."""
    while place < end:
        key, place = _varint(data, place)
        kind = key & 7
        if kind == VARINT:
            _, place = _varint(data, place)
        elif kind == EIGHT_BYTES:
            place += 8
        elif kind == FOUR_BYTES:
            place += 4
        elif kind in GROUP:  # deprecated, and in no field here: the contents are skipped
            continue
        elif kind == COUNTED:
            length, place = _varint(data, place)
            if place + length > end:
                raise ValueError("a field that is longer than its message")
            yield key >> 3, place, place + length
            place += length
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """Read a number with 7 bits per byte, lowest first: (the number, where the next begins)."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
