"""The one place that knows how Datasette 0.65 and 1.0 differ."""

from __future__ import annotations

from pathlib import Path

import datasette

IS_1_0 = not datasette.__version__.startswith("0.")


def serve_arguments(database: Path, metadata: Path, host: str, port: int) -> list[str]:
    """Return the arguments that make `datasette` serve a database with its metadata and saved queries.

    0.65 reads saved queries from --metadata, 1.0 from --config; each ignores what is the other's.
    """
    files = ["--metadata", _argument(metadata), *(["--config", _argument(metadata)] if IS_1_0 else [])]
    return ["serve", _argument(database), *files, "--host", host, "--port", str(port), "--cors"]


def _argument(path: Path) -> str:
    """Write a path so that no command line takes it for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)
