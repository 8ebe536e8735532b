"""The commands of `datasette vision` that embed a table, or folders of image files."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datasette_vision.cli.exit_codes import vision_errors
from datasette_vision.cli.options import bulk_options, bulk_vision, configured, say, say_failures, sqlite_errors
from datasette_vision.cli.progress import ProgressBar
from datasette_vision.config.settings import BUNDLED_MODEL

if TYPE_CHECKING:
    from datasette_vision.bulk.load import LoadSummary
    from datasette_vision.bulk.tally import Summary
    from datasette_vision.engine.vision import Vision

SOME_FAILED = 3
STOPPED = 128  # plus the number of the signal, as in shells
THUMBNAIL_PIXELS = 512
MORE = ': select * from "{}" where error is not null'


quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show only failures: no progress, no summary.")


@click.command()
@click.argument("database", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("table")
@click.option("--column", "columns", multiple=True, help="Column to embed. Can be given more than once.")
@click.option("--key", multiple=True, help="Column(s) that identify a row. By default the primary key, or the rowid.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="The column holds paths of image files below this folder.",
)
@click.option("--where", metavar="SQL", help="Only rows that match this condition.")
@click.option("--force", is_flag=True, help="Embed all rows, even if they are already embedded.")
@bulk_options
@quiet_option
@vision_errors
def embed(database: Path, table: str, columns: tuple[str, ...], quiet: bool, model: str | None, **options: Any) -> None:
    """Embed the images of TABLE, a table or view, into the side table _vision_TABLE.

    A column holds images (BLOBs, data: URIs or base64), texts, or paths of image files. Without --column, the command
    uses the column that was embedded before, or the one that holds images.

    You can stop or kill the command at any time and run it again: it embeds only new and changed rows, and removes the
    embeddings of deleted rows. Datasette can serve the database at the same time. The exit code is 3 if some rows
    failed; the side table's column error has the reasons.
    """
    from datasette_vision.bulk.embed_table import embed_table

    base, where, key, force = (options.pop(name) for name in ("base", "where", "key", "force"))
    failed = False
    with _vision(**options) as vision, _stoppable() as stop, sqlite_errors(database):
        for column in columns or (None,):
            with ProgressBar(f"Embedding {column or table}", quiet=quiet) as on_progress:
                summary = embed_table(
                    database,
                    table,
                    vision=vision,
                    column=column,
                    model=model,
                    key=key,
                    base=base,
                    where=where,
                    force=force,
                    on_progress=on_progress,
                    stop=stop.event,
                )
            if not quiet:
                click.echo(sentence(summary))
            say_failures(summary.failures, summary.failed, MORE.format(f"_vision_{table}"))
            failed = failed or summary.failed > 0
            stop.check(summary)
    if failed:
        sys.exit(SOME_FAILED)


@click.command()
@click.argument("database", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--table", default="photos", show_default=True, help="Table to load into; created if missing.")
@click.option(
    "--thumbnails",
    type=click.IntRange(16, 2048),
    metavar="PIXELS",
    help="Keep a thumbnail of each image, with a longer edge of PIXELS.  [default: 512]",
)
@click.option("--originals", is_flag=True, help="Keep the original files instead.")
@click.option("--paths-only", is_flag=True, help="Keep no images, only their paths.")
@click.option(
    "--base",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that paths in the table are relative to. By default the one loaded first; give it when the"
    " folder moved.",
)
@bulk_options
@quiet_option
@vision_errors
def load(
    database: Path, paths: tuple[str, ...], thumbnails: int | None, originals: bool, paths_only: bool, **options: Any
) -> None:
    """Load image files into a table of DATABASE, and embed them.

    PATH is a folder, which is searched recursively, a file, or a glob ('~/Pictures/**/*.jpg'). Links are not followed.
    Hidden files and other kinds of files are skipped. For each photo, the table has its path, when and where it was
    taken, and its group of near duplicates.

    Run the command again to bring the table up to date: a file is read only if its size or time has changed, and
    embedded only if its content has changed. Files that are gone are marked in gone_at. You can stop or kill the
    command at any time and run it again. The exit code is 3 if some files could not be read; the column error has the
    reasons.
    """
    from datasette_vision.bulk.load import load as load_files
    from datasette_vision.bulk.photos import ImageStorage

    if sum((thumbnails is not None, originals, paths_only)) > 1:
        raise click.UsageError("--thumbnails, --originals and --paths-only exclude one another")
    storage = ImageStorage(0 if originals or paths_only else thumbnails or THUMBNAIL_PIXELS, originals)
    table, base, quiet, model = (options.pop(name) for name in ("table", "base", "quiet", "model"))
    with _vision(**options) as vision, _stoppable() as stop, sqlite_errors(database):
        with ProgressBar("Loading", quiet=quiet) as on_progress:
            summary = load_files(
                database,
                paths,
                vision=vision,
                table=table,
                model=model,
                storage=storage,
                base=base,
                on_progress=on_progress,
                stop=stop.event,
            )
        if not quiet:
            click.echo(sentence(summary))
            click.echo(_around(summary))
        for place, reason in summary.unreadable:
            say(f"  {place}: {reason}")
        say_failures(summary.failures, summary.failed, MORE.format(table))
        stop.check(summary)
    if not quiet:
        click.echo(f"To view the result: datasette {shlex.quote(str(database))}")
        if model in (None, BUNDLED_MODEL):
            click.echo(
                "The bundled model knows drawings, not photographs: datasette vision install clip, then --model clip"
            )
    if summary.failed or summary.unreadable:
        sys.exit(SOME_FAILED)


class Stop:
    """Whether the user asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal = 0

    def check(self, summary: Summary) -> None:
        """End the command if the user asked to stop, and print how to continue."""
        if summary.stopped:
            command = shlex.join(["datasette", *sys.argv[1:]])
            say(f"Stopped: {summary.done:,} of {summary.total:,} are done. To continue: {command}")
            sys.exit(STOPPED + self.signal)


@contextlib.contextmanager
def _stoppable() -> Iterator[Stop]:
    """Let the first Ctrl-C stop the work in good order. A second one, or another signal, stops at once."""
    stop = Stop()
    previous: dict[signal.Signals, Any] = {}

    def handler(number: int, frame: Any) -> None:
        stop.signal = number
        stop.event.set()
        for kind, old in previous.items():
            signal.signal(kind, old)
        os.write(2, b"\nStopping: writing finished results.\n")  # echo() may be half-way through a line itself

    if threading.current_thread() is threading.main_thread():
        for kind in (signal.SIGINT, signal.SIGTERM):
            previous[kind] = signal.signal(kind, handler)
    try:
        yield stop
    finally:
        for kind, old in previous.items():
            signal.signal(kind, old)


def _vision(models_dir: Path | None, max_image_mb: float, workers: int | None, batch_size: int | None) -> Vision:
    return bulk_vision(configured(models_dir, max_image_mb=max_image_mb), workers, batch_size)


def sentence(summary: Summary) -> str:
    counts = [f"{summary.embedded:,} embedded", f"{summary.unchanged:,} unchanged", f"{summary.failed:,} failed"]
    if summary.removed:
        counts.append(f"{summary.removed:,} removed")
    if summary.computed < summary.embedded:
        counts[0] += f" ({summary.embedded - summary.computed:,} identical to another)"
    return f"{', '.join(counts)}; {summary.seconds:.1f} s, {summary.per_second:,.1f} images/s"


def _around(summary: LoadSummary) -> str:
    counts = [f"{summary.duplicates:,} near duplicates", f"{summary.gone:,} gone"]
    counts += [f"{summary.skipped:,} other files skipped", f"{summary.links:,} links not followed"]
    return ", ".join(counts)
