"""Options that several commands share, and the objects made from them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datasette_vision.config.settings import BUNDLED_MODEL, Config

if TYPE_CHECKING:
    from datasette_vision.engine.vision import Vision

# Larger than a server's limit: these are a person's own files.
MAX_IMAGE_MB = 100

models_dir_option = click.option(
    "--models-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of installed models. By default DATASETTE_VISION_MODELS, otherwise the user's cache directory.",
)


def bulk_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that embed many images."""
    for option in (
        click.option(
            "--max-image-mb",
            type=click.FloatRange(0, 2000, min_open=True),
            default=MAX_IMAGE_MB,
            show_default=True,
            help="Maximum size of an image file.",
        ),
        models_dir_option,
        click.option("--workers", type=click.IntRange(1, 256), help="Cores to use.  [default: all]"),
        click.option("--batch-size", type=click.IntRange(1, 4096), help="Images per batch.  [default: 8]"),
        click.option("-m", "--model", help=f"Model to embed with.  [default: {BUNDLED_MODEL}]"),
    ):
        command = option(command)
    return command


def configured(models_dir: Path | None, **settings: Any) -> Config:
    """Return the configuration for the options of a command."""
    return Config(models_dir=None if models_dir is None else str(models_dir), **settings)


def bulk_vision(config: Config, workers: int | None, batch_size: int | None) -> Vision:
    """Make a Vision for bulk work."""
    from datasette_vision.bulk.pipeline import config_for_bulk
    from datasette_vision.engine.vision import Vision

    return Vision(config_for_bulk(config, workers=workers, batch_size=batch_size))


def say(line: str) -> None:
    """Print a line to stderr, which a pipe does not receive."""
    click.echo(line, err=True)


def say_failures(failures: Sequence[tuple[str, str]], count: int, where: str) -> None:
    """Print the first of `count` failures, and say `where` the others are."""
    for name, reason in failures:
        say(f"  {name}: {reason}")
    if count > len(failures):
        say(f"  … and {count - len(failures):,} more{where}")


@contextlib.contextmanager
def sqlite_errors(database: Path) -> Iterator[None]:
    """Turn SQLite's errors into one line."""
    try:
        yield
    except sqlite3.Error as error:
        raise click.ClickException(f"{database}: {error}; results written before this stay") from None
