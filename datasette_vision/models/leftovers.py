"""Temporary folders of installs beside the models: unfinished ones, and ones being replaced (staging.py)."""

from __future__ import annotations

import re
from pathlib import Path

LEFTOVER = re.compile(r"\.(?P<kind>install|old)-(?P<name>.+)-[0-9a-f]{8}")


def leftovers(models_dir: Path, name: str) -> list[tuple[Path, str]]:
    """Return (folder, "install" or "old") of the temporary folders of installs of `name`, running or killed."""
    return [(entry, match["kind"]) for match, entry in all_leftovers(models_dir) if match["name"] == name]


def replaced_name(entry: Path) -> str | None:
    """Return the name of the model that a folder held before it was replaced, None for other folders."""
    match = LEFTOVER.fullmatch(entry.name)
    return match["name"] if match and match["kind"] == "old" else None


def all_leftovers(models_dir: Path) -> list[tuple[re.Match[str], Path]]:
    """Return (match of LEFTOVER, folder) of the temporary folders of all installs."""
    try:
        entries = sorted(models_dir.iterdir())
    except OSError:
        return []
    return [(match, entry) for entry in entries if (match := LEFTOVER.fullmatch(entry.name))]
