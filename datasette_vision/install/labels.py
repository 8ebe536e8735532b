"""The labels of a classifier, from a file or from its config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasette_vision.errors import InvalidArgument


def read_labels(path: Path) -> list[str]:
    """Read labels: one per line, a JSON array, or a JSON object of numbers to labels. Raises InvalidArgument."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InvalidArgument(f"--labels: {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"--labels: {path}: expected text in UTF-8") from None
    if text.lstrip()[:1] not in {"[", "{"}:
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        value = json.loads(text)
        if isinstance(value, dict):
            value = _by_number(value)
    except (ValueError, RecursionError):
        raise InvalidArgument(f"--labels: {path}: expected JSON of labels, found something else") from None
    if not isinstance(value, list) or not all(isinstance(label, str) and label for label in value):
        raise InvalidArgument(f"--labels: {path}: expected an array of labels, or an object of numbers to labels")
    return value


def labels_of(config: dict[str, Any]) -> list[str]:
    """Return the labels in a config.json of transformers, or none."""
    try:
        return [str(label) for label in _by_number(config.get("id2label") or {})]
    except ValueError:
        return []


def _by_number(labels: Any) -> list[Any]:
    """Return the labels in the order of their numbers. Raises ValueError for anything but an object of them."""
    if not isinstance(labels, dict):
        raise ValueError
    numbered = {int(number): label for number, label in labels.items()}
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError
    return [numbered[number] for number in range(len(numbered))]
