"""The documentation is never wrong: everything is in it, its generated parts are fresh, its examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from datasette.cli import cli

import datasette_vision
from datasette_vision.config.settings import CONFIG_KEYS
from datasette_vision.sql.table import FUNCTIONS, SqlFunction
from tests.conftest import Connection
from tests.paths import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = (ROOT / "docs/reference.md").read_text("utf-8")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_every_function_is_documented(function: SqlFunction) -> None:
    assert f"### `{function.signature}`" in REFERENCE
    assert function.example in REFERENCE


@pytest.mark.parametrize("key", CONFIG_KEYS, ids=lambda key: key.name)
def test_every_configuration_key_is_documented(key: object) -> None:
    assert f"| `{key.name}` |" in REFERENCE  # type: ignore[attr-defined]


def commands(group: click.Group, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


def test_every_command_is_documented() -> None:
    group = cli.commands["vision"]
    assert isinstance(group, click.Group)
    for command in commands(group, ("vision",)):
        assert f"Usage: datasette {' '.join(command)} " in REFERENCE


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_every_example_runs(function: SqlFunction, demo_connection: Connection) -> None:
    rows = demo_connection.connection.execute(function.example).fetchall()
    assert rows
    assert all(value is not None for row in rows for value in row)


def test_generated_parts_are_fresh() -> None:
    command = [sys.executable, "-m", "cogapp", "--check", "-p", "import sys; sys.path.insert(0, '.')", *DOCS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr + "\nrun: make docs"


def test_the_map_for_contributors_names_what_is_there() -> None:
    page = (ROOT / "docs/contributing.md").read_text("utf-8")
    package = Path(datasette_vision.__file__).parent
    named = re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py|\.html)?|errors\.py)`", page)
    assert len(named) > 30
    missing = [path for path in named if not any((root / path).exists() for root in (package, package.parent, ROOT))]
    # Folders of plugin/ are named without it.
    assert [path for path in missing if not (package / "plugin" / path).exists()] == []
