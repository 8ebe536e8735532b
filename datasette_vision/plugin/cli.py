"""The commands of `datasette vision`."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from datasette_vision.config import Config
from datasette_vision.errors import VisionError
from datasette_vision.plugin.compatibility import serve_arguments

SAMPLE_QUERIES = ("purple heart", "happy cat", "something to eat")


def vision_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """End a command that raises a VisionError with its message and its exit code."""

    @functools.wraps(command)
    def run(*arguments: Any, **named: Any) -> Any:
        try:
            return command(*arguments, **named)
        except VisionError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(error.exit_code)

    return run


@click.group("vision")
def vision_group() -> None:
    """Image understanding: embeddings and classification."""


@vision_group.command()
@click.argument("database", type=click.Path(dir_okay=False, path_type=Path), default=Path("demo.db"))
@click.option("--serve/--no-serve", default=True, help="Serve it with Datasette afterwards (the default).")
@click.option("-h", "--host", default="127.0.0.1", show_default=True, help="Host to serve on.")
@click.option("-p", "--port", default=8001, show_default=True, help="Port to serve on.")
@vision_errors
def demo(database: Path, serve: bool, host: str, port: int) -> None:
    """Write a database of every emoji with its embeddings, and open it.

    DATABASE (demo.db) and, beside it, a metadata file with saved queries are made anew each time.
    """
    from datasette_vision import demo as demos
    from datasette_vision.vision import Vision

    if database.exists() and not demos.is_demo(database):
        raise click.ClickException(f"{database} exists and is not a demo database: choose another name")
    metadata = database.with_name(f"{database.stem}-metadata.json")
    vision = Vision(Config(cache_mb=0))
    with click.progressbar(length=100, label="Embedding emoji", file=sys.stderr) as bar:
        count = demos.write_database(database, vision, lambda done, total: bar.update(100 * done // total - bar.pos))
    metadata.write_text(json.dumps(demos.metadata(database.stem), indent=2) + "\n", "utf-8")
    click.echo(f"{count:,} emoji, embedded with {vision.config.default_model}, are in {database}.")
    click.echo("The model comes with the package. It knows drawings, not photographs.")
    for text in SAMPLE_QUERIES:
        click.echo(f"\nvision_embed('{text}')")
        for emoji, name, similarity in demos.search(database, vision, text):
            click.echo(f"  {similarity:.3f}  {emoji}  {name}")
    vision.close()
    arguments = serve_arguments(database, metadata, host, port)
    if not serve:
        click.echo(f"\nTo open it: datasette {shlex.join(arguments)}")
        return
    click.echo(f"\nOpen http://{host}:{port}/{database.stem}/search?q=purple+heart (Ctrl-C stops the server)\n")
    from datasette.cli import cli

    cli.main(args=arguments, prog_name="datasette")
