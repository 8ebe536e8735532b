"""Finds the k nearest neighbours of an embedding, while vectors are added and removed.

An Index is a base, which may be mapped from a file, and what has changed since: rows added stand in a tail beside it,
rows removed in a mask. Labels are the caller's: whole numbers, each there once. So are keys, which need not be: by them
a search is limited to some rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasette_vision.vectors.codes import (
    CANDIDATE_PART,
    FILTERED_PART,
    Codes,
    Mask,
    Positions,
    RowLabels,
    Similarities,
    Space,
    empty,
    encode,
    query_in,
)
from datasette_vision.vectors.embedding import Vector


@dataclass(frozen=True)
class View:
    """The contents of an Index at one moment. Masks are None if all are alive."""

    space: Space
    base: Codes
    base_alive: Mask | None
    tail: Codes
    tail_alive: Mask | None

    def __len__(self) -> int:
        return sum(
            len(part) if alive is None else int(np.count_nonzero(alive))
            for part, alive in ((self.base, self.base_alive), (self.tail, self.tail_alive))
        )

    def search(
        self, query: Vector, k: int, allowed: Callable[[Codes], Mask] | None = None
    ) -> tuple[RowLabels, Similarities]:
        """Return (labels, similarities) of about the k nearest to a query (d,), best first, or all.

        `allowed` says which rows of some Codes may be found: all by default.
        """
        if k < 1 or not np.isfinite(query).all() or not query.any():
            return np.empty(0, np.int64), np.empty(0, np.float32)
        wanted = query_in(self.space, query / np.linalg.norm(query))
        labels, similarities = [], []
        for part, alive in ((self.base, self.base_alive), (self.tail, self.tail_alive)):
            if allowed is not None:
                alive = allowed(part) if alive is None else alive & allowed(part)
            positions, found = part.search(wanted, k, alive, CANDIDATE_PART if allowed is None else FILTERED_PART)
            labels.append(part.labels[positions])
            similarities.append(found)
        order = np.argsort(-np.concatenate(similarities), kind="stable")[:k]
        return np.concatenate(labels)[order], np.concatenate(similarities)[order]


class Index:
    """Vectors by label. Vectors can be added and removed while others search. Only one thread at a time may change it.

    `view` is its current content. A search continues in the view that it has taken.
    """

    def __init__(self, space: Space, base: Codes) -> None:
        self.view = View(space, base, None, empty(space), None)
        self._order: Positions | None = None
        self._room = self.view.tail

    def __len__(self) -> int:
        return len(self.view)

    @property
    def dimensions(self) -> int:
        """The size d of an embedding."""
        return len(self.view.space.mean)

    def search(self, query: Vector, k: int) -> tuple[RowLabels, Similarities]:
        """Return (labels, similarities) of about the k nearest to a query (d,), best first."""
        return self.view.search(query, k)

    def change(self, removed: RowLabels, labels: RowLabels, keys: RowLabels, vectors: NDArray[np.float32]) -> None:
        """Remove what has a label of `removed` or `labels`, then add `vectors` (n, d) under `labels` (n,)."""
        gone = np.union1d(removed, labels)
        view = self.view
        base_alive = _without(view.base_alive, self._in_base(gone), len(view.base))
        tail_alive = _without(view.tail_alive, np.flatnonzero(np.isin(view.tail.labels, gone)), len(view.tail))
        tail = self._appended(view.tail, encode(view.space, labels, keys, vectors))
        if tail_alive is not None:
            tail_alive = np.concatenate([tail_alive, np.ones(len(tail) - len(view.tail), np.bool_)])
        self.view = View(view.space, view.base, base_alive, tail, tail_alive)

    def replace_base(self, before: View, base: Codes) -> None:
        """Put a base in that holds what was alive in `before`, in its order. No other may have been put in since."""
        now = self.view
        assert now.base is before.base, "one base is made at a time"
        base_alive = np.concatenate(
            [
                _still(len(before.base), before.base_alive, now.base_alive),
                _still(len(before.tail), before.tail_alive, now.tail_alive),
            ]
        )
        newer = np.arange(len(now.tail)) >= len(before.tail)
        tail = now.tail.take(newer if now.tail_alive is None else newer & now.tail_alive)
        self._order, self._room = None, tail
        self.view = View(now.space, base, None if base_alive.all() else base_alive, tail, None)

    def _in_base(self, labels: RowLabels) -> Positions:
        """Return the positions in the base of those labels that are in it."""
        of_base = self.view.base.labels
        if self._order is None:
            self._order = np.argsort(of_base, kind="stable")  # nearly sorted as a rule: quick
        places = np.searchsorted(of_base, labels, sorter=self._order)
        places = self._order[places[places < len(of_base)]]
        return places[np.isin(of_base[places], labels)]

    def _appended(self, tail: Codes, rows: Codes) -> Codes:
        """Return `tail` with rows after its last, in the same memory while there is room behind it."""
        count, total = len(tail), len(tail) + len(rows)
        if total > len(self._room):
            self._room = empty(self.view.space, max(1024, 2 * total))
            self._room.put(tail, 0)
        # Those who search in a view of before see nothing behind its end.
        self._room.put(rows, count)
        return self._room.first(total)


def alive_parts(view: View) -> list[Codes]:
    """Return the codes that are alive in a view, in their order."""
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
