"""Recognises the kind of PyTorch model in a folder, and loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasette_vision.bake import classifiers, dual_encoders
from datasette_vision.bake.original import Original
from datasette_vision.errors import InstallFailed, SourceNotFound
from datasette_vision.models.tasks import DUAL_ENCODER, IMAGE_CLASSIFICATION

DUAL_ENCODERS = {
    "clip": dual_encoders.load_clip,
    "siglip": dual_encoders.load_siglip,
}


def load(source: Path, task: str | None) -> Original:
    """Load the model in a folder of transformers or of sentence-transformers.

    Raises SourceNotFound if there is none, InstallFailed if it is of a kind that cannot be baked.
    """
    folder = transformers_folder(source)
    config = _read(folder / "config.json")
    kind = str(config.get("model_type"))
    if task != IMAGE_CLASSIFICATION and kind in DUAL_ENCODERS:
        return DUAL_ENCODERS[kind](folder)
    classes = [str(name) for name in config.get("architectures") or []]
    if task != DUAL_ENCODER and any("ForImageClassification" in name for name in classes):
        return classifiers.load_classifier(folder)
    known = ", ".join(DUAL_ENCODERS)
    raise InstallFailed(
        f"{folder}: expected a dual encoder ({known}) or a model for image classification,"
        f" found {', '.join(classes) or kind}"
    )


def transformers_folder(source: Path) -> Path:
    """Return the folder with config.json: `source`, or that of the only module of a sentence-transformers folder."""
    modules = source / "modules.json"
    if modules.is_file():
        entries = _read(modules)
        paths = [source / str(entry.get("path", "")) for entry in entries]
        if len(paths) != 1:
            raise InstallFailed(f"{source}: sentence-transformers models of {len(paths)} modules have no image tower")
        source = paths[0]
    if not (source / "config.json").is_file():
        raise SourceNotFound(f"{source}: expected a folder with config.json, found none")
    return source


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InstallFailed(f"{path}: cannot be read: {error}") from None
