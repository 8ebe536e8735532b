"""Embeddings with 8 bits per number, all compared with a query: exact search except for rounding.

Each vector is scaled by its largest number, so the error of a similarity is below 0.01. Ask for more neighbours than
you need, and score them again with the embeddings themselves. Searching a million of 512 numbers takes about 20 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numkong
import numpy as np
from numpy.typing import NDArray

# How many more than needed to fetch and score again.
SPARE = 32

RowLabels = NDArray[np.int64]
Codes = NDArray[np.int8]
Similarities = NDArray[np.float32]
Positions = NDArray[np.intp]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Coded:
    """Vectors in 8 bits: codes (n, d), and factors (n,) that turn a product of two codes into their cosine."""

    codes: Codes
    scales: NDArray[np.float32]


def coded(vectors: NDArray[np.float32]) -> tuple[Coded, Mask]:
    """Convert (n, d) float32 vectors, of any length, to 8 bits. The mask (n,) says which could be converted.

    Vectors that are zero everywhere, or hold a NaN or an infinity, are left out.
    """
    largest = np.abs(vectors).max(axis=1)
    usable = np.isfinite(largest) & (largest > 0)
    if not usable.all():
        vectors, largest = vectors[usable], largest[usable]
    # Divide first, then multiply: 127 divided by a very small number would be infinite.
    levels = vectors / largest[:, None]
    levels *= 127
    np.rint(levels, out=levels)
    scales = 1 / np.sqrt(np.einsum("ij,ij->i", levels, levels))
    return Coded(levels.astype(np.int8), scales.astype(np.float32)), usable


class Flat:
    """Vectors that are all compared: labels (n,), codes (n, d), scales (n,)."""

    def __init__(self, labels: RowLabels, vectors: Coded) -> None:
        self.labels = labels
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.labels)

    def search(self, query: Coded, k: int, alive: Mask | None) -> tuple[Positions, Similarities]:
        """Return (positions, similarities) of the k nearest to query (1, d) that are alive, best first."""
        if not len(self.labels):
            return np.empty(0, np.intp), np.empty(0, np.float32)
        products: Any = numkong.cdist(query.codes, self.vectors.codes, "dot")
        similarities = np.asarray(products)[0].astype(np.float32)
        similarities *= self.vectors.scales * query.scales[0]
        if alive is not None:
            similarities[~alive] = -np.inf
        positions = _largest(similarities, k)
        found = similarities[positions]
        return positions[found > -np.inf], found[found > -np.inf]

    def first(self, count: int) -> Flat:
        """Return the first vectors, in the same memory."""
        return Flat(self.labels[:count], Coded(self.vectors.codes[:count], self.vectors.scales[:count]))

    def put(self, rows: Flat, start: int) -> None:
        """Overwrite vectors, beginning at `start`."""
        end = start + len(rows)
        self.labels[start:end] = rows.labels
        self.vectors.codes[start:end] = rows.vectors.codes
        self.vectors.scales[start:end] = rows.vectors.scales

    def take(self, chosen: Mask) -> Flat:
        """Return a Flat of the selected vectors."""
        vectors = Coded(self.vectors.codes[chosen], self.vectors.scales[chosen])
        return Flat(self.labels[chosen], vectors)


def empty(dimensions: int, size: int = 0) -> Flat:
    """Return a Flat with room for `size` vectors."""
    codes = np.empty((size, dimensions), np.int8)
    return Flat(np.empty(size, np.int64), Coded(codes, np.empty(size, np.float32)))


def joined(parts: list[Flat]) -> Flat:
    """Return the vectors of several Flats as one."""
    if len(parts) == 1:
        return parts[0]
    vectors = Coded(
        np.concatenate([part.vectors.codes for part in parts]), np.concatenate([part.vectors.scales for part in parts])
    )
    return Flat(np.concatenate([part.labels for part in parts]), vectors)


def _largest(values: Similarities, k: int) -> Positions:
    """Return the positions of the k largest values, largest first."""
    if k < len(values) // 256:
        # A sample gives a bound that the k largest exceed and nearly all others do not. This is much faster than a full
        # partition.
        sample = values[::64]
        bound = np.partition(sample, -(k // 32 + 4))[-(k // 32 + 4)]
        chosen = np.flatnonzero(values >= bound)
        if len(chosen) < k:
            chosen = np.arange(len(values))
    else:
        chosen = np.arange(len(values))
    if k < len(chosen):
        chosen = chosen[np.argpartition(values[chosen], -k)[-k:]]
    return chosen[np.argsort(-values[chosen], kind="stable")]
