"""Installs, checks and removes models. All work is done in a staging folder, which is renamed when it is complete."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasette_vision.errors import InstallFailed, InvalidArgument, ModelCorrupt, SourceNotFound, UnknownModel
from datasette_vision.install import hub, manifest_drafts, sources, staging, trial
from datasette_vision.install.origins import LocalFolder, OneGraph, Origin, read_json
from datasette_vision.install.requests import COMMIT, REPOSITORY, Request, is_path, location, name_of
from datasette_vision.models import catalog, digests, manifest
from datasette_vision.models.leftovers import leftovers
from datasette_vision.models.manifest import NAME_PATTERN
from datasette_vision.models.store import InstalledModel, ModelStore
from datasette_vision.models.tasks import IMAGE_CLASSIFICATION
from datasette_vision.util.progress import OnProgress

NO_BAKE = "{location} holds PyTorch weights: exporting them is not possible here"

Bake = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Installed:
    """An installed model, and whether it was installed before."""

    model: InstalledModel
    already_there: bool


@dataclass(frozen=True)
class Installer:
    """Installs into one models folder. `bake` exports PyTorch weights; without it, they are refused."""

    models_dir: Path
    on_progress: OnProgress[str]
    bake: Bake | None = None
    store: ModelStore = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", ModelStore(self.models_dir))

    def install(self, request: Request) -> Installed:
        """Install a model, or do nothing if it is already installed from the same source. Raises InstallFailed and
        others.
        """
        row = None if is_path(request.source) else catalog.catalog_row(request.source)
        name = request.name or (row.name if row else name_of(request.source))
        if not NAME_PATTERN.fullmatch(name):
            raise InvalidArgument(
                f"--name: expected lower-case letters, digits, '.', '_' and '-', at most 64, found {name!r}"
            )
        if is_path(request.source) and not Path(request.source).expanduser().exists():
            raise SourceNotFound(f"{request.source}: no such folder or file")
        if not (is_path(request.source) or row or REPOSITORY.fullmatch(request.source)):
            raise SourceNotFound(
                f"{request.source!r}: not a local folder or file, not a repository owner/name, and not in the catalogue"
                f" ({', '.join(row.name for row in catalog.CATALOG)})"
            )
        target = self.models_dir / name
        whole = (target / "manifest.json").is_file() and not leftovers(self.models_dir, name)
        if whole and not request.force:  # also if nothing can be written, as in a container
            with contextlib.suppress(InstallFailed), staging.writing(self.models_dir):
                staging.clear_up(self.models_dir, self.on_progress)
            return Installed(self._already_there(name, request, row), already_there=True)
        with staging.held(self.models_dir, name, self.on_progress):
            if target.exists() and not request.force:
                return Installed(self._already_there(name, request, row), already_there=True)
            with staging.writing(self.models_dir), staging.staged(self.models_dir, name) as folder:
                origins = _Origins(self, request, row)
                try:
                    self._finish(self._draft(origins, request, row, folder), name, folder)
                except ModelCorrupt as error:
                    raise InstallFailed(f"{name} cannot be used: {_without(folder, str(error))}") from None
                staging.put_in_place(folder, target)
                origins.forget()
        with staging.writing(self.models_dir):
            staging.clear_up(self.models_dir, self.on_progress)
        return Installed(self.store.find(name), already_there=False)

    def remove(self, name: str) -> None:
        """Remove an installed model. Raises UnknownModel, or InvalidArgument for a bundled one."""
        target = check_removable(self.models_dir, name)
        with staging.held(self.models_dir, name, self.on_progress):
            if not target.exists():
                raise UnknownModel(f"{name} no longer exists")
            staging.take_away(target)

    def _already_there(self, name: str, request: Request, row: catalog.CatalogRow | None) -> InstalledModel:
        try:
            model = self.store.find(name)
        except (UnknownModel, ModelCorrupt) as error:
            raise InstallFailed(
                f"{self.models_dir / name} exists but is damaged ({error}): --force replaces it"
            ) from None
        origin, precision = model.manifest.source, model.manifest.precision
        wanted = row.source if row else location(request.source)
        same = wanted in origin.location.split(" + ") or wanted == origin.location
        commit = request.revision if request.revision and COMMIT.fullmatch(request.revision) else ""
        if not same or request.precision not in {"auto", precision} or not (origin.revision or "").startswith(commit):
            raise InstallFailed(
                f"{name} is already installed from {origin.location} ({precision}): --force replaces it, --name gives"
                " this one another name"
            )
        return model

    def _draft(
        self, origins: _Origins, request: Request, row: catalog.CatalogRow | None, folder: Path
    ) -> manifest_drafts.Draft:
        task = request.task or (row.task if row and row.task == IMAGE_CLASSIFICATION else None)
        layout = sources.recognise(origins.first, task, origins.open, origins.text)
        wishes = manifest_drafts.Wishes(request.precision, request.calibration, request.labels, request.preprocess, row)
        if request.labels and not isinstance(layout, sources.Classifier):
            raise InvalidArgument("--labels: only for a classifier's graph")
        if request.preprocess and isinstance(layout, sources.Finished | sources.Weights):
            raise InvalidArgument("--preprocess: this source defines its own preprocessing")
        if isinstance(layout, sources.Finished):
            return _copy_finished(layout.origin, folder, request.precision)
        if isinstance(layout, sources.Towers):
            return manifest_drafts.from_towers(layout, wishes, folder, self.on_progress)
        if isinstance(layout, sources.Classifier):
            return manifest_drafts.from_classifier(layout, wishes, folder, self.on_progress)
        return self._bake(layout.origin, request, wishes, folder)

    def _bake(
        self, origin: Origin, request: Request, wishes: manifest_drafts.Wishes, folder: Path
    ) -> manifest_drafts.Draft:
        if self.bake is None:
            raise InstallFailed(NO_BAKE.format(location=origin.location))
        weights = folder / "weights"
        needed = sources.needed_for_export(origin)
        if isinstance(origin, LocalFolder) and type(origin) is LocalFolder:
            weights = origin.folder
        else:
            for name in needed:
                staging.link_or_copy(origin, name, weights / name)
        self.on_progress(f"Exporting {origin.location}")
        draft = self.bake(
            weights,
            folder,
            task=request.task,
            precision=request.precision,
            calibration=request.calibration,
            on_progress=self.on_progress,
        )
        if weights.parent == folder:
            shutil.rmtree(weights)
        head = manifest_drafts.head(draft.get("task", ""), [origin], wishes.row)
        return {**draft, "source": head["source"], "description": draft.get("description") or head["description"]}

    def _finish(self, draft: manifest_drafts.Draft, name: str, folder: Path) -> None:
        """Test the model in the staging folder, record its results, and write its manifest last."""
        value = {**draft, "name": name, "files": list_files(folder), "canonical": draft.get("canonical") or {}}
        model = InstalledModel(manifest.parse_manifest(value, f"{name}: manifest"), folder)
        self.on_progress("Checking that it loads and works")
        trial.verify(model)
        value["canonical"] = {**trial.answers(model), **value["canonical"]}
        path = folder / "manifest.json"
        path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")
        manifest.read_manifest(folder)


class _Origins:
    """The origins of one install: opened when needed; their downloads are removed when it is done."""

    def __init__(self, installer: Installer, request: Request, row: catalog.CatalogRow | None) -> None:
        self._installer = installer
        self._opened: list[Origin] = []
        path = Path(request.source).expanduser()
        self.text = self.open(row.text_source) if row and row.text_source else None
        if row is not None:
            try:
                self.first = self._open_hub(row.source, request.revision)
            except SourceNotFound as error:
                # Conversions may disappear; the original stays.
                raise SourceNotFound(
                    f"{error}. The original can be exported: datasette vision install {row.original} --name {row.name}"
                ) from None
        elif path.is_file():
            self.first = OneGraph(path.resolve())
        elif is_path(request.source):
            self.first = LocalFolder(path.resolve())
            self._beside = path.resolve().parent
        else:
            self.first = self._open_hub(request.source, request.revision)

    _beside: Path | None = None

    def open(self, location: str) -> Origin:
        """Open the repository, or the folder beside the first one, that holds the other tower."""
        if self._beside is not None:
            return LocalFolder(self._beside / location)
        return self._open_hub(location, None)

    def forget(self) -> None:
        """Remove downloads that are in the model's folder now."""
        for origin in self._opened:
            if isinstance(origin, hub.HubRepository):
                origin.forget()

    def _open_hub(self, repository: str, revision: str | None) -> Origin:
        downloads = self._installer.models_dir / ".downloads"
        origin = hub.open_repository(repository, revision, downloads, self._installer.on_progress)
        self._opened.append(origin)
        return origin


def list_files(folder: Path) -> list[dict[str, Any]]:
    """Return path, size and SHA-256 of every file below a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.append(
                {
                    "path": path.relative_to(folder).as_posix(),
                    "size": path.stat().st_size,
                    "sha256": digests.sha256(path),
                }
            )
    return found


def _copy_finished(origin: Origin, folder: Path, precision: str) -> manifest_drafts.Draft:
    """Copy a finished model, each file checked against its manifest. Raises ModelCorrupt."""
    value = read_json(origin, "manifest.json")
    found = manifest.parse_manifest(value, f"{origin.location}: manifest.json")
    if precision not in {"auto", found.precision}:
        raise InstallFailed(f"{origin.location}: no graph of precision {precision}: it is {found.precision}")
    for file in found.files:
        staging.link_or_copy(origin, file.path, folder / file.path)
        InstalledModel(found, folder).path(file.path)
    return value


def _without(folder: Path, message: str) -> str:
    return message.replace(f"{folder}/", "")


def check_removable(models_dir: Path, name: str) -> Path:
    """Return the folder of a model that can be removed.

    Raises UnknownModel, or InvalidArgument for a bundled model.
    """
    if NAME_PATTERN.fullmatch(name) and (models_dir / name).is_dir():
        return models_dir / name
    model = ModelStore(models_dir).find(name)
    if model.folder.parent != models_dir:
        raise InvalidArgument(f"{name} is bundled with the package and cannot be removed by itself")
    return models_dir / name  # interrupted in the middle of a replacement
