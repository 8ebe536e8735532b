"""Folders that installs make beside the models: what is in the making, and what is being replaced (staging.py)."""

from __future__ import annotations

import re
from pathlib import Path

LEFTOVER = re.compile(r"\.(?P<kind>install|old)-(?P<name>.+)-[0-9a-f]{8}")


def leftovers(models_dir: Path, name: str) -> list[tuple[Path, str]]:
    """Return (folder, "install" or "old") for what is there of installs of `name`, at work or killed."""
    return [(entry, match["kind"]) for match, entry in all_leftovers(models_dir) if match["name"] == name]


def replaced_name(entry: Path) -> str | None:
    """Return the name of the model that a folder is the replaced one of, None for any other folder."""
    match = LEFTOVER.fullmatch(entry.name)
    return match["name"] if match and match["kind"] == "old" else None


def all_leftovers(models_dir: Path) -> list[tuple[re.Match[str], Path]]:
    """Return (match of LEFTOVER, folder) for what is there of installs of any name."""
    try:
        entries = sorted(models_dir.iterdir())
    except OSError:
        return []
    return [(match, entry) for entry in entries if (match := LEFTOVER.fullmatch(entry.name))]
