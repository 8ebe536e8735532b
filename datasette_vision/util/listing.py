"""Lists the files of a folder or a glob, in a fixed order: on this machine and in stores.

In a glob * and ? match within a name, [a-z] matches one of these characters, [!a-z] or [^a-z] any other, and ** in
place of a name matches any number of folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator

FILE, FOLDER, LINK, HIDDEN, OTHER = "file", "folder", "link", "hidden", "other"
Entries = Iterable[tuple[str, str]]

# A run of *, a ?, a class of characters, or any other character.
TOKEN = re.compile(r"(?P<any>\*+)|(?P<one>\?)|\[(?P<no>[!^]?)(?P<class>.[^\]]*)\]|(?P<itself>.)", re.DOTALL)
# Characters that are special in a character class of a regular expression, but not of a glob.
CLASS_SYNTAX, BACKSLASHED = r"([\\\[\]^&~|])", r"\\\1"


def walk(folder: str, entries: Callable[[str], Entries], hidden: tuple[str, ...] = (".",)) -> Iterator[tuple[str, str]]:
    """Yield (path, kind) of the files in a folder and below: HIDDEN for names that begin as those do.

    `entries(folder)` lists one folder, as local_entries() does. Files come in the order of their paths, those of a
    folder before those of its subfolders. Links and hidden folders are not followed.
    """
    folders = [folder]
    while folders:
        below = []
        for path, kind in sorted(entries(folders.pop())):
            if os.path.basename(path).startswith(hidden):  # noqa: PTH119
                yield path, HIDDEN
            elif kind == FOLDER:
                below.append(path)
            else:
                yield path, kind
        folders += reversed(below)


def local_entries(folder: str) -> list[tuple[str, str]]:
    """Return (path, kind) of the entries of a local folder. Raises OSError."""
    with os.scandir(folder) as entries:
        return [(entry.path, _kind(entry)) for entry in entries]


def split_glob(text: str, magic: str = "*?[") -> tuple[str, str | None]:
    """Split a path into the fixed folder and the pattern below it: "a/*/b*.jpg" -> ("a", "*/b*.jpg").

    The pattern is None if there is none.
    """
    first = next((place for place, character in enumerate(text) if character in magic), None)
    if first is None:
        return text, None
    cut = text.rfind("/", 0, first)
    return (text[:cut].rstrip("/") or "/") if cut >= 0 else ".", text[cut + 1 :]


def glob_regex(pattern: str) -> str:
    """Return the regular expression of a glob, for a whole path with / between its names."""
    *folders, name = pattern.split("/")
    above = "".join("(?:[^/]+/)*" if part == "**" else _name_regex(part) + "/" for part in folders)
    return above + ("(?s:.+)" if name == "**" else _name_regex(name))


def _name_regex(name: str) -> str:
    return "".join(map(_token_regex, TOKEN.finditer(name)))


def _token_regex(token: re.Match[str]) -> str:
    if token["any"] or token["one"]:
        return "[^/]*" if token["any"] else "[^/]"
    if token["itself"]:
        return re.escape(token["itself"])
    expression = f"(?!/)[{token['no'] and '^'}{re.sub(CLASS_SYNTAX, BACKSLASHED, token['class'])}]"
    try:
        re.compile(expression)
    except re.error:  # a range from z to a matches nothing
        return "(?!)"
    return expression


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return LINK
    if entry.is_dir(follow_symlinks=False):
        return FOLDER
    return FILE if entry.is_file(follow_symlinks=False) else OTHER
