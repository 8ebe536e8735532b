"""The generated parts of README.md and docs/, by cog: `make docs` regenerates them, `make lint` fails when stale."""

from __future__ import annotations

import sqlite3
from functools import cache

import click
from click.testing import CliRunner
from datasette.cli import cli

from datasette_vision.config.settings import CONFIG_KEYS, Config
from datasette_vision.demo import demo
from datasette_vision.engine.vision import Vision
from datasette_vision.models.catalog import CATALOG
from datasette_vision.sql import registration as sql
from datasette_vision.sql.table import FUNCTIONS, SqlFunction


@cache
def demo_connection() -> sqlite3.Connection:
    """Return an in-memory copy of the demo database, with the SQL functions."""
    vision = Vision(Config(models_dir="no-models"))
    connection = sqlite3.connect(":memory:")
    demo.fill(connection, list(demo.read_archive()), vision)
    sql.register(connection, lambda: vision)
    return connection


def table(columns: list[str], rows: list[tuple[object, ...]]) -> str:
    """Write a Markdown table."""
    lines = [columns, ["---"] * len(columns), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def example(function: SqlFunction) -> str:
    """Run a function's example and write it with its result."""
    cursor = demo_connection().execute(function.example)
    columns = [column[0] for column in cursor.description]
    return f"```sql\n{function.example}\n```\n\n{table(columns, cursor.fetchall())}\n"


def sql_functions() -> str:
    """Write the function reference."""
    parts = [f"### `{function.signature}`\n\n{function.returns}\n\n{example(function)}" for function in FUNCTIONS]
    return "\n" + "\n".join(parts)


def configuration() -> str:
    """Write the table of configuration keys."""
    defaults = Config()

    def shown(name: str) -> str:
        value = getattr(defaults, name)
        return f"`{value}`" if isinstance(value, (int, float, str)) else ""

    rows = [(f"`{key.name}`", key.meaning, key.expected, shown(key.name)) for key in CONFIG_KEYS]
    return "\n" + table(["key", "meaning", "value", "default"], rows) + "\n\n"


def catalogue() -> str:
    """Write the table of models that can be installed by name."""
    rows: list[tuple[object, ...]] = [
        (
            f"`{row.name}`",
            row.description,
            row.dimensions,
            f"{row.megabytes:,} MB",
            row.licence,
            " + ".join(f"[{name}](https://huggingface.co/{name})" for name in (row.source, row.text_source) if name),
        )
        for row in CATALOG
    ]
    return "\n" + table(["name", "what for", "dimensions", "fp32", "licence", "from"], rows) + "\n\n"


def commands() -> str:
    """Write the --help of every command of `datasette vision`, in the order of their names."""
    group = cli.commands["vision"]
    assert isinstance(group, click.Group)
    return "".join(command_help("vision", name) for name in sorted(group.commands))


def command_help(*command: str) -> str:
    """Write the --help of a command of `datasette`."""
    result = CliRunner().invoke(cli, [*command, "--help"], prog_name="datasette", terminal_width=100)
    return f"\n```\n{result.output.strip()}\n```\n\n"
