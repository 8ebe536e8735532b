"""Compares candidates for a tower with the original over the samples, times them, and chooses one.

Used both for models that come as graphs and for models baked from PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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

FP32 = "fp32"
# The threshold for a quantised tower: its worst cosine to the original.
THRESHOLD = 0.99
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

    def report(self) -> dict[str, Any]:
        """Return the measurements for the manifest."""
        return {
            "name": self.name,
            "worst_cosine": round(self.worst_cosine, 6),
            "mean_cosine": round(self.mean_cosine, 6),
            "norm_difference": round(self.norm_difference, 6),
            "milliseconds": round(self.milliseconds, 2),
            "size": self.size,
        }


def prove(
    candidates: Mapping[str, Path],
    load: Callable[[Path], Run],
    samples: Sequence[ModelInputs],
    timed: ModelInputs,
    *,
    reference: Rows | None = None,
    precision: str = "auto",
    threshold: float = THRESHOLD,
) -> tuple[Measured, dict[str, Any]]:
    """Measure all candidates and choose one: returns it, and the report on all of them for the manifest.

    See measure() and choose() for the arguments and errors.
    """
    measured = measure(candidates, load, samples, timed, reference)
    kept = choose(measured, precision, threshold)
    return kept, {
        "kept": kept.name,
        "worst_cosine": round(kept.worst_cosine, 6),
        "mean_cosine": round(kept.mean_cosine, 6),
        "samples": len(samples),
        "candidates": [candidate.report() for candidate in measured],
    }


def measure(
    candidates: Mapping[str, Path],
    load: Callable[[Path], Run],
    samples: Sequence[ModelInputs],
    timed: ModelInputs,
    reference: Rows | None = None,
    rounds: int = ROUNDS,
) -> list[Measured]:
    """Run every candidate over `samples`, one at a time, and time it on `timed`, alternating between the candidates.

    `reference` holds the original's results, (n, d); by default those of fp32, which comes first. A quantised candidate
    that this ONNX Runtime cannot run is left out; fp32 raises the errors of `load` and of running it.
    """
    runs: dict[str, Run] = {}
    found: dict[str, Rows] = {}
    for name, path in candidates.items():
        try:
            run = load(path)
            found[name] = np.concatenate([run(sample) for sample in samples])
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
            )
        )
    return measured


def compare(found: Rows, reference: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, for each of n rows, the cosine to the reference and the ratio of the norms."""
    a, b = found.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / (norms[0] * norms[1]), norms[0] / norms[1]


def exact(measured: Measured) -> bool:
    """Say whether this equals the original except for rounding."""
    return measured.worst_cosine >= EXACT_COSINE and measured.norm_difference <= EXACT_NORM


def choose(measured: Sequence[Measured], precision: str, threshold: float) -> Measured:
    """Return the candidate to keep.

    "auto": the fastest quantised one whose worst cosine reaches the threshold, unless fp32 is worth its memory; fp32 if
    none does. "int8": the same without fp32, or the closest if none reaches it. "fp32": fp32. Raises InstallFailed if
    int8 was requested and there is none, or none above FLOOR.
    """
    plain = next(candidate for candidate in measured if candidate.name == FP32)
    quantised = [candidate for candidate in measured if candidate is not plain]
    if precision == FP32:
        return plain
    passing = [candidate for candidate in quantised if candidate.worst_cosine >= threshold]
    if passing:
        least = min(candidate.milliseconds for candidate in passing)
        if precision == "auto" and least > WORTH_THE_MEMORY * plain.milliseconds:
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
