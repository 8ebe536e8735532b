"""What docs/python.md says of the public Python API, from its docstrings."""

from __future__ import annotations

import inspect

import datasette_vision


def names() -> str:
    """Return a table of all public names, functions and classes first, then errors."""
    lines = ["", "| name | what it is |", "| --- | --- |"]
    exported = [name for name in datasette_vision.__all__ if not name.startswith("_")]
    for name in sorted(exported, key=lambda name: (_is_error(name), name.lower())):
        line = (inspect.getdoc(getattr(datasette_vision, name)) or "").splitlines()[0]
        lines.append(f"| `{name}` | {line} |")
    return "\n".join([*lines, "", ""])


def _is_error(name: str) -> bool:
    value = getattr(datasette_vision, name)
    return inspect.isclass(value) and issubclass(value, Exception)
