"""The sources of a model's files: a local folder, or a repository on the hub. Both list names and return paths."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

from datasette_vision.errors import InstallFailed, SourceNotFound, VisionError

UNKNOWN_LICENCE = "not stated"
# A model has no files below this depth, but the folder may be somebody's home.
MAX_DEPTH = 3
MAX_FILES = 10_000


class Origin(Protocol):
    """Files by name ("onnx/model.onnx"), with the information about their source for the manifest."""

    @property
    def location(self) -> str:
        """The repository, or the folder."""

    @property
    def revision(self) -> str | None:
        """The commit, if there is one."""

    @property
    def licence(self) -> str:
        """The licence according to the source."""

    @property
    def names(self) -> frozenset[str]:
        """The names of the files."""

    def file(self, name: str) -> Path:
        """Return the path of a file, downloaded and checked if necessary. Raises InstallFailed."""


class LocalFolder:
    """A folder on this machine."""

    revision = None

    def __init__(self, folder: Path) -> None:
        """Read the folder. Raises SourceNotFound if it cannot be read."""
        self.folder = folder
        self.location = folder.name
        try:
            self.names = frozenset(_walk(folder, folder, 0))
        except OSError as error:
            raise SourceNotFound(f"{folder}: cannot be read: {error.strerror}") from None

    @property
    def licence(self) -> str:
        """The licence in the front matter of README.md, as on the hub."""
        if "README.md" in self.names:
            text = (self.folder / "README.md").read_text("utf-8", "replace")
            if match := re.match(r"---\n(?:.*\n)*?license:[ \t]*(\S+)", text[:10_000]):
                return match[1]
        return UNKNOWN_LICENCE

    def file(self, name: str) -> Path:
        """Return the path of a file."""
        if name not in self.names:
            raise SourceNotFound(f"{self.folder / name}: no such file")
        return self.folder / name


class OneGraph(LocalFolder):
    """A local graph, and the files in its folder that describe it."""

    def __init__(self, path: Path) -> None:
        """Find the files beside it. Raises SourceNotFound if it is not a graph."""
        if path.suffix != ".onnx":
            raise SourceNotFound(f"{path}: expected a folder, or a graph that ends in .onnx")
        super().__init__(path.parent)
        self.location = path.name
        beside = {name for name in self.names if "/" not in name and not name.endswith(".onnx")}
        self.names = frozenset({path.name, *beside} - {"manifest.json"})


def _walk(folder: Path, root: Path, depth: int) -> list[str]:
    found: list[str] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += _walk(entry, root, depth + 1) if depth < MAX_DEPTH else []
        else:
            found.append(entry.relative_to(root).as_posix())
        if len(found) > MAX_FILES:
            raise SourceNotFound(f"{root}: more than {MAX_FILES:,} files: this is not the folder of a model")
    return found


def read_json(origin: Origin, name: str) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if there is no such file. Raises InstallFailed."""
    if name not in origin.names:
        return {}
    return read_object(origin.file(name), f"{origin.location}: {name}", InstallFailed)


def read_object(path: Path, where: str, error: type[VisionError]) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `error`, saying `where`, for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror}") from None
    except (ValueError, RecursionError):
        raise error(f"{where}: expected JSON, found something else") from None
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object")
    return value
