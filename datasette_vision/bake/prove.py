"""Candidates for a tower, compared with the original over calibration inputs, timed, and one of them chosen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine.runtime import OnnxSession
from datasette_vision.errors import EngineFailure, InstallFailed, ModelCorrupt

ModelInputs = Mapping[str, NDArray[Any]]

FP32 = "fp32"
# An exact translation differs by rounding alone.
EXACT_COSINE = 0.99999
EXACT_NORM = 0.001
# Below this an embedding is another embedding, whoever asked for int8.
FLOOR = 0.9
ROUNDS = 15
# Two candidates this close are equally fast: the smaller one is taken.
SAME_TIME = 1.05


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
        """Return what the manifest keeps."""
        return {
            "name": self.name,
            "worst_cosine": round(self.worst_cosine, 6),
            "mean_cosine": round(self.mean_cosine, 6),
            "norm_difference": round(self.norm_difference, 6),
            "milliseconds": round(self.milliseconds, 2),
            "size": self.size,
        }


def measure(
    candidates: Mapping[str, Path],
    output: str,
    samples: Sequence[ModelInputs],
    reference: NDArray[np.float32],
    timed: ModelInputs,
    rounds: int = ROUNDS,
) -> list[Measured]:
    """Run every candidate over `samples`, one at a time, and time it on `timed`, the candidates turn about.

    A quantised one that this ONNX Runtime cannot run is left out; fp32 then raises ModelCorrupt or EngineFailure.
    """
    sessions: dict[str, OnnxSession] = {}
    found: dict[str, NDArray[np.float32]] = {}
    for name, path in candidates.items():
        try:
            session = OnnxSession(path, inputs=tuple(timed), output=output)
            found[name] = np.concatenate([session.run(sample) for sample in samples])
            sessions[name] = session
        except (ModelCorrupt, EngineFailure):
            if name == FP32:
                raise
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(timed)
            seconds[name].append(time.perf_counter() - started)
    measured = []
    for name in sessions:
        path = candidates[name]
        cosines, norms = compare(found[name], reference)
        measured.append(
            Measured(
                name,
                path,
                float(cosines.min()),
                float(cosines.mean()),
                float(np.abs(norms - 1).max()),
                1000 * median(seconds[name]),
                path.stat().st_size,
            )
        )
    return measured


def compare(
    found: NDArray[np.float32], reference: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, for each of n rows, the cosine to the reference and the ratio of the norms."""
    a, b = found.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / (norms[0] * norms[1]), norms[0] / norms[1]


def exact(measured: Measured) -> bool:
    """Say whether this is the original but for rounding."""
    return measured.worst_cosine >= EXACT_COSINE and measured.norm_difference <= EXACT_NORM


def choose(measured: Sequence[Measured], precision: str, threshold: float) -> Measured:
    """Return the candidate to keep.

    "auto": the fastest whose worst cosine reaches the threshold. "int8": the same among the quantised ones, or the
    closest of them where none reaches it. "fp32": fp32. Raises InstallFailed when int8 was asked for and there is none,
    or none above FLOOR.
    """
    plain = next(candidate for candidate in measured if candidate.name == FP32)
    quantised = [candidate for candidate in measured if candidate is not plain]
    if precision == FP32:
        return plain
    passing = [candidate for candidate in quantised if candidate.worst_cosine >= threshold]
    if precision == "auto":
        passing.append(plain)
    if passing:
        limit = SAME_TIME * min(candidate.milliseconds for candidate in passing)
        return min((c for c in passing if c.milliseconds <= limit), key=lambda c: c.size)
    if not quantised:
        raise InstallFailed("there is nothing to quantise in this model: install it with --precision fp32")
    best = max(quantised, key=lambda candidate: candidate.worst_cosine)
    if best.worst_cosine < FLOOR:
        raise InstallFailed(
            f"int8 would change this model's answers too much: worst cosine {best.worst_cosine:.3f} to the original,"
            f" at least {FLOOR} is needed: install it with --precision fp32"
        )
    return best
