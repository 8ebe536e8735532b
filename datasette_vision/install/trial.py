"""Records a model's expected results, and verifies them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from datasette_vision.engine.encoder import load_on
from datasette_vision.engine.tasks.registry import task_of
from datasette_vision.engine.tasks.task import CanonicalCheck
from datasette_vision.errors import ModelCorrupt
from datasette_vision.install import samples
from datasette_vision.install.prove import Rows, compare
from datasette_vision.models.store import InstalledModel

# The allowed difference of a recorded embedding (1 - cosine): quantised graphs round differently on different CPUs.
TOLERANCE = {"fp32": 0.001}
TOLERANCE_QUANTISED = 0.02


def answers(model: InstalledModel) -> dict[str, Any]:
    """Return the model's results for the canonical text and image: the manifest's `canonical`.

    Reads every file and loads every graph. Raises ModelCorrupt, InstallFailed or EngineFailure.
    """
    result: dict[str, Any] = {"picture": samples.CANONICAL_PICTURE}
    for check in _checks(model, samples.CANONICAL_TEXT):
        if check.what == "text":
            result["text"] = samples.CANONICAL_TEXT
        result[check.key] = samples.rounded(check.answer())
    return result


def verify(model: InstalledModel) -> list[str]:
    """Check every digest, then the model's results against the recorded ones; return a line for each check.

    Raises ModelCorrupt, naming the file.
    """
    manifest = model.manifest
    for file in manifest.files:
        model.path(file.path)
    count, size = len(manifest.files), sum(file.size for file in manifest.files)
    lines = [f"{count} {'file is what it was' if count == 1 else 'files are what they were'} ({size:,} bytes)"]
    recorded = manifest.canonical
    tolerance = TOLERANCE.get(manifest.precision, TOLERANCE_QUANTISED)
    is_known = {"text": "text" in recorded, "picture": recorded.get("picture") == samples.CANONICAL_PICTURE}
    for check in _checks(model, recorded.get("text", samples.CANONICAL_TEXT)):
        if check.key in recorded and is_known[check.what]:
            lines.append(_same(model.folder / check.file, check.what, recorded[check.key], check.answer(), tolerance))
    return lines


def _checks(model: InstalledModel, text: str) -> Iterable[CanonicalCheck]:
    picture = model.manifest.preprocess(samples.canonical_picture())
    return task_of(model.manifest.task).checks(model, load_on(None), picture, text)


def _same(path: Path, what: str, recorded: Any, found: Rows, tolerance: float) -> str:
    try:
        expected = np.array(recorded, dtype=np.float32)
        fits = expected.ndim == 1 and 0 < len(expected) <= len(found)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ModelCorrupt(f"{path}: the recorded embedding of the canonical {what} is not one of this model")
    # The recorded embedding may be a prefix: the bundled model's manifest has eight values.
    cosine = float(compare(found[None, : len(expected)], expected[None])[0][0])
    if not cosine >= 1 - tolerance:
        raise ModelCorrupt(
            f"{path}: the canonical {what} no longer gives what was recorded: cosine {cosine:.4f},"
            f" expected at least {1 - tolerance:.4f}"
        )
    return f"the canonical {what} gives what was recorded (cosine {cosine:.6f})"
