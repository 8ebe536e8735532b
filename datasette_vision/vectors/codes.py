"""Compact codes of embeddings: one bit a number finds candidates among all, four bits rank those.

A unit-length embedding x is taken apart into a·m + r, with m the direction of the mean of some rows: what all have in
common, as CLIP's images have, tells nothing apart. r is rotated at random, so that no number stands out, and kept as
the signs of its numbers and as 16 levels of each. As in RaBitQ (https://arxiv.org/abs/2405.12497) a product with r is
estimated from its code, divided by what the code lost of its length.

Only the signs are read for every query: 64 MB for a million embeddings of 512 numbers. The levels of candidates are
looked up; mapped from a file, they need no memory of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numkong
import numpy as np
from numpy.typing import DTypeLike, NDArray

# Candidates that the signs find: so many, and of large tables one row in so many. Of 1,000 the worst kind of
# embeddings measured has all of the true ten among them at 50,000 rows (benchmarks/search_codes.py).
CANDIDATES = 2000
CANDIDATE_PART = 250
# Among the rows of a filter the nearest may be far from the query, where many are about as far and signs say little.
FILTERED_PART = 1
# How many more than wanted are to be taken and scored on the embeddings themselves.
SPARE = 32
# The width of the best 16 equal levels for a normal distribution (Max 1960, table II).
LEVEL = np.float32(0.3352)
# What rounding leaves of a vector that is nothing but a·m, squared.
NOTHING = np.float32(1e-12)
# Fewer numbers are spread over so many: their levels make up for each other's errors.
LEAST_WIDTH = 256
# Distances are taken of so many at a time: they stay in the processor's cache.
CHUNK = 16384

RowLabels = NDArray[np.int64]
Similarities = NDArray[np.float32]
Positions = NDArray[np.intp]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Space:
    """What codes are relative to: the direction (d,) of the mean, and a rotation in `width` dimensions.

    The rotation is the Kronecker product of two small ones, after `flips` (width,) of signs: quick, and thorough.
    """

    mean: Floats
    flips: Floats
    left: Floats
    right: Floats

    @property
    def width(self) -> int:
        """The number of rotated numbers: a multiple of 8, d or a little more."""
        return len(self.flips)

    def rotate(self, vectors: Floats) -> Floats:
        """Rotate (n, d) into (n, width)."""
        count = len(vectors)
        wide: NDArray[Any] = np.zeros((count, self.width), np.float32)
        wide[:, : vectors.shape[1]] = vectors
        for _ in range(2 if len(self.left) > 1 else 1):  # once leaves a vector of few numbers other than 0 uneven
            wide = (wide * self.flips).reshape(-1, len(self.right)) @ self.right
            if len(self.left) > 1:
                across = wide.reshape(count, len(self.left), len(self.right)).transpose(0, 2, 1)
                wide = np.ascontiguousarray(across).reshape(-1, len(self.left)) @ self.left
            wide = wide.reshape(count, self.width)
        return wide


def space_of(sample: Floats, dimensions: int) -> Space:
    """Return the space for embeddings like those of a sample (n, d), which may be empty."""
    unit, _ = _unit_length(sample)
    mean = unit.sum(axis=0) if len(unit) else np.zeros(dimensions, np.float32)
    length = np.linalg.norm(mean)
    mean = (mean / length if length > 0 else mean).astype(np.float32)
    return Space(mean, *_rotation(max(LEAST_WIDTH, -(-dimensions // 8) * 8)))


@cache
def _rotation(width: int) -> tuple[Floats, Floats, Floats]:
    left = 1 if width == LEAST_WIDTH else next(a for a in range(math.isqrt(width), 0, -1) if width % a == 0)
    random = np.random.default_rng(width)
    parts = [np.linalg.qr(random.standard_normal((size, size)))[0] for size in (left, width // left)]
    return random.choice(np.array([-1, 1], np.float32), width), parts[0].astype(np.float32), parts[1].astype(np.float32)


@dataclass(frozen=True)
class Codes:
    """Embeddings in a space, by row: what the caller knows a row by, its code, and numbers that go with it."""

    labels: RowLabels
    keys: RowLabels
    signs: NDArray[np.uint8]  # (n, width / 8)
    levels: NDArray[np.uint8]  # (n, width / 2): of the first half of the numbers the low four bits, the others above
    scales: Floats  # what turns a product with the levels into one with r
    along: Floats  # a

    def __len__(self) -> int:
        return len(self.labels)

    def map(self, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Codes:
        """Return the Codes of what a function makes of each array."""
        return Codes(*(function(getattr(self, field.name)) for field in fields(self)))

    def first(self, count: int) -> Codes:
        """Return the first of them, in the same memory."""
        return self.map(lambda array: array[:count])

    def take(self, chosen: Mask) -> Codes:
        """Return a copy of those chosen."""
        return self.map(lambda array: array[chosen])

    def put(self, rows: Codes, start: int) -> None:
        """Write rows over those from `start` on."""
        for field in fields(self):
            getattr(self, field.name)[start : start + len(rows)] = getattr(rows, field.name)

    def search(
        self, query: Query, k: int, allowed: Mask | None, part: int = CANDIDATE_PART
    ) -> tuple[Positions, Similarities]:
        """Return (positions, similarities) of about the k nearest to a query that are allowed, best first.

        One of `part` of them is a candidate.
        """
        there = len(self) if allowed is None else int(np.count_nonzero(allowed))
        few = max(CANDIDATES, there // part, 4 * k)
        if there > few:
            positions = self._candidates(query, few, allowed)
        else:
            positions = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        similarities = self._similarities(query, positions)
        if k < len(positions):
            best = np.argpartition(-similarities, k - 1)[:k]
            positions, similarities = positions[best], similarities[best]
        order = np.argsort(-similarities, kind="stable")
        return positions[order], similarities[order]

    def _candidates(self, query: Query, few: int, allowed: Mask | None) -> Positions:
        """Return the positions of the `few` allowed whose signs differ least, and those that tie with the last."""
        distances = np.empty(len(self), np.uint16)
        room = np.empty((1, CHUNK))
        for start in range(0, len(self), CHUNK):
            signs = self.signs[start : start + CHUNK]
            some = room[:, : len(signs)]
            numkong.cdist(query.signs, signs, "hamming", dtype="uint1", out=some)
            distances[start : start + CHUNK] = some[0]
        if allowed is not None:
            distances[~allowed] = np.iinfo(np.uint16).max
        return np.flatnonzero(distances <= np.partition(distances, few - 1)[few - 1])

    def _similarities(self, query: Query, positions: Positions) -> Similarities:
        result = np.empty(len(positions), np.float32)
        for start in range(0, len(positions), CHUNK):
            some = positions[start : start + CHUNK]
            packed = self.levels[some]
            levels = np.concatenate([packed & 15, packed >> 4], axis=1).view(np.int8)
            products: Any = numkong.cdist(query.numbers, levels, "dot")
            product = (np.asarray(products)[0] - 7.5 * query.sum) * query.scale
            with np.errstate(over="ignore", invalid="ignore"):  # numbers of a damaged file
                result[start : start + CHUNK] = product * self.scales[some] + query.along * self.along[some]
        return result


@dataclass(frozen=True)
class Query:
    """What is looked for, in a space: its signs (1, width / 8), and its numbers (1, width) in 8 bits."""

    signs: NDArray[np.uint8]
    numbers: NDArray[np.int8]
    scale: float
    sum: int
    along: float


def query_in(space: Space, vector: Floats) -> Query:
    """Bring a unit-length query (d,) into a space."""
    along = float(vector @ space.mean)
    rotated = space.rotate((vector - along * space.mean)[None])
    scale = float(np.abs(rotated).max()) / 127 or 1.0
    numbers = np.rint(rotated / scale).astype(np.int8)
    return Query(np.packbits(rotated >= 0, axis=1), numbers, scale, int(numbers.sum(dtype=np.int64)), along)


def encode(space: Space, labels: RowLabels, keys: RowLabels, vectors: Floats) -> Codes:
    """Return the codes of (n, d) float32 vectors, of any length.

    A vector that is zero everywhere, or holds a NaN or an infinity, has none: it is left out.
    """
    unit, usable = _unit_length(vectors)
    along = unit @ space.mean
    rotated = space.rotate(unit - along[:, None] * space.mean)
    squares = np.einsum("ij,ij->i", rotated, rotated)
    steps = np.sqrt(space.width / np.maximum(squares, NOTHING)) / LEVEL
    levels = rotated * steps[:, None].astype(np.float32)
    np.floor(levels, out=levels)
    np.clip(levels, -8, 7, out=levels)
    products = np.einsum("ij,ij->i", levels, rotated) + 0.5 * rotated.sum(axis=1)
    scales = np.divide(squares, products, out=np.zeros_like(squares), where=products > 0)
    whole = (levels + 8).astype(np.uint8)
    half = space.width // 2
    packed = whole[:, :half] | (whole[:, half:] << 4)
    return Codes(labels[usable], keys[usable], np.packbits(whole >= 8, axis=1), packed, scales, along)


def _unit_length(vectors: Floats) -> tuple[Floats, Mask]:
    """Return those of (n, d) vectors that have a direction, brought to unit length, and which those are."""
    largest = np.abs(vectors).max(axis=1, initial=0)
    usable = np.isfinite(largest) & (largest > 0)
    if not usable.all():
        vectors, largest = vectors[usable], largest[usable]
    unit = vectors / largest[:, None]  # first: the square of a very small number would be zero
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit, usable


def empty(space: Space, size: int = 0, *, allocate: Callable[..., NDArray[Any]] = np.empty) -> Codes:
    """Return Codes with room for `size` rows; `allocate(shape, dtype)` gives the memory."""
    shapes = row_shapes(space.width)
    return Codes(*(allocate((size, *shapes[field.name][0]), shapes[field.name][1]) for field in fields(Codes)))


def row_shapes(width: int) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """Return the shape and the type of a row in each array of Codes."""
    return {
        "labels": ((), np.int64),
        "keys": ((), np.int64),
        "signs": ((width // 8,), np.uint8),
        "levels": ((width // 2,), np.uint8),
        "scales": ((), np.float32),
        "along": ((), np.float32),
    }


def joined(parts: list[Codes]) -> Codes:
    """Return the rows of some Codes as one."""
    parts = [part for part in parts if len(part)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    return Codes(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Codes)))
