"""The commands of `datasette vision` that write embeddings to Parquet files, and import them into a table."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from datasette_vision.cli import search
from datasette_vision.cli.bulk import SOME_FAILED, STOPPED, sentence
from datasette_vision.cli.exit_codes import vision_errors
from datasette_vision.cli.options import bulk_options, bulk_vision, configured, say_failures, sqlite_errors
from datasette_vision.cli.progress import ProgressBar
from datasette_vision.config.settings import BUNDLED_MODEL, Config
from datasette_vision.errors import ExtraMissing

if TYPE_CHECKING:
    from datasette_vision.files.embed_files import EmbedFilesSummary, Job

# For a new database. A page of 4,096 bytes, the default, holds only one embedding of 512 floats: a million take 4.5 GB,
# and 2.6 GB with these pages.
PAGE_SIZE = 16_384

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")


@click.command("embed-files")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--output", "-o", required=True, metavar="OUT", help="Folder for Parquet files, on this machine or in a store."
)
@click.option("--column", help="Column of images or paths in Parquet inputs. By default it is detected.")
@click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value="",
    metavar="[ADDRESS]",
    help="Embed on Ray: on the cluster at ADDRESS or RAY_ADDRESS, otherwise on this machine.",
)
@click.option(
    "--concurrency",
    metavar="N|MIN:MAX",
    help="With --ray, instead of --workers: number of processes. By default as many as the CPUs allow.",
)
@click.option("--num-cpus", type=click.IntRange(1), default=1, help="With --ray: CPUs per worker.  [default: 1]")
@click.option("--num-gpus", type=click.FloatRange(0), default=0.0, help="With --ray: GPUs per worker; 0.5 shares one.")
@click.option(
    "--skip",
    type=click.Choice(["path", "digest"]),
    default="path",
    show_default=True,
    help="Skip paths that are in OUT, or images whose content is in OUT.",
)
@click.option("--retry-errors", is_flag=True, help="Try the images again that have an error in OUT.")
@click.option(
    "--rows-per-file", type=click.IntRange(1), default=10_000, show_default=True, help="Rows per Parquet file."
)
@bulk_options
@quiet_option
@vision_errors
def embed_files(
    inputs: tuple[str, ...],
    model: str | None,
    models_dir: Path | None,
    batch_size: int | None,
    workers: int | None,
    address: str | None,
    concurrency: str | None,
    num_cpus: int,
    num_gpus: float,
    max_image_mb: float,
    quiet: bool,
    **wishes: Any,
) -> None:
    """Embed images into Parquet files: path, digest, width, height, embedding, error.

    INPUT is a folder, a glob, an image, or a Parquet file (or a folder of them) with a column of images or of their
    paths. It can be on this machine or in a store (s3://, gs://, hf:// and others that pyarrow or fsspec read). Run the
    command again with the same OUT to continue: images that are in OUT are skipped. The exit code is 3 if some images
    could not be embedded.
    """
    from datasette_vision.files.embed_files import Job

    job = Job(inputs=inputs, model=model or BUNDLED_MODEL, **wishes)
    config = configured(models_dir, max_image_mb=max_image_mb)
    with _stoppable():
        if address is None:
            done = _embed_here(job, config, workers, batch_size, quiet)
        else:
            least, most = _concurrency(concurrency)
            ray_job = _ray_job()
            chosen = ray_job.Workers(least, most, num_cpus, num_gpus, batch_size)
            done = ray_job.embed_files_on_ray(job, config, address=address or None, workers=chosen, quiet=quiet)
    _report(done)
    if done.summary.failed:
        sys.exit(SOME_FAILED)


def _embed_here(
    job: Job, config: Config, workers: int | None, batch_size: int | None, quiet: bool
) -> EmbedFilesSummary:
    from datasette_vision.files import embed_files

    with bulk_vision(config, workers, batch_size) as vision, ProgressBar("Embedding", quiet=quiet) as on_progress:
        return embed_files.embed_files(job, vision, workers=workers and workers + 2, on_progress=on_progress)


def _ray_job() -> ModuleType:
    try:
        from datasette_vision.files.ray import job as ray_job
    except ImportError as error:
        if (error.name or "").partition(".")[0] in {"ray", "pyarrow"}:
            raise ExtraMissing("--ray needs Ray: pip install 'datasette-vision[ray]'") from None
        raise
    return ray_job


def _concurrency(text: str | None) -> tuple[int, int | None]:
    """Read N or MIN:MAX."""
    if text is None:
        return 1, None
    least, colon, most = text.partition(":")
    try:
        found = int(least), int(most if colon else least)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise click.BadParameter(f"expected a number of workers, or MIN:MAX, found {text}", param_hint="--concurrency")
    return found


@click.command("import-embeddings")
@click.argument("database", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("table")
@click.argument("parquet", nargs=-1, required=True)
@click.option(
    "--key", "match", default="path", show_default=True, help="Column of the Parquet files that identifies rows."
)
@click.option("--on", metavar="COLUMN", help="Column of the table with the same values. By default that of --key.")
@click.option("--base", metavar="DIR", help="Folder or URI to remove from paths: the table's paths are relative to it.")
@click.option("--column", "source_column", help="Column to record as the source of the embeddings. By default --on.")
@click.option("-m", "--model", help="Model that made the embeddings, if the files do not name it.")
@click.option("--create", is_flag=True, help="Create the database, the table and its rows if they are missing.")
@click.option("--index/--no-index", "indexed", default=True, help="Prepare the index for searches (the default).")
@quiet_option
@vision_errors
def import_embeddings(
    database: Path, table: str, parquet: tuple[str, ...], indexed: bool, quiet: bool, **wishes: Any
) -> None:
    """Import embeddings from Parquet files into the side table of TABLE.

    PARQUET are files, or folders of files, from datasette vision embed-files, or other files with a column embedding.
    You can stop the command at any time and run it again: rows that are already imported are skipped. The exit code is
    3 if the table lacks the rows of some embeddings.
    """
    from datasette_vision.files.import_embeddings import Importer, Plan

    if not (wishes["create"] or database.exists()):
        raise click.ClickException(f"{database}: there is no such file; use --create to make it")
    with (
        sqlite_errors(database),
        contextlib.closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection,
        _stoppable(),
    ):
        if connection.execute("pragma page_count").fetchone() == (0,):  # new, or killed before it wrote anything
            connection.execute(f"pragma page_size = {PAGE_SIZE}")
        base = _base(wishes.pop("base"))
        importer = Importer(connection, Plan(table=table, sources=parquet, base=base, **wishes))
        with ProgressBar(f"Importing into {table}", quiet=quiet) as on_progress:
            summary = importer.run(on_progress)
        rate = summary.done / summary.seconds if summary.seconds else 0.0
        click.echo(
            f"{summary.imported:,} imported, {summary.unchanged:,} unchanged, {summary.failed:,} with an error,"
            f" {summary.unmatched:,} not in {table}; {summary.seconds:.1f} s, {rate:,.0f} rows/s"
        )
        say_failures([(f"not in {table}", name) for name in summary.first_unmatched], summary.unmatched, "")
        if indexed:
            for model in importer.models:
                prepare = {"model": model, "column": importer.column, "check": False, "models_dir": None}
                click.get_current_context().invoke(search.index, database=database, table=table, **prepare)
    if summary.unmatched:
        sys.exit(SOME_FAILED)


def _base(base: str | None) -> str | None:
    """Return a folder in the form that paths in Parquet files have: as its address."""
    from datasette_vision.files.storage import place

    return None if base is None else place(base).address


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """On Ctrl-C or SIGTERM, write finished results and end with one line."""
    stopped = signal.SIGINT

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = signal.Signals(number)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["datasette", *sys.argv[1:]])
        click.echo(f"\nStopped: results that were written stay. To continue: {command}", err=True)
        sys.exit(STOPPED + stopped)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _report(done: EmbedFilesSummary) -> None:
    """Print the counts and the first failures."""
    summary = done.summary
    click.echo(sentence(summary))
    if done.ignored:
        click.echo(f"{done.ignored:,} files that are not images were left out")
    say_failures(summary.failures, summary.failed, ", in the column error")
