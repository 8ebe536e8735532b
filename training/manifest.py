"""Labels and manifest.json of the model folder: the contract with the package (DESIGN.md, section 5)."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emoji_set import emoji_set
from labels import GROUPS, SUBGROUPS

MODEL_FOLDER = Path(__file__).resolve().parent.parent / "datasette_vision" / "models" / "bundled" / "tiny-emoji"
MANIFEST = "manifest.json"


def subgroup_labels() -> list[dict[str, str]]:
    """One label per subgroup, in Unicode order: the zero-shot classes of the model."""
    group_of = {emoji.subgroup: emoji.group for emoji in emoji_set()}
    return [{"label": key, "prompt": SUBGROUPS[key][0], "group": group} for key, group in group_of.items()]


def group_labels() -> list[dict[str, str]]:
    """One label per group, in Unicode order."""
    keys = dict.fromkeys(emoji.group for emoji in emoji_set())
    return [{"label": key, "prompt": GROUPS[key][0], "group": key} for key in keys]


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a newline at the end."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def list_files(folder: Path) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of every file of the folder except the manifest."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            content = path.read_bytes()
            found.append({"path": path.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    return found


def refresh_files(folder: Path = MODEL_FOLDER) -> None:
    """Bring the manifest's list of files up to date, after the model card was written."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"] = list_files(folder)
    write_json(folder / MANIFEST, manifest)


def versions() -> dict[str, str]:
    """What made the model."""
    packages = ("torch", "onnx", "onnxruntime", "tokenizers")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
