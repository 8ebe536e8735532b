"""Finds the image files in folders, as named on a command line. Does not follow links."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasette_vision.errors import Unreadable
from datasette_vision.images.formats import has_image_suffix, sniff
from datasette_vision.util.listing import FILE, LINK, glob_regex, local_entries, split_glob, walk

HEAD_BYTES = 4096


@dataclass(frozen=True)
class FoundImage:
    """An image file: its absolute path, size in bytes, and time of change in nanoseconds since 1970."""

    path: str
    size: int
    modified: int


@dataclass
class Walk:
    """A walk over folders, files and globs (util/listing.py). Iterate it for the image files.

    A file without a suffix is checked by its content. Hidden files and links are skipped: a link within the folders
    leads to files that are found anyway, and others are not followed. During the walk, `skipped` counts other files,
    `links` the links, and `unreadable` lists folders and files that could not be read, with the reason.

    The constructor raises Unreadable for a path that does not exist.
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
        """Count the files that look like images, by name only: fast, and approximate."""
        walk = Walk(self.paths)
        return sum(1 for root in walk.roots for _ in ([None] if root.is_file else walk._names(root)))

    def covers(self, path: str) -> bool:
        """Whether a file with this absolute path would be found if it existed."""
        hidden = any(path == place or path.startswith(place + os.sep) for place, _ in self.unreadable)
        return not hidden and any(root.covers(path) for root in self.roots)

    def _folder(self, root: Root) -> Iterator[FoundImage]:
        for path in self._names(root):
            try:
                if _has_no_suffix(path) and not _looks_like_an_image(path):
                    self.skipped += 1
                    continue
                status = os.lstat(path)
            except OSError as error:
                self.unreadable.append((path, error.strerror or str(error)))
                continue
            yield FoundImage(path, status.st_size, status.st_mtime_ns)

    def _names(self, root: Root) -> Iterator[str]:
        """Yield the paths of the files that may be images."""
        for path, kind in walk(root.folder, self._entries):
            if kind == LINK:
                self.links += 1
            elif kind != FILE or not (has_image_suffix(path) or _has_no_suffix(path)):
                self.skipped += 1
            elif root.covers(path):
                yield path

    def _entries(self, folder: str) -> list[tuple[str, str]]:
        try:
            return local_entries(folder)
        except OSError as error:
            self.unreadable.append((folder, error.strerror or str(error)))
            return []

    def _file(self, path: str) -> Iterator[FoundImage]:
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError as error:
            self.unreadable.append((path, error.strerror or str(error)))
        else:
            yield FoundImage(path, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Root:
    """A place to search: a folder, a file, or the part of a folder that a pattern describes."""

    folder: str
    is_file: bool = False
    pattern: re.Pattern[str] | None = None

    @classmethod
    def of(cls, path: str) -> Root:
        """Parse a path as typed by the user. Links in the path itself are followed."""
        place = Path(path).expanduser()
        if place.is_file():
            return cls(str(place.resolve()), is_file=True)
        if place.is_dir():
            return cls(str(place.resolve()))
        folder, pattern = split_glob(place.as_posix())
        if pattern is None or not Path(folder).is_dir():
            raise Unreadable(f"{path}: there is no such folder or file")
        return cls(str(Path(folder).resolve()), pattern=re.compile(glob_regex(pattern)))

    def covers(self, path: str) -> bool:
        """Whether an absolute path would be found here."""
        if self.is_file:
            return path == self.folder
        above = self.folder.rstrip(os.sep) + os.sep
        below = path[len(above) :].replace(os.sep, "/")
        return path.startswith(above) and (self.pattern is None or self.pattern.fullmatch(below) is not None)


def _without_nested(roots: list[Root]) -> list[Root]:
    """Leave out roots inside a folder that is walked completely anyway."""
    whole = {root.folder for root in roots if not root.is_file and root.pattern is None}
    kept: dict[tuple[str, str], Root] = {}
    for root in roots:
        inside = any(str(parent) in whole for parent in Path(root.folder).parents)
        if not inside and (root.pattern is None or root.folder not in whole):
            kept[root.folder, root.pattern.pattern if root.pattern else ""] = root
    return list(kept.values())


def _has_no_suffix(path: str) -> bool:
    return not os.path.splitext(path)[1]  # noqa: PTH122


def _looks_like_an_image(path: str) -> bool:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return sniff(file.read(HEAD_BYTES)) is not None
