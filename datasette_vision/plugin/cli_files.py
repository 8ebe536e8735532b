"""The commands of `datasette vision` for embeddings in files: made from files, and brought into a table."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from datasette_vision.plugin.cli import vision_errors, vision_group

SOME_FAILED = 3
INTERRUPTED = 130


@vision_group.command("import-embeddings")
@click.argument("database", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("table")
@click.argument("parquet", nargs=-1, required=True)
@click.option("--key", "match", default="path", show_default=True, help="Column of the Parquet files to find rows by.")
@click.option("--on", metavar="COLUMN", help="Column of the table that holds the same. By default that of --key.")
@click.option(
    "--base", metavar="DIR", help="Folder or URI that is left out before paths: the table's paths are below it."
)
@click.option("--column", "source_column", help="Column that the embeddings are noted as being of. By default --on.")
@click.option("--model", help="The model that made the embeddings, where the files do not say so.")
@click.option("--create", is_flag=True, help="Make the database, the table, and rows of it, where they are not there.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@vision_errors
def import_embeddings(database: Path, table: str, parquet: tuple[str, ...], quiet: bool, **wishes: Any) -> None:
    """Bring embeddings from Parquet files into the side table of TABLE.

    PARQUET are files or folders of them, as datasette vision embed-files writes them, or of another's making with a
    column embedding. It can be stopped at any moment and run again: what is there already is passed over.
    """
    from datasette_vision.importing import Importer, Plan, Summary

    if not (wishes["create"] or database.exists()):
        raise click.ClickException(f"{database}: there is no such file; --create makes it")
    connection = sqlite3.connect(database, timeout=60, isolation_level=None)
    with contextlib.closing(connection), _failures(database), _stoppable():
        base = _base(wishes.pop("base"))
        importer = Importer(connection, Plan(table=table, sources=parquet, base=base, **wishes))
        total = importer.summary.total
        with click.progressbar(length=total, label="Importing", file=sys.stderr, hidden=quiet) as bar:

            def told(summary: Summary) -> None:
                bar.update(summary.done - bar.pos)

            summary = importer.run(told)
        rate = summary.done / summary.seconds if summary.seconds else 0.0
        click.echo(
            f"{summary.imported:,} imported, {summary.unchanged:,} unchanged, {summary.failed:,} with an error,"
            f" {summary.unmatched:,} not in {table}; {summary.seconds:.1f} s, {rate:,.0f} rows a second"
        )
        for name in summary.first_unmatched:
            click.echo(f"  not in {table}: {name}", err=True)
        if summary.unmatched > len(summary.first_unmatched):
            click.echo(f"  … and {summary.unmatched - len(summary.first_unmatched):,} more", err=True)
    if summary.unmatched:
        sys.exit(SOME_FAILED)


def _base(base: str | None) -> str | None:
    """Return a folder as paths in Parquet files name it: as its address."""
    from datasette_vision.places import place

    return None if base is None else place(base).address


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """End with one line when the person stops the command."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nStopped. What was written stays; run the same command again to go on.", err=True)
        sys.exit(INTERRUPTED)


@contextlib.contextmanager
def _failures(path: Path) -> Iterator[None]:
    """Turn what SQLite refuses into one line."""
    try:
        yield
    except sqlite3.Error as error:
        raise click.ClickException(f"{path}: {error}") from None
