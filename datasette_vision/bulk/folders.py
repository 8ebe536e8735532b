"""Finds the image files in folders, as they are named on a command line. Follows no links."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasette_vision.errors import Unreadable
from datasette_vision.images.formats import SUFFIXES, sniff

GLOB_CHARACTERS = re.compile(r"[*?\[]")
HEAD_BYTES = 4096


@dataclass(frozen=True)
class FoundImage:
    """An image file: its absolute path, size in bytes, and time of change in nanoseconds since 1970."""

    path: str
    size: int
    modified: int


@dataclass
class Walk:
    """A walk over folders, files and globs (`**` for folders below): iterate it for the image files.

    A file without a suffix is looked into. What is hidden, and what is a link, is passed over: a link within the
    folders leads to what is found anyway, and no other is followed. Meanwhile `skipped` counts the files that are no
    images, `links` the links, and `unreadable` names folders and files that could not be read, with the reason.

    Raises Unreadable, when it is made, for a path at which there is nothing.
    """

    paths: Sequence[str]
    skipped: int = 0
    links: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roots = _without_nested([Root.of(path) for path in self.paths])

    def __iter__(self) -> Iterator[FoundImage]:
        for root in self.roots:
            if root.is_file:
                yield from self._file(root.folder)
            else:
                yield from self._folder(root)

    def count(self) -> int:
        """Count the files that look like images, by their names alone: quick, and about right."""
        walk = Walk(self.paths)
        return sum(1 for root in walk.roots for _ in ([None] if root.is_file else walk._names(root)))

    def covers(self, path: str) -> bool:
        """Whether a file of this absolute path would have been found, were it there."""
        hidden = any(path == place or path.startswith(place + os.sep) for place, _ in self.unreadable)
        return not hidden and any(root.covers(path) for root in self.roots)

    def _folder(self, root: Root) -> Iterator[FoundImage]:
        for entry in self._names(root):
            try:
                if not os.path.splitext(entry.name)[1] and not _looks_like_an_image(entry.path):  # noqa: PTH122
                    self.skipped += 1
                    continue
                status = entry.stat(follow_symlinks=False)
            except OSError as error:
                self.unreadable.append((entry.path, error.strerror or str(error)))
                continue
            yield FoundImage(entry.path, status.st_size, status.st_mtime_ns)

    def _names(self, root: Root) -> Iterator[os.DirEntry[str]]:
        """Yield the files that may be images, a folder's before those of the folders in it, each by name."""
        folders = [root.folder]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self.unreadable.append((folder, error.strerror or str(error)))
                continue
            below = []
            for entry in inside:
                if entry.name.startswith("."):
                    self.skipped += 1
                elif entry.is_symlink():
                    self.links += 1
                elif entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) or not _may_be_an_image(entry.name):
                    self.skipped += 1
                elif root.covers(entry.path):
                    yield entry
            folders += reversed(below)

    def _file(self, path: str) -> Iterator[FoundImage]:
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError as error:
            self.unreadable.append((path, error.strerror or str(error)))
        else:
            yield FoundImage(path, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Root:
    """Where to look: a folder, a file, or the part of a folder that a pattern describes."""

    folder: str
    is_file: bool = False
    pattern: re.Pattern[str] | None = None

    @classmethod
    def of(cls, path: str) -> Root:
        """Read what a person typed. The links on the way there are the person's own, and are followed."""
        place = Path(path).expanduser()
        if place.is_file():
            return cls(str(place.resolve()), is_file=True)
        if place.is_dir():
            return cls(str(place.resolve()))
        parts = place.parts
        first = next((number for number, part in enumerate(parts) if GLOB_CHARACTERS.search(part)), len(parts))
        folder = Path(*parts[:first])
        if first == len(parts) or not folder.is_dir():
            raise Unreadable(f"{path}: there is no such folder or file")
        base = str(folder.resolve())
        return cls(base, pattern=re.compile(re.escape(base.rstrip(os.sep)) + _expression(parts[first:])))

    def covers(self, path: str) -> bool:
        """Whether an absolute path is one to be found here."""
        if self.is_file:
            return path == self.folder
        if self.pattern is not None:
            return self.pattern.fullmatch(path) is not None
        return path.startswith(self.folder.rstrip(os.sep) + os.sep)


def _without_nested(roots: list[Root]) -> list[Root]:
    """Leave out what is in a folder that is walked as a whole anyway."""
    whole = {root.folder for root in roots if not root.is_file and root.pattern is None}
    kept: dict[tuple[str, str], Root] = {}
    for root in roots:
        inside = any(str(parent) in whole for parent in Path(root.folder).parents)
        if not inside and (root.pattern is None or root.folder not in whole):
            kept[root.folder, root.pattern.pattern if root.pattern else ""] = root
    return list(kept.values())


def _expression(parts: Sequence[str]) -> str:
    """Write a glob as a regular expression over what comes after its folder."""
    separator = re.escape(os.sep)
    result = ""
    for number, part in enumerate(parts):
        if part == "**":
            result += (
                f"(?:{separator}[^{separator}]+)*" if number < len(parts) - 1 else f"(?:{separator}[^{separator}]+)+"
            )
            continue
        result += separator
        position = 0
        while position < len(part):
            character = part[position]
            closing = part.find("]", position + 2) if character == "[" else -1
            if character in "*?":
                result += f"[^{separator}]" + ("*" if character == "*" else "")
            elif closing > 0:
                inside = part[position + 1 : closing].replace("\\", r"\\").replace("[", r"\[")
                result += "[" + ("^" + inside[1:] if inside[0] == "!" else inside.replace("^", r"\^")) + "]"
                position = closing
            else:
                result += re.escape(character)
            position += 1
    return result


def _may_be_an_image(name: str) -> bool:
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return not suffix or suffix in SUFFIXES


def _looks_like_an_image(path: str) -> bool:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return sniff(file.read(HEAD_BYTES)) is not None
