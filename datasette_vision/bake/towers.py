"""From one PyTorch tower to the graph that is kept: exports, fuses, quantises in several ways, and compares."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datasette_vision.bake import quantise
from datasette_vision.bake.export import export, exportable
from datasette_vision.bake.fuse import fuse
from datasette_vision.bake.graph import OnnxGraph
from datasette_vision.engine.runtime import OnnxSession
from datasette_vision.errors import EngineFailure, InstallFailed, ModelCorrupt
from datasette_vision.install.prove import FP32, Measured, ModelInputs, Ranked, Run, exact, measure, no_inputs, prove
from datasette_vision.util.progress import OnProgress

# PyTorch gets this many inputs of one shape at a time, so that its threads wait less for each other.
BATCH = 8


@dataclass(frozen=True)
class Wish:
    """The user's options."""

    precision: str
    threshold: float
    on_progress: OnProgress[str]


@dataclass(frozen=True)
class TowerToBake:
    """A tower of a model, and the samples to test it with."""

    name: str  # "image" or "text", also in the name of the file
    model: Any
    module: torch.nn.Module
    output: str
    samples: list[ModelInputs]
    timed: ModelInputs
    dynamic: dict[str, dict[int, str]]
    # What the ranges of activations are found by: no samples.
    ranges: Callable[[], Iterator[ModelInputs]]
    # Images whose neighbours are compared; none where there are no embeddings of images.
    ranked: Ranked = no_inputs

    def reference(self) -> NDArray[np.float32]:
        """Compute the original's results for the samples: (n, d)."""
        answers = []
        with torch.no_grad():
            for _, alike in itertools.groupby(self.samples, lambda sample: [value.shape for value in sample.values()]):
                rows = list(alike)
                for start in range(0, len(rows), BATCH):
                    part = rows[start : start + BATCH]
                    inputs = [np.concatenate(values) for values in zip(*(row.values() for row in part), strict=True)]
                    answers.append(self.module(*map(torch.from_numpy, inputs)).numpy())
        return np.concatenate(answers)

    def load(self, path: Path) -> Run:
        """Return a function that runs a graph of this tower."""
        return OnnxSession(path, inputs=tuple(self.timed), output=self.output).run

    def export(self, path: Path) -> None:
        """Export the tower unchanged to `path`, traced on two inputs at once."""
        example = {name: torch.from_numpy(np.concatenate([value, value])) for name, value in self.timed.items()}
        with exportable(self.model):
            export(self.module, example, self.output, path, self.dynamic)


def bake_tower(tower: TowerToBake, wish: Wish, staging: Path, work: Path) -> tuple[Measured, dict[str, Any]]:
    """Put the best graph into the staging folder; return its measurements and the report on all candidates.

    Raises InstallFailed if no graph reproduces the original's results, or none of the wanted precision does.
    """
    on_progress = wish.on_progress
    on_progress(f"{tower.name} tower: computing {len(tower.samples)} answers with PyTorch")
    reference = tower.reference()
    on_progress(f"{tower.name} tower: exporting")
    exported = work / f"{tower.name}-exported.onnx"
    tower.export(exported)
    plain = _translate(tower, exported, reference, work)
    exported.unlink()
    candidates = {FP32: plain}
    if wish.precision != FP32:
        on_progress(f"{tower.name} tower: quantising")
        candidates |= quantise.candidates(plain, tower.ranges, work)
    on_progress(f"{tower.name} tower: comparing and timing {', '.join(candidates)}")
    kept, report = prove(
        candidates,
        tower.load,
        tower.samples,
        tower.timed,
        reference=reference,
        ranked=tower.ranked,
        precision=wish.precision,
        threshold=wish.threshold,
    )
    OnnxGraph(kept.path).save(staging / f"{tower.name}.onnx", weights_apart=True)
    on_progress(
        f"{tower.name} tower: kept {kept.name}: worst cosine {kept.worst_cosine:.5f}, {kept.milliseconds:.1f} ms,"
        f" {kept.size / 1e6:.0f} MB"
    )
    return kept, report


def _translate(tower: TowerToBake, exported: Path, reference: NDArray[np.float32], work: Path) -> Path:
    """Return the path of the fp32 graph: fused, or without our own fusions if they do not fit the model."""
    reason = ""
    for lean in (True, False):
        path = work / f"{tower.name}-fp32.onnx"
        fuse(exported, path, lean=lean)
        try:
            found = measure({FP32: path}, tower.load, tower.samples, tower.timed, reference, rounds=1)[0]
        except (EngineFailure, ModelCorrupt) as error:
            reason = str(error)
            continue
        if exact(found):
            return path
        reason = f"worst cosine {found.worst_cosine:.6f}, norms differ by {found.norm_difference:.2%}"
    raise InstallFailed(f"the exported {tower.name} tower does not give the original's answers: {reason}")
