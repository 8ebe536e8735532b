"""The commands of `datasette vision` that search a table, and that prepare the index of a large one."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datasette_vision.cli.exit_codes import vision_errors
from datasette_vision.cli.options import configured, models_dir_option
from datasette_vision.cli.progress import progress_bars
from datasette_vision.errors import StorageFailed

if TYPE_CHECKING:
    from datasette_vision.retrieval.hits import Hit
    from datasette_vision.tables.side_tables import EmbeddedSource

# The maximum length of a cell, and the width of the table if the output is not a terminal.
CELL = 40
PIPE_WIDTH = 160

database_argument = click.argument("database", type=click.Path(exists=True, dir_okay=False, path_type=Path))
model_option = click.option(
    "-m", "--model", default="", help="Model to search with. By default the one that the table is embedded with."
)
column_option = click.option("--column", default="", help="Column to search. By default the one that is embedded.")


@click.command()
@database_argument
@click.argument("table")
@click.argument("query", required=False)
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Search by an image instead of QUERY.",
)
@click.option("--where", help='Search among the rows for which this SQL is true, such as "year > 2020".')
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Number of rows.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON: key, similarity and the row, without BLOBs.")
@model_option
@column_option
@models_dir_option
@vision_errors
def search(
    database: Path,
    table: str,
    query: str | None,
    image: Path | None,
    where: str | None,
    k: int,
    as_json: bool,
    model: str,
    column: str,
    models_dir: Path | None,
) -> None:
    """Find the rows of a table closest to a text or an image.

    Embed the table first: datasette vision embed DATABASE TABLE.
    """
    from datasette_vision.engine.vision import Vision
    from datasette_vision.retrieval.search import Searcher

    if (query is None) == (image is None):
        raise click.UsageError("give a QUERY, or an image with --image")
    with _opened(database, "ro") as connection, Vision(configured(models_dir)) as vision:
        searcher = Searcher(vision, improve=False)
        source = searcher.source(connection, table)
        asked = query if query is not None else Path(str(image)).read_bytes()
        rows = None if where is None else _rows_where(connection, source, where)
        hits = searcher.search(connection, table, asked, k, model, column, rows)
        shown = [_row(connection, source, hit) for hit in hits]
    if as_json:
        found = [{**hit.to_json(), "row": row} for hit, row in zip(hits, shown, strict=True)]
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    elif hits:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
        shown = [{"similarity": f"{hit.similarity:.3f}", **row} for hit, row in zip(hits, shown, strict=True)]
        for line in table_lines(shown, width):
            click.echo(line)
    else:
        click.echo("nothing found", err=True)


@click.command()
@database_argument
@click.argument("table")
@model_option
@column_option
@click.option("--check", is_flag=True, help="Measure recall@10: the share of the exact results that the index finds.")
@models_dir_option
@vision_errors
def index(database: Path, table: str, model: str, column: str, check: bool, models_dir: Path | None) -> None:
    """Prepare and save the index of a table, so that the first search does not have to read the table.

    It is saved in a folder beside the database, DATABASE-vision, and brought up to date by running this again. A server
    makes the same by itself, in the background, for a table that is large; what has changed since an index was saved is
    always found.
    """
    from datasette_vision.engine.vision import Vision
    from datasette_vision.retrieval import index_maintenance, recall
    from datasette_vision.retrieval.index_entry import file_of
    from datasette_vision.retrieval.search import Searcher
    from datasette_vision.tables import change_log
    from datasette_vision.util.connections import snapshot
    from datasette_vision.vectors import index_file

    with _opened(database, "ro") as connection, Vision(configured(models_dir)) as vision:
        searcher = Searcher(vision, improve=False)
        source = searcher.source(connection, table)
        if change_log.state(connection, source.schema, source.side.name) is None:
            _note_changes(database, source)
        wanted = searcher.choose(connection, source, model, column)
        dimensions = searcher.dimensions(connection, wanted)
        if dimensions is None:
            click.echo(f"{source.table} ({wanted.column}, {wanted.model}): no embeddings, nothing to index")
            return
        file = file_of(str(database.resolve()), wanted)
        if check:
            try:
                index_file.verify_index(file)
            except FileNotFoundError:
                pass
            except index_file.UnusableIndex as error:
                click.echo(f"{error}: rebuilding the index", err=True)
                file.unlink()
        began = time.perf_counter()
        try:
            with snapshot(connection, "main"), progress_bars() as on_progress:
                entry = index_maintenance.prepare_index(file, connection, wanted, dimensions, on_progress)
        except OSError as error:
            raise StorageFailed(f"{file} cannot be written: {error}") from None
        assert entry.index is not None
        size, seconds = file.stat().st_size / 1e6, time.perf_counter() - began
        click.echo(f"{source.table} ({wanted.column}, {wanted.model}): {len(entry.index):,} embeddings")
        click.echo(f"{file}: {size:,.1f} MB, in {seconds:,.1f} s")
        if check:
            measured = recall.measure_recall(connection, wanted, entry.index.view, dimensions)
            if measured is not None:
                click.echo(
                    f"recall@{recall.RECALL_AT} {measured.mean:.3f} over {measured.queries} searches, the worst"
                    f" {measured.least:.1f}; {measured.milliseconds:.1f} ms each (median)"
                )


@contextlib.contextmanager
def _opened(database: Path, mode: str) -> Iterator[sqlite3.Connection]:
    # Datasette's SQLite, which may support more than Python's. The path is a URI, so that no character is misread.
    from datasette.utils.sqlite import sqlite3 as datasette_sqlite3

    from datasette_vision.util.connections import recover_database

    recover_database(datasette_sqlite3.connect, str(database))
    connection = datasette_sqlite3.connect(f"{database.resolve().as_uri()}?mode={mode}", uri=True, isolation_level=None)
    with contextlib.closing(connection):
        try:
            yield connection
        except (sqlite3.Error, datasette_sqlite3.Error) as error:
            raise StorageFailed(f"{database}: {error}") from None


def _rows_where(connection: sqlite3.Connection, source: EmbeddedSource, where: str) -> str:
    """Return the rows that pass a condition, as vision_search() takes them."""
    from datasette.utils.sqlite import sqlite3 as datasette_sqlite3

    from datasette_vision.util.sql_names import quote

    key = source.rowid or ", ".join(map(quote, source.key))
    one = key if source.rowid or len(source.key) == 1 else f"json_array({key})"
    table = f"{quote(source.schema)}.{quote(source.table)}"
    try:
        (rows,) = connection.execute(f"select json_group_array({one}) from {table} where {where}").fetchone()
    except (sqlite3.Error, datasette_sqlite3.Error) as error:
        raise click.UsageError(f"--where: {error}") from None
    return str(rows)


def _note_changes(database: Path, source: EmbeddedSource) -> None:
    """Start logging the changes of a side table that was made by an older version."""
    with _opened(database, "rw") as connection:
        source.side.create(connection)


def _row(connection: sqlite3.Connection, source: EmbeddedSource, hit: Hit) -> dict[str, Any]:
    """Return the row of a hit, its key first, without BLOBs."""
    from datasette_vision.util.sql_names import quote

    where = " and ".join(f"{quote(column)} = ?" for column in source.key)
    cursor = connection.execute(
        f"select * from {quote(source.schema)}.{quote(source.table)} where {where}", [*hit.key.values()]
    )
    names = [column[0] for column in cursor.description]
    values = dict(zip(names, cursor.fetchone(), strict=True))
    row = {**hit.key, **values}
    return {name: value for name, value in row.items() if not isinstance(value, bytes)}


def table_lines(rows: list[dict[str, Any]], width: int) -> Iterator[str]:
    """Yield the lines of a table with the informative columns, as many as fit."""
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if any(row.get(name) not in (None, "") for row in rows)
    ]
    cells = {name: [_cell(row.get(name)) for row in rows] for name in names}
    widths = {name: max(_width(cell) for cell in (name, *cells[name])) for name in names}
    numbers = {name for name in names if all(isinstance(row.get(name), (int, float)) for row in rows)}
    shown: list[str] = []
    for name in names:
        if sum(widths[other] + 2 for other in shown) + widths[name] <= width:
            shown.append(name)

    def line(values: dict[str, str]) -> str:
        padded = (
            " " * (widths[name] - _width(values[name])) + values[name]
            if name in numbers
            else values[name] + " " * (widths[name] - _width(values[name]))
            for name in shown
        )
        return "  ".join(padded).rstrip()

    yield line({name: name for name in names})
    for position in range(len(rows)):
        yield line({name: cells[name][position] for name in names})


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    # Control characters could affect the terminal.
    kept = (" " if letter.isspace() else letter for letter in text if letter.isspace() or not _is_control(letter))
    text = "".join(kept)
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) == "Cc"


def _width(text: str) -> int:
    """Return how many columns a text takes in a terminal."""
    return sum(
        0
        if unicodedata.combining(letter) or unicodedata.category(letter) in {"Mn", "Me", "Cf"}
        else 2
        if unicodedata.east_asian_width(letter) in {"W", "F"}
        else 1
        for letter in text
    )
