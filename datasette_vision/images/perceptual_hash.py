"""Finds images that are the same except for size, encoding or slight changes of colour: a perceptual hash, and groups
by it.

The hash describes how an image looks, not how a model sees it: two photographs of one dog are not duplicates, however
close their embeddings are. It is the same whatever model is installed, and takes 16 bytes.

128 bits: the signs of the lowest frequencies of the image's brightness (a discrete cosine transform of 32 x 32 pixels,
as in C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010), lowest first. Signs of
very weak frequencies are noise: such bits are 0, and an image without detail has no hash.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
BITS = 128
HASH_BYTES = BITS // 8
# How many bits may differ, of the lower half and of all: found with benchmarks/likeness.py.
MAX_LOW, MAX_ALL = 5, 16
# Seven parts of the lower half: if at most five bits differ, at least two parts are equal.
PARTS = ((0, 9), (9, 18), (18, 27), (27, 36), (36, 45), (45, 54), (54, 64))
# In units of brightness, 0 to 255: a weaker frequency is noise; an image with none above this is flat.
FAINT, FLAT = 0.35, 1.5
PAIRS_AT_A_TIME = 1 << 20
# Hashes with two equal parts are compared with this many of their neighbours. More have equal parts only among
# thousands of nearly identical images, such as the frames of a film, and then the next neighbours match.
NEIGHBOURS = 500

_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


def _transform() -> NDArray[np.float64]:
    """The matrix of the orthonormal DCT-II, over SIDE, so that amplitudes are in units of brightness."""
    k, n = np.mgrid[0:SIDE, 0:SIDE]
    return np.cos(np.pi * (n + 0.5) * k / SIDE) * np.where(k == 0, 1, np.sqrt(2)) / SIDE


_DCT = _transform()
# The frequencies from low to high, without the first, which is the mean brightness.
_ORDER = sorted(((row, column) for row in range(SIDE) for column in range(SIDE)), key=lambda at: (sum(at), at))[
    1 : BITS + 1
]
_ROWS, _COLUMNS = np.array([row for row, _ in _ORDER]), np.array([column for _, column in _ORDER])


def perceptual_hash(picture: Image.Image) -> bytes | None:
    """Return the 16-byte hash of an upright image in any mode; None for one without detail."""
    small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    frequencies = (_DCT @ np.asarray(small, dtype=np.float64) @ _DCT.T)[_ROWS, _COLUMNS]
    if np.abs(frequencies).max() < FLAT:
        return None
    return np.packbits(frequencies > FAINT).tobytes()


def groups(hashes: Sequence[bytes]) -> NDArray[np.int64]:
    """Return for each of n hashes the position of the first image of its group, matched directly or through others:
    (n,).

    Takes a few seconds for a million, and 100 bytes each.
    """
    if not len(hashes):
        return np.empty(0, dtype=np.int64)
    table = np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, HASH_BYTES)
    distinct, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    bits = np.unpackbits(distinct[:, : HASH_BYTES // 2], axis=1)
    words = distinct.copy().view(np.uint16)
    parent = np.arange(len(distinct))
    values = [bits[:, begin:end] @ (1 << np.arange(end - begin, dtype=np.int64)) for begin, end in PARTS]
    for one, other in itertools.combinations(values, 2):
        part = (one << 10) | other
        order = np.argsort(part, kind="stable")  # equal parts stay in the order of np.unique(): by the whole hash
        for a, b in _close(part[order], words[order], lambda: _roots(parent)[order]):  # noqa: B023
            _join(parent, order[a], order[b])
    roots = _roots(parent)
    # The first member of each group, in the order of the hashes.
    earliest = np.full(len(distinct), len(hashes), dtype=np.int64)
    np.minimum.at(earliest, roots, first)
    return earliest[roots[inverse.reshape(-1)]]


def _close(
    part: NDArray[np.int64], words: NDArray[np.uint16], current: Callable[[], NDArray[np.int64]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs (positions, positions) with equal parts whose hashes are close. `part` is sorted.

    `current` holds the groups so far: members of one group are not compared again.
    """
    left = np.arange(len(part) - 1)
    group = current()
    for step in range(1, NEIGHBOURS):
        left = left[left + step < len(part)]
        left = left[part[left] == part[left + step]]
        if not len(left):
            return
        apart = left[group[left] != group[left + step]]
        for start in range(0, len(apart), PAIRS_AT_A_TIME):
            a = apart[start : start + PAIRS_AT_A_TIME]
            differing = _ONES[words[a] ^ words[a + step]]
            low = differing[:, :4].sum(axis=1)
            close = (low <= MAX_LOW) & (low + differing[:, 4:].sum(axis=1) <= MAX_ALL)
            if close.any():
                yield a[close], a[close] + step
        if len(apart) and step % 8 == 1:
            group = current()


def _join(parent: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
    roots = _roots(parent)
    apart = roots[a] != roots[b]
    for one, other in zip(a[apart].tolist(), b[apart].tolist(), strict=True):
        low, high = sorted((_root(parent, one), _root(parent, other)))
        parent[high] = low


def _root(parent: NDArray[np.int64], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = int(parent[node])
    return node


def _roots(parent: NDArray[np.int64]) -> NDArray[np.int64]:
    while (parent[parent] != parent).any():
        parent = parent[parent]
    return parent
