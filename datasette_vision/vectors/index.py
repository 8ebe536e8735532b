"""Finds the k nearest neighbours of an embedding, while vectors are added and removed.

An Index is a Flat, which compares all, or a graph, for larger numbers; plus the changes since: added rows in a second
Flat, removed rows in a mask. Labels come from the caller: whole numbers, each used once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasette_vision.vectors.eight_bit import Coded, Flat, Mask, Positions, RowLabels, Similarities, coded, empty
from datasette_vision.vectors.embedding import Vector
from datasette_vision.vectors.hnsw import HnswGraph


@dataclass(frozen=True)
class View:
    """The contents of an Index at one moment. Masks are None if all are alive."""

    base: Flat | HnswGraph
    base_alive: Mask | None
    tail: Flat
    tail_alive: Mask | None

    def __len__(self) -> int:
        return sum(
            len(part) if alive is None else int(np.count_nonzero(alive))
            for part, alive in ((self.base, self.base_alive), (self.tail, self.tail_alive))
        )

    def search(self, query: Vector, k: int) -> tuple[RowLabels, Similarities]:
        """Return (labels, similarities) of the k nearest to a query (d,), best first; fewer if there are fewer."""
        vectors, usable = coded(query[None])
        if not usable[0] or k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        labels, similarities = [], []
        for part, alive in ((self.base, self.base_alive), (self.tail, self.tail_alive)):
            positions, found = part.search(vectors, k, alive)
            labels.append(part.labels[positions])
            similarities.append(found)
        order = np.argsort(-np.concatenate(similarities), kind="stable")[:k]
        return np.concatenate(labels)[order], np.concatenate(similarities)[order]


class Index:
    """Vectors by label. Vectors can be added and removed while others search. Only one thread at a time may change it.

    `view` is its current content. A search continues in the view that it has taken.
    """

    def __init__(self, base: Flat | HnswGraph, dimensions: int, alive: Mask | None = None) -> None:
        self.dimensions = dimensions
        self.view = View(base, alive, empty(dimensions), None)
        self._order: Positions | None = None
        self._room = self.view.tail

    def __len__(self) -> int:
        return len(self.view)

    def search(self, query: Vector, k: int) -> tuple[RowLabels, Similarities]:
        """Return (labels, similarities) of the k nearest to a query (d,), best first."""
        return self.view.search(query, k)

    def change(self, removed: RowLabels, labels: RowLabels, vectors: NDArray[np.float32]) -> None:
        """Remove the labels in `removed` and `labels`, then add `vectors` (n, d) under `labels` (n,)."""
        gone = np.union1d(removed, labels)
        view = self.view
        base_alive = _without(view.base_alive, self._in_base(gone), len(view.base))
        tail_alive = _without(view.tail_alive, np.flatnonzero(np.isin(view.tail.labels, gone)), len(view.tail))
        added, usable = coded(vectors)
        tail = self._appended(view.tail, labels[usable], added)
        if tail_alive is not None:
            tail_alive = np.concatenate([tail_alive, np.ones(len(tail) - len(view.tail), np.bool_)])
        self.view = View(view.base, base_alive, tail, tail_alive)

    def replace_base(self, before: View, base: Flat | HnswGraph, *, holds_dead: bool = False) -> None:
        """Replace the base with one that holds what was alive in `before`, in order. The base must not have been
        replaced since.

        With `holds_dead` it holds the whole base of `before`, dead or alive: a graph that was extended.
        """
        now = self.view
        assert now.base is before.base, "one base is made at a time"
        base_then = None if holds_dead else before.base_alive
        base_alive = np.concatenate(
            [
                _still(len(before.base), base_then, now.base_alive),
                _still(len(before.tail), before.tail_alive, now.tail_alive),
            ]
        )
        newer = np.arange(len(now.tail)) >= len(before.tail)
        tail = now.tail.take(newer if now.tail_alive is None else newer & now.tail_alive)
        self._order, self._room = None, tail
        self.view = View(base, None if base_alive.all() else base_alive, tail, None)

    def _in_base(self, labels: RowLabels) -> Positions:
        """Return the positions in the base of those labels that are in it."""
        of_base = self.view.base.labels
        if self._order is None:
            self._order = np.argsort(of_base, kind="stable")  # usually nearly sorted, so fast
        first = np.searchsorted(of_base, labels, side="left", sorter=self._order)
        counts = np.searchsorted(of_base, labels, side="right", sorter=self._order) - first
        # An extended graph has a label twice if its row has changed.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._order[np.repeat(first, counts) + within]

    def _appended(self, tail: Flat, labels: RowLabels, vectors: Coded) -> Flat:
        """Return `tail` with rows appended, in the same memory while there is room."""
        count, total = len(tail), len(tail) + len(labels)
        if total > len(self._room):
            self._room = empty(self.dimensions, max(1024, 2 * total))
            self._room.put(tail, 0)
        # Searches in an earlier view do not see beyond its end.
        self._room.put(Flat(labels, vectors), count)
        return self._room.first(total)


def alive_parts(view: View) -> list[Flat]:
    """Return the vectors that are alive in a view whose base is a Flat, in order."""
    assert isinstance(view.base, Flat), "a graph does not return its vectors"
    pairs = ((view.base, view.base_alive), (view.tail, view.tail_alive))
    return [part if alive is None else part.take(alive) for part, alive in pairs]


def _still(size: int, then: Mask | None, now: Mask | None) -> Mask:
    """Of the first `size` rows, those alive then: which of them are alive now."""
    still = np.ones(size, np.bool_) if now is None else now[:size]
    return still if then is None else still[then]


def _without(alive: Mask | None, positions: Positions, size: int) -> Mask | None:
    if not len(positions):
        return alive
    result = np.ones(size, np.bool_) if alive is None else alive.copy()
    result[positions] = False
    return result
