"""Install requests: a source as the user writes it, and the name of the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from datasette_vision.models import catalog, manifest

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class Request:
    """An install request from the command line."""

    source: str
    name: str | None = None
    precision: str = "auto"
    revision: str | None = None
    force: bool = False
    calibration: Path | None = None
    task: str | None = None
    labels: Path | None = None
    preprocess: str | None = None


def location(source: str) -> str:
    """Return the source for the manifest: the name of a folder, or the original source of a model in it."""
    if not is_path(source):
        return source
    folder = Path(source).expanduser().resolve()
    if (folder / "manifest.json").is_file():
        return manifest.read_manifest(folder).source.location
    return folder.name


def is_path(source: str) -> bool:
    """Whether a source is local: it is written as a path, or it exists and is not a name in the catalogue."""
    if source.startswith((".", "/", "~")) or "\\" in source:
        return True
    return catalog.catalog_row(source) is None and Path(source).exists()


def name_of(source: str) -> str:
    """Derive a name from a repository, folder or file: Qdrant/clip-ViT-B-32-vision -> clip-vit-b-32."""
    path = Path(source)
    last = (path.resolve() if is_path(source) else path).name.removesuffix(".onnx")
    plain = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._")
    return re.sub(r"-(vision|text|onnx)$", "", plain)[:64] or "model"
