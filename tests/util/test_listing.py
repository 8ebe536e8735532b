"""util/listing.py: the order of files, and what a glob means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from datasette_vision.util.listing import FILE, HIDDEN, LINK, glob_regex, local_entries, split_glob, walk


def test_the_files_of_a_folder_come_before_those_below_it(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.jpg", "a/b/c.jpg", "a.jpg", ".git/x.jpg", ".hidden.jpg", "c/1.jpg", "_x/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "round").symlink_to(tmp_path)

    def found(**options: tuple[str, ...]) -> list[tuple[str, str]]:
        return [
            (path.removeprefix(f"{tmp_path}/"), kind) for path, kind in walk(str(tmp_path), local_entries, **options)
        ]

    below = [("a/z.jpg", FILE), ("a/b/c.jpg", FILE), ("c/1.jpg", FILE)]
    assert found() == [
        (".git", HIDDEN), (".hidden.jpg", HIDDEN),
        ("a.jpg", FILE), ("b.jpg", FILE), ("link.jpg", LINK), ("round", LINK),
        ("_x/2.jpg", FILE), *below,
    ]  # fmt: skip
    assert ("_x", HIDDEN) in found(hidden=(".", "_"))
    assert [entry for entry in found(hidden=(".", "_")) if "/" in entry[0]] == below


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/*/b*.jpg", ("a", "*/b*.jpg")),
        ("/*.jpg", ("/", "*.jpg")),
        ("*.jpg", (".", "*.jpg")),
        ("a//[x].jpg", ("a", "[x].jpg")),
        ("a/b.jpg", ("a/b.jpg", None)),
        ("a?/b", (".", "a?/b")),
    ],
)
def test_split(text: str, expected: tuple[str, str | None]) -> None:
    assert split_glob(text) == expected


def test_split_where_a_question_mark_begins_options() -> None:
    assert split_glob("a/b?c*", "*[") == ("a", "b?c*")
    assert split_glob("a/b?c", "*[") == ("a/b?c", None)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.jpg", ["a.jpg", "a\n.jpg"], ["b/a.jpg", "a_jpg", "a.jpgs"]),
        ("?.jpg", ["a.jpg", "\n.jpg"], ["aa.jpg", "/.jpg"]),
        ("**/*.jpg", ["a.jpg", "x/y/a.jpg"], ["a.png"]),
        ("x/**", ["x/a", "x/y/a"], ["x", "x/"]),
        ("x/**/y/*", ["x/y/a", "x/1/2/y/a"], ["x/y", "xy/a"]),
        ("a**", ["a", "abc"], ["ab/c"]),  # ** is only in the place of a name what it is
        ("**.jpg", ["a.jpg"], ["x/a.jpg"]),
        ("[a-c]", ["b"], ["d", "-", "/"]),
        ("[!a-c]", ["d"], ["b"]),
        ("[^a-c]", ["d", "^"], ["b", "/"]),
        ("[]]", ["]"], ["[]"]),
        ("[!]]", ["a"], ["]"]),
        ("[!]", ["!"], ["a"]),
        ("[a", ["[a"], ["a"]),
        ("a.b/**/[!\\]c?*", ["a.b/x/y/zcef"], ["a.b/x/\\cef"]),
        ("[[&&a~~||].jpg", ["[.jpg", "&.jpg", "|.jpg"], ["b.jpg"]),
        ("[z-a]", [], ["a", "z", "-"]),
    ],
)
def test_globs(pattern: str, matching: list[str], others: list[str]) -> None:
    regex = re.compile(glob_regex(pattern))
    assert [text for text in (*matching, *others) if regex.fullmatch(text)] == matching
