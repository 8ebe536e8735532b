"""Sends models to other machines: packs the parts that embedding images depends on, and unpacks them."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from datasette_vision.errors import VisionError
from datasette_vision.models.manifest import Manifest
from datasette_vision.models.store import InstalledModel, ModelStore
from datasette_vision.models.weights import files_of_graph


@dataclass(frozen=True)
class Package:
    """A model's manifest and the files of its image tower, by path."""

    name: str
    fingerprint: str
    files: dict[str, bytes]


def fingerprint(manifest: Manifest) -> str:
    """Return a SHA-256 of everything that determines embeddings of images: the image tower's files and preprocessing.

    It does not depend on when and with what the model was installed: two machines may have installed the same one.
    """
    digests = {name: manifest.file(name).sha256 for name in image_files(manifest)}
    return hashlib.sha256(json.dumps([digests, repr(manifest.image), repr(manifest.preprocess)]).encode()).hexdigest()


def image_files(manifest: Manifest) -> list[str]:
    """Return the paths of the image tower's files: the graph, and files that may hold its weights."""
    return files_of_graph(manifest.image.file, [file.path for file in manifest.files])


def pack(model: InstalledModel) -> Package:
    """Read the parts of a model that another machine needs. Raises ModelCorrupt."""
    manifest = model.manifest
    model.path(manifest.image.file)  # checks all of them
    names = ["manifest.json", *image_files(manifest)]
    return Package(manifest.name, fingerprint(manifest), {name: (model.folder / name).read_bytes() for name in names})


def has(store: ModelStore, name: str, wanted: str) -> bool:
    """Whether a models folder has this model, with this fingerprint."""
    try:
        return fingerprint(store.find(name).manifest) == wanted
    except VisionError:
        return False


def default_folder() -> Path:
    """Return the folder for received models: a separate part of the temporary folder for each user."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"datasette-vision-{user}"


def unpack(package: Package, folder: Path | None = None) -> ModelStore:
    """Unpack a package below `folder` (default_folder()) unless it is already there; return its path.

    Several processes on a machine may do this at the same time: each sees it completely or not at all.
    """
    folder = folder or default_folder()
    target = folder / package.fingerprint
    store = ModelStore(target)
    if not has(store, package.name, package.fingerprint):
        staging = folder / f".{package.fingerprint}-{secrets.token_hex(4)}"
        for name, content in package.files.items():
            path = staging / package.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            staging.rename(target)
        except OSError:  # another process was first
            if not has(store, package.name, package.fingerprint):
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return store
