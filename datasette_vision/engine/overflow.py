"""Determines by multiplying whether 8-bit products overflow on this processor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# Wide enough for every kernel's main loop. One row takes another kernel than several.
DEPTH, WIDTH = 64, 32
PROBED_ROWS = (1, 8)
LARGEST = 255, 127
# The types of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, from where the numbers of fields below are too.
UINT8, INT8, INT32 = 2, 3, 6

Multiply = Callable[[NDArray[np.uint8]], NDArray[np.int32]]


def overflows(multiply: Multiply) -> bool:
    """Whether products come out wrong: `multiply` runs product_graph(), (n, DEPTH) uint8 -> (n, WIDTH) int32."""
    exact = DEPTH * LARGEST[0] * LARGEST[1]
    return any((multiply(np.full((rows, DEPTH), LARGEST[0], np.uint8)) != exact).any() for rows in PROBED_ROWS)


def product_graph() -> bytes:
    """Return an ONNX graph that multiplies its input "x" by a matrix full of the largest int8."""
    weights = _message((1, DEPTH), (1, WIDTH), (2, INT8), (8, "w"), (9, bytes([LARGEST[1]]) * (DEPTH * WIDTH)))
    product = _message((1, "x"), (1, "w"), (2, "y"), (4, "MatMulInteger"))
    ports = (11, _port("x", UINT8, DEPTH)), (12, _port("y", INT32, WIDTH))
    graph = _message((1, product), (2, "g"), (5, weights), *ports)
    return _message((1, 8), (7, graph), (8, _message((1, ""), (2, 17))))


def _port(name: str, kind: int, width: int) -> bytes:
    """Write an input or output of shape (n, width)."""
    shape = _message((1, _message((2, "n"))), (1, _message((1, width))))
    return _message((1, name), (2, _message((1, _message((1, kind), (2, shape))))))


def _message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Write a protocol buffer of (number, value): https://protobuf.dev/programming-guides/encoding/."""
    written = b""
    for number, value in fields:
        if isinstance(value, int):
            written += _varint(number << 3) + _varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            written += _varint(number << 3 | 2) + _varint(len(content)) + content
    return written


def _varint(value: int) -> bytes:
    low = b""
    while value > 0x7F:
        low += bytes([value & 0x7F | 0x80])
        value >>= 7
    return low + bytes([value])
