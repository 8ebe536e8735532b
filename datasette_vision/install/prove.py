"""Compares candidates for a tower with the original over the samples, times them, and chooses one.

Used both for models that come as graphs and for models baked from PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.errors import EngineFailure, InstallFailed, ModelCorrupt

ModelInputs = Mapping[str, NDArray[Any]]
Rows = NDArray[np.float32]
# The inputs of one sample -> its result, (1, d).
Run = Callable[[ModelInputs], Rows]
# Yields inputs one at a time, from the start at each call: there are too many to keep in memory.
Ranked = Callable[[], Iterable[ModelInputs]]

FP32 = "fp32"
# The threshold for a quantised tower: its worst cosine to the original.
THRESHOLD = 0.99
# The threshold for its search results: the fraction of the nearest neighbours among samples.ranked_images() that fp32
# finds too.
RANK_AGREEMENT = 0.95
NEIGHBOURS = 10
# An exact translation differs only by rounding.
EXACT_COSINE = 0.99999
EXACT_NORM = 0.001
# Below this it is a different embedding, even if int8 was requested.
FLOOR = 0.9
ROUNDS = 15
# Two candidates this close are equally fast: the smaller one is used.
SAME_TIME = 1.05
# fp32 takes four times the memory: it is used only if it is this much faster.
WORTH_THE_MEMORY = 1.5
# Medians differ by up to this from one run to the next: of a tiny graph that is many times what it takes.
NOISE_MS = 1.0


def no_inputs() -> Iterable[ModelInputs]:
    """Return no inputs."""
    return ()


@dataclass(frozen=True)
class Measured:
    """One candidate: how close to the original, how fast, how large."""

    name: str
    path: Path
    worst_cosine: float
    mean_cosine: float
    norm_difference: float  # largest, relative
    milliseconds: float  # median, one input
    size: int  # bytes
    rank_agreement: float | None = None  # None for anything but embeddings of images

    def passes(self, threshold: float) -> bool:
        """Whether the cosines and the neighbours reach their thresholds."""
        return self.worst_cosine >= threshold and (self.rank_agreement is None or self.rank_agreement >= RANK_AGREEMENT)

    def report(self) -> dict[str, Any]:
        """Return the measurements for the manifest."""
        return {
            "name": self.name,
            "worst_cosine": round(self.worst_cosine, 6),
            "mean_cosine": round(self.mean_cosine, 6),
            "norm_difference": round(self.norm_difference, 6),
            **self.ranks(),
            "milliseconds": round(self.milliseconds, 2),
            "size": self.size,
        }

    def ranks(self) -> dict[str, float]:
        """Return the part of a report about neighbours, empty if they were not compared."""
        return {} if self.rank_agreement is None else {"rank_agreement": round(self.rank_agreement, 4)}


def prove(
    candidates: Mapping[str, Path],
    load: Callable[[Path], Run],
    samples: Sequence[ModelInputs],
    timed: ModelInputs,
    *,
    reference: Rows | None = None,
    ranked: Ranked = no_inputs,
    precision: str = "auto",
    threshold: float = THRESHOLD,
) -> tuple[Measured, dict[str, Any]]:
    """Measure all candidates and choose one: returns it, and the report on all of them for the manifest.

    See measure() and choose() for the arguments and errors.
    """
    measured = measure(candidates, load, samples, timed, reference, ranked)
    kept = choose(measured, precision, threshold)
    return kept, {
        "kept": kept.name,
        "worst_cosine": round(kept.worst_cosine, 6),
        "mean_cosine": round(kept.mean_cosine, 6),
        **kept.ranks(),
        "samples": len(samples),
        "candidates": [candidate.report() for candidate in measured],
    }


def measure(
    candidates: Mapping[str, Path],
    load: Callable[[Path], Run],
    samples: Sequence[ModelInputs],
    timed: ModelInputs,
    reference: Rows | None = None,
    ranked: Ranked = no_inputs,
    rounds: int = ROUNDS,
) -> list[Measured]:
    """Run every candidate over `samples`, one at a time, and time it on `timed`, alternating between the candidates.

    `reference` holds the original's results, (n, d); by default those of fp32, which comes first. The nearest
    neighbours among the inputs from `ranked` are compared with those of fp32. A quantised candidate that this ONNX
    Runtime cannot run is left out; fp32 raises the errors of `load` and of running it.
    """
    runs: dict[str, Run] = {}
    found: dict[str, Rows] = {}
    neighbours: dict[str, NDArray[np.intp]] = {}
    for name, path in candidates.items():
        try:
            run = load(path)
            found[name] = np.concatenate([run(sample) for sample in samples])
            if len(candidates) > 1 and (rows := [run(inputs) for inputs in ranked()]):
                neighbours[name] = nearest(np.concatenate(rows))
            runs[name] = run
        except (ModelCorrupt, EngineFailure, InstallFailed):
            if name == FP32:
                raise
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run(timed)
            seconds[name].append(time.perf_counter() - started)
    reference = found[FP32] if reference is None else reference
    measured = []
    for name in runs:
        cosines, norms = compare(found[name], reference)
        measured.append(
            Measured(
                name,
                candidates[name],
                float(cosines.min()),
                float(cosines.mean()),
                float(np.abs(norms - 1).max()),
                1000 * median(seconds[name]),
                candidates[name].stat().st_size,
                shared(neighbours[name], neighbours[FP32]) if neighbours else None,
            )
        )
    return measured


def compare(found: Rows, reference: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, for each of n rows, the cosine to the reference and the ratio of the norms."""
    a, b = found.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / (norms[0] * norms[1]), norms[0] / norms[1]


def nearest(rows: Rows) -> NDArray[np.intp]:
    """Return the NEIGHBOURS other rows, by cosine, that are nearest to each of n rows, best first: (n, NEIGHBOURS)."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1)[:, :NEIGHBOURS]


def shared(first: NDArray[np.intp], second: NDArray[np.intp]) -> float:
    """Return the fraction of neighbours that are in both: (n, k), (n, k) -> 0 to 1."""
    return float((first[:, :, None] == second[:, None, :]).any(axis=2).mean())


def exact(measured: Measured) -> bool:
    """Say whether this equals the original except for rounding."""
    return measured.worst_cosine >= EXACT_COSINE and measured.norm_difference <= EXACT_NORM


def choose(measured: Sequence[Measured], precision: str, threshold: float) -> Measured:
    """Return the candidate to keep.

    "auto": the fastest quantised one that passes, unless fp32 is worth its memory; fp32 if none does. "int8": the same
    without fp32, or the closest if none passes. "fp32": fp32. Raises InstallFailed if int8 was requested and there is
    none, or none above FLOOR.
    """
    plain = next(candidate for candidate in measured if candidate.name == FP32)
    quantised = [candidate for candidate in measured if candidate is not plain]
    if precision == FP32:
        return plain
    passing = [candidate for candidate in quantised if candidate.passes(threshold)]
    if passing:
        least = min(candidate.milliseconds for candidate in passing)
        if precision == "auto" and least > WORTH_THE_MEMORY * plain.milliseconds + NOISE_MS:
            return plain
        return min((c for c in passing if c.milliseconds <= SAME_TIME * least), key=lambda c: c.size)
    if precision == "auto":
        return plain
    if not quantised:
        raise InstallFailed("there is nothing to quantise in this model: install it with --precision fp32")
    best = max(quantised, key=lambda candidate: candidate.worst_cosine)
    if best.worst_cosine < FLOOR:
        raise InstallFailed(
            f"int8 would change this model's results too much: worst cosine {best.worst_cosine:.3f} to the original,"
            f" at least {FLOOR} is needed: install it with --precision fp32"
        )
    return best
