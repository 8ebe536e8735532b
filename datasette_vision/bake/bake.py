"""Turns PyTorch models into model folders: exports, fuses and quantises them, and checks that their results match.

Needs the extra `bake`. Nothing here is imported unless a model is baked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasette_vision.engine.runtime import without_telemetry
from datasette_vision.errors import InstallFailed, InvalidArgument
from datasette_vision.install.prove import THRESHOLD
from datasette_vision.models.tasks import FORMS
from datasette_vision.util.progress import OnProgress, no_progress

PRECISIONS = ("auto", "fp32", "int8")


def bake(
    source: Path,
    staging: Path,
    *,
    task: str | None = None,
    precision: str = "auto",
    threshold: float = THRESHOLD,
    calibration: Path | None = None,
    on_progress: OnProgress[str] = no_progress,
) -> dict[str, Any]:
    """Export the PyTorch model in folder `source` (transformers or sentence-transformers layout) into `staging`.

    Writes image.onnx and, for a dual encoder, text.onnx and tokenizer.json; returns the manifest without its keys name,
    files, source and canonical. Every precision is compared with the original over the images in `calibration` (or
    bundled ones) and bundled texts, and prove.choose() chooses. `on_progress` gets a line of text for each step. Raises
    InstallFailed or SourceNotFound, naming what is unsupported or missing, or InvalidArgument.
    """
    if precision not in PRECISIONS:
        raise InvalidArgument(f"precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}")
    if task is not None and task not in FORMS:
        raise InvalidArgument(f"task: expected one of {', '.join(FORMS)}, found {task!r}")
    without_telemetry()
    try:
        from datasette_vision.bake import baking, sources, towers  # heavy: torch and transformers
    except ImportError as error:
        raise InstallFailed(
            f"exporting a PyTorch model needs {error.name or error}: pip install 'datasette-vision[bake]'"
        ) from error
    on_progress("loading the PyTorch model")
    original = sources.load(source, task)
    wish = towers.Wish(precision, threshold, on_progress)
    return baking.Baker(original, staging, wish).bake(calibration)
