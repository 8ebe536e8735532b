"""Answers that do not depend on the company: an image's embedding is the same whatever else is in its batch.

Graphs that other people quantised with dynamic ranges (DynamicQuantizeLinear) scale the activations of a whole batch by
the largest among them: an image beside a bright one has another embedding than alone, to a hundredth or so. Where work
is spread over machines, and done again where one died, batches are never the same twice. Such a graph is found out by
trying, and then gets one image at a time, which on a processor costs next to nothing. Those that this package makes
quantise each row by itself, and are not slowed down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.encoder import LoadSession, load_on
from datasette_vision.runtime import Session

# Of the larger of two answers: what the order of additions makes, on any hardware, is below.
TOLERANCE = 1e-4


class SteadySession:
    """A graph that is run on one row at a time if a row's answer depends on the others. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._one_by_one: bool | None = None

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Compute the graph's one output."""
        rows = len(next(iter(inputs.values())))
        if rows > 1 and self._one_by_one is None:
            self._one_by_one = self._depends(inputs)
        if rows > 1 and self._one_by_one:
            single = [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(rows)]
            return np.concatenate([self._session.run(one) for one in single])
        return self._session.run(inputs)

    def _depends(self, inputs: Mapping[str, NDArray[Any]]) -> bool:
        """Whether the first row is answered otherwise beside one of three times its values. Only numbers can be so."""
        if not all(np.issubdtype(value.dtype, np.floating) for value in inputs.values()):
            return False
        first = {name: value[:1] for name, value in inputs.items()}
        together = self._session.run({name: np.concatenate([value, -3 * value]) for name, value in first.items()})[0]
        alone = self._session.run(first)[0]
        largest = max(float(np.abs(alone).max()), float(np.abs(together).max()))
        return float(np.abs(together - alone).max()) > TOLERANCE * largest


def load_steady(threads: int | None, providers: Sequence[str] = ()) -> LoadSession:
    """Return a loader of graphs as encoder.load_on() does, whose answers do not depend on the company."""
    load = load_on(threads, providers)

    def steady(path: Path, inputs: tuple[str, ...], output: str) -> Session:
        return SteadySession(load(path, inputs, output))

    return steady
