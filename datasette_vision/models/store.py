"""The folder of installed models, and behind it the bundled one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from datasette_vision.errors import ModelCorrupt, UnknownModel
from datasette_vision.models import digests
from datasette_vision.models import manifest as manifests
from datasette_vision.models.leftovers import leftovers, replaced_name
from datasette_vision.models.manifest import Manifest, ModelFile
from datasette_vision.models.weights import files_of_graph

BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class InstalledModel:
    """A model on disk: its manifest and its folder."""

    manifest: Manifest
    folder: Path

    def path(self, name: str) -> Path:
        """Return the path of a file of the model, after checking its content against the manifest.

        For a graph, the files with its weights are checked too: by name, or because they are in its folder below the
        model's. Raises ModelCorrupt if one is missing, or has another size or digest.
        """
        for other in files_of_graph(name, [file.path for file in self.manifest.files]):
            if other != name:
                self._check(self.manifest.file(other))
        return self._check(self.manifest.file(name))

    def _check(self, file: ModelFile) -> Path:
        path = self.folder / file.path
        try:
            size = path.stat().st_size
            if size != file.size:
                raise ModelCorrupt(f"{path}: expected {file.size:,} bytes, found {size:,}")
            digest = digests.sha256(path)
        except OSError as error:
            raise ModelCorrupt(f"{path}: cannot be read: {error.strerror}") from None
        if digest != file.sha256:
            raise ModelCorrupt(f"{path}: expected the SHA-256 {file.sha256[:12]}…, found {digest[:12]}…")
        return path


def default_models_dir() -> Path:
    """Return DATASETTE_VISION_MODELS, or a folder in the user's cache directory."""
    chosen = os.environ.get("DATASETTE_VISION_MODELS")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("datasette-vision")) / "models"


class ModelStore:
    """Finds models by name. A model in `models_dir` takes precedence over a bundled one of the same name."""

    def __init__(self, models_dir: Path | None = None, bundled: Path = BUNDLED) -> None:
        self.models_dir = models_dir if models_dir is not None else default_models_dir()
        self.bundled = bundled

    def names(self) -> list[str]:
        """Return the names of the installed models, sorted."""
        names = set()
        for root in (self.models_dir, self.bundled):
            try:
                entries = list(root.iterdir())
            except OSError:
                continue
            names |= {entry.name for entry in entries if self._is_model(entry)}
            names |= {name for name in map(replaced_name, entries) if name and self._folder(root, name)}
        return sorted(names)

    def find(self, name: str) -> InstalledModel:
        """Read the model of this name.

        Raises UnknownModel, listing the installed ones, or ModelCorrupt if its manifest cannot be read.
        """
        if manifests.NAME_PATTERN.fullmatch(name):
            for root in (self.models_dir, self.bundled):
                folder = self._folder(root, name)
                if folder is not None:
                    manifest = manifests.read_manifest(folder)
                    if manifest.name != name:
                        raise ModelCorrupt(f"{folder / 'manifest.json'}: name: expected {name}, found {manifest.name}")
                    return InstalledModel(manifest, folder)
        shown = name if len(name) <= 64 else name[:64] + "…"
        raise UnknownModel(f"no model {shown!r} is installed; installed are: {', '.join(self.names()) or 'none'}")

    def _folder(self, root: Path, name: str) -> Path | None:
        """Return the model's folder, or the one beside it while it is being replaced."""
        if self._is_model(root / name):
            return root / name
        for entry, kind in leftovers(root, name):
            if kind == "old" and (entry / "manifest.json").is_file() and not (root / name).exists():
                return entry
        return None

    @staticmethod
    def _is_model(folder: Path) -> bool:
        try:
            return bool(manifests.NAME_PATTERN.fullmatch(folder.name)) and (folder / "manifest.json").is_file()
        except OSError:
            # A folder that this user may not read, such as another user's home: the bundled model still works.
            return False
