"""Documentation, docstrings and messages are plain English: some phrases that are not, and what to write instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import datasette_vision
from tests.paths import ROOT

INSTEAD = {
    r"\banew\b": "again, or from scratch",
    r"\bshall\b": "must, or the present tense",
    r"\bcomes? into question\b": "candidate",
    r"\bof one's own\b": "your own",
    r"\bin(?:to)? step with\b": "in sync with",
    r"\bwhoever asks\b": "the caller, or the client",
    r"\bis told of\b": "gets",
}
# The package is wherever it is installed: CI tests the wheel.
PLACES = {Path(datasette_vision.__file__).parent: ("py", "html", "js"), ROOT / "docs": ("py", "md")}
FILES = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for folder, suffixes in PLACES.items() for suffix in suffixes for path in folder.rglob(f"*.{suffix}")),
    ]
)


@pytest.mark.parametrize("phrase", INSTEAD)
def test_plain_english(phrase: str) -> None:
    assert len(FILES) > 200
    found = [
        f"{path}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(phrase, line, re.IGNORECASE)
    ]
    assert found == [], f"write: {INSTEAD[phrase]}"
