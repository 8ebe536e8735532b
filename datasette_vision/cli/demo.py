"""`datasette vision demo`: makes the demo database and serves it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sqlite3
import sys
from pathlib import Path

import click

from datasette_vision.cli.exit_codes import vision_errors
from datasette_vision.cli.progress import progress_bars
from datasette_vision.config.settings import Config

SAMPLE_QUERIES = ("purple heart", "happy cat", "something to eat")


@click.command()
@click.argument("database", type=click.Path(dir_okay=False, path_type=Path), default=Path("demo.db"))
@click.option("--serve/--no-serve", default=True, help="Serve it with Datasette afterwards (the default).")
@click.option("-h", "--host", default="127.0.0.1", show_default=True, help="Host to serve on.")
@click.option("-p", "--port", default=8001, show_default=True, help="Port to serve on; 0 picks a free one.")
@vision_errors
def demo(database: Path, serve: bool, host: str, port: int) -> None:
    """Write a database of every emoji with its embeddings, and open it.

    DATABASE (demo.db) and the metadata file with saved queries beside it are overwritten each time.
    """
    from datasette.utils import tilde_encode

    from datasette_vision.demo import demo as demos

    metadata = database.with_name(f"{database.stem}-metadata.json")
    if set("?#%") & set(str(database)):
        raise click.ClickException(f"{database}: Datasette cannot open a file with ?, # or % in its name")
    if database.exists() and not demos.is_demo(database):
        raise click.ClickException(f"{database} exists and is not a demo database: choose another name")
    if metadata.exists() and not demos.is_demo_metadata(metadata):
        raise click.ClickException(f"{metadata} exists and is not from a demo: choose another name")
    port = _free_port(host, port) if serve else port
    route = tilde_encode(database.stem)
    try:
        _write_demo(database, metadata, route)
    except (OSError, sqlite3.Error) as error:
        raise click.ClickException(f"{database} cannot be written: {error}") from None
    arguments = serve_arguments(database, metadata, host, port)
    if not serve:
        click.echo(f"\nTo open it: datasette {shlex.join(arguments)}")
        return
    click.echo(f"\nOpen http://{host}:{port}/-/vision/{route}/emoji?q=purple+heart (Ctrl-C stops the server)\n")
    from datasette.cli import cli

    cli.main(args=arguments, prog_name="datasette")


def serve_arguments(database: Path, metadata: Path, host: str, port: int) -> list[str]:
    """Return the arguments that make `datasette` serve a database with its metadata and saved queries.

    0.65 reads saved queries from --metadata, 1.0 from --config. Each ignores the other's option.
    """
    import datasette

    is_1_0 = not datasette.__version__.startswith("0.")
    files = ["--metadata", _argument(metadata), *(["--config", _argument(metadata)] if is_1_0 else [])]
    return ["serve", _argument(database), *files, "--host", host, "--port", str(port), "--cors"]


def _argument(path: Path) -> str:
    """Write a path so that no command line reads it as an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _write_demo(database: Path, metadata: Path, route: str) -> None:
    """Write the database and its metadata, and print a few searches in it."""
    from datasette_vision.demo import demo as demos
    from datasette_vision.engine.vision import Vision

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no partial files stay behind
    with Vision(Config(cache_mb=0)) as vision:
        with progress_bars() as on_progress:
            count = demos.write_database(database, vision, on_progress)
        temporary = metadata.with_name(f".{metadata.name}-{os.getpid()}")
        temporary.write_text(json.dumps(demos.metadata(database.stem, route), indent=2) + "\n", "utf-8")
        temporary.replace(metadata)
        click.echo(f"{count:,} emoji, embedded with {vision.config.default_model}, are in {database}.")
        click.echo("The model is bundled. It knows drawings, not photographs.")
        for text in SAMPLE_QUERIES:
            click.echo(f"\nselect … order by vision_similarity(embedding, vision_embed('{text}')) desc")
            click.echo(f"  {'similarity':10}  {'name':32}  emoji")
            for emoji, name, similarity in demos.search_demo(database, vision, text):
                click.echo(f"  {similarity:10.3f}  {name:32}  {emoji}")


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0. If the port is taken, end the command before any work is done."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise click.ClickException(
                f"{host} port {port} cannot be used ({error}): choose another with --port"
            ) from None
        return int(listener.getsockname()[1])
