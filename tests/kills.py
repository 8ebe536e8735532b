"""Bulk commands that are killed with SIGKILL at random moments, and run again: do they end as one that nobody disturbs?

A Scenario makes its input once, in a folder, and says what the command's end is. `undisturbed()` runs it in a copy of
that folder; `killed()` does so too, kills it at a random share of the time that took, and runs it again, until the end
or until the next kill. Both ends have to be the same: rows, embeddings to the bit, errors, answers to searches, and
the files in the folder, so that nothing is left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasette_vision.engine.vision import Vision
from datasette_vision.retrieval.search import Searcher
from datasette_vision.tables import side_tables
from datasette_vision.tables.schema import SIDE_TABLE_PREFIX, SideTable, SideTableRow
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors import index_file
from tests import pictures
from tests.paths import ROOT

MODEL, DIMENSIONS = "tiny-emoji", 256
DATABASE = "photos.db"
# What differs from run to run, rightly: when it was written, and stamps that are random.
MOMENTS = {"embedded_at", "gone_at"}
LOG = "_visionchanges"
SEARCHES = 5
# A command that takes a hundred times as long as it did does not come to its end.
PATIENCE = 100
DATASETTE = [sys.executable, "-m", "datasette", "vision"]
End = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """A command, in the folder where it runs.

    `make(folder, size)` writes its input. `arguments` follow `command`. `end(folder)` reads what came of it, and
    `codes` are its exit codes: 3 where images cannot be read. A run that is resumed may end with any of them, since
    embed-files passes over what an earlier run could not read.
    """

    name: str
    arguments: tuple[str, ...]
    make: Callable[[Path, int], None]
    end: Callable[[Path], End]
    size: int
    command: tuple[str, ...] = tuple(DATASETTE)
    codes: tuple[int, ...] = (0,)


@dataclass
class Report:
    """What came of the kills of one scenario: moments as a share of an undisturbed run, and what was found wrong.

    `unreadable` counts the kills after which a connection that may only read, as Datasette's are, cannot read the
    database until somebody writes to it.
    """

    scenario: Scenario
    seconds: float = 0.0
    moments: list[float] = field(default_factory=list)
    ends: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Undisturbed:
    """A run in one go: its end, when it first changed a file, and how long it took, in seconds."""

    end: End
    first_change: float
    seconds: float


def killed(scenario: Scenario, folder: Path, kills: int, seed: int, again: float = 0.4) -> Report:
    """Kill a scenario's command so many times, in `folder`; `again` is how often what is resumed is killed too."""
    draw = random.Random(f"{scenario.name} {seed}")
    given = folder / "given"
    given.mkdir(parents=True)
    scenario.make(given, scenario.size)
    expected = undisturbed(scenario, given, folder / "undisturbed")
    report = Report(scenario, seconds=expected.seconds)
    trial = 0
    while len(report.moments) < kills:
        trial += 1
        work = folder / f"trial-{trial}"
        shutil.copytree(given, work)
        while (killed_at := _run_and_kill(scenario, work, expected, draw)) is not None:
            report.moments.append(killed_at)
            _look_at(work, folder / "copy", expected.end, report, f"kill {len(report.moments)}")
            if len(report.moments) == kills or draw.random() >= again:
                break
        process = _start(scenario, work)
        output = _finished(process, expected.seconds)
        report.ends += 1
        label = f"trial {trial}, after {len(report.moments)} kills"
        if process.returncode not in scenario.codes:
            report.problems.append(f"{label}: exit code {process.returncode}: {output}")
        else:
            report.problems += [f"{label}: {problem}" for problem in differences(expected.end, scenario.end(work))]
        shutil.rmtree(work)
    return report


def _run_and_kill(scenario: Scenario, folder: Path, expected: Undisturbed, draw: random.Random) -> float | None:
    """Run a command and kill it; return when, as a share of its time, or None where it was quicker.

    One in four is killed before it writes anything. For the others the time is taken from when it first does, since
    how long Python takes to start says nothing of where in its work a command is.
    """
    before = _state(folder)
    work = expected.seconds - expected.first_change
    early = draw.random() < 0.25
    wait = draw.uniform(0.5, 1) * expected.first_change if early else draw.random() * work
    process = _start(scenario, folder)
    if not early:
        while process.poll() is None and _state(folder) == before:
            time.sleep(0.001)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=wait)
    ended = process.poll() is not None
    process.kill()
    process.communicate()
    return None if ended else (wait + (0 if early else expected.first_change)) / expected.seconds


def undisturbed(scenario: Scenario, given: Path, folder: Path) -> Undisturbed:
    """Run a scenario's command in one go."""
    shutil.copytree(given, folder)
    before, first_change = _state(folder), 0.0
    began = time.monotonic()
    process = _start(scenario, folder)
    while process.poll() is None:
        if not first_change and _state(folder) != before:
            first_change = time.monotonic() - began
        time.sleep(0.002)
    seconds = time.monotonic() - began
    output = _finished(process, seconds)
    assert process.returncode == scenario.codes[0], output
    return Undisturbed(scenario.end(folder), first_change or seconds / 2, seconds)


def differences(expected: End, found: End) -> list[str]:
    """Say what of an end is not as expected."""
    return [
        f"{key}: {_difference(expected.get(key), found.get(key))}"
        for key in sorted({*expected, *found})
        if expected.get(key) != found.get(key)
    ]


def database_end(folder: Path) -> End:
    """Read all that the database of a folder says, answers to searches, and which files there are."""
    files = _files(folder)  # those who read make more of them
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection:
        end: End = {"files": files, "integrity": connection.execute("pragma integrity_check").fetchall()}
        end["page size"] = connection.execute("pragma page_size").fetchall()
        end["schema"] = sorted(connection.execute("select type, name, tbl_name, sql from sqlite_master").fetchall())
        for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
            if table != LOG:
                end[f"rows of {table}"] = _rows(connection, table)
        for source in side_tables.sources(connection):
            for model, column in side_tables.pairs(connection, source):
                end[f"search of {source.table}"] = _answers(folder, source.table, model, column)
    for file in sorted(folder.rglob("*.index")):
        index_file.verify_index(file)
        saved = index_file.open_index(file)
        end[file.name] = (saved.about | {"state": None}, sorted(saved.base.labels.tolist()))
    return end


def parquet_end(folder: Path) -> End:
    """Read all rows of the Parquet files of a folder, each of them known by its path, and which files there are."""
    import pyarrow.parquet as pq

    tables = [pq.read_table(file) for file in sorted((folder / "out").glob("*.parquet"))]
    rows = sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row["path"])
    for row in rows:
        row["path"] = row["path"].replace(str(folder), "FOLDER")
        row["embedding"] = None if row["embedding"] is None else np.array(row["embedding"], np.float32).tobytes()
    # In how many files the rows are depends on where a run was stopped: their names are digests.
    return {
        "rows": [tuple(row.values()) for row in rows],
        "files": sorted(name for name in _files(folder) if not name.endswith(".parquet")),
    }


# Inputs


def make_pictures(folder: Path, size: int) -> None:
    """Write PNG files, some of them cut off, and two of each hundred the same."""
    for number in range(size):
        path = folder / "pictures" / f"{number // 100:02d}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_picture(number))


def make_table(folder: Path, size: int) -> None:
    """Write a database with pictures in a table, some of them cut off, in write-ahead mode."""
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("create table photos (id integer primary key, image blob)")
        connection.executemany("insert into photos values (?, ?)", ((n, _picture(n)) for n in range(size)))
        connection.commit()


def make_embedded(folder: Path, size: int) -> None:
    """Write a database with a table that is embedded."""
    with contextlib.closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        connection.execute("create table photos (id integer primary key, path text)")
        side = SideTable("photos", ("id",))
        side.create(connection)
        _embed(connection, side, range(size))


def make_indexed(folder: Path, size: int) -> None:
    """Write a database with a table that is embedded, indexed, and then changed."""
    make_embedded(folder, size)
    subprocess.run([*DATASETTE, "index", DATABASE, "photos"], cwd=folder, check=True, capture_output=True)
    with contextlib.closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        connection.execute(f"delete from {SIDE_TABLE_PREFIX}photos where id % 17 = 0")
        _embed(connection, SideTable("photos", ("id",)), range(size, size + size // 4))


def make_parquet(folder: Path, size: int) -> None:
    """Write Parquet files of embeddings, of which one in a hundred is an error."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "embeddings").mkdir()
    matrix = _matrix(size)
    for part in range(4):
        numbers = range(part, size, 4)
        missing = [number % 100 == 7 for number in numbers]
        columns = {
            "path": [f"{number:06d}.jpg" for number in numbers],
            "digest": [hashlib.sha256(b"%d" % number).hexdigest() for number in numbers],
            "embedding": [None if gone else matrix[n].tolist() for n, gone in zip(numbers, missing, strict=True)],
            "error": ["a truncated JPEG image" if gone else None for gone in missing],
        }
        pq.write_table(pa.table(columns), folder / "embeddings" / f"part-{part}.parquet")


SCENARIOS = (
    Scenario("load", ("load", DATABASE, "pictures", "--quiet"), make_pictures, database_end, 400, codes=(3,)),
    Scenario("embed", ("embed", DATABASE, "photos", "--quiet"), make_table, database_end, 700, codes=(3,)),
    Scenario("index", ("index", DATABASE, "photos"), make_embedded, database_end, 40_000),
    Scenario("index, again", ("index", DATABASE, "photos"), make_indexed, database_end, 5_000),
    Scenario(
        "import-embeddings",
        ("import-embeddings", DATABASE, "photos", "embeddings", "--create", "--model", MODEL, "--quiet"),
        make_parquet,
        database_end,
        12_000,
    ),
    Scenario(
        "embed-files",
        ("embed-files", "pictures", "--output", "out", "--rows-per-file", "20", "--quiet"),
        make_pictures,
        parquet_end,
        400,
        codes=(3, 0),
    ),
)


def _picture(number: int) -> bytes:
    content = pictures.png(64, 48 + number % 7, number if number % 50 else 50)
    return content[: len(content) * 2 // 3] if number % 40 == 11 else content


def _matrix(size: int) -> np.ndarray:
    """Return unit vectors in clusters, as those of pictures are: (size, 256) float32."""
    draw = np.random.default_rng(size)
    centres = draw.standard_normal((64, DIMENSIONS)).astype(np.float32)
    matrix = centres[draw.integers(0, 64, size)] + 0.6 * draw.standard_normal((size, DIMENSIONS)).astype(np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _embed(connection: sqlite3.Connection, side: SideTable, numbers: range) -> None:
    matrix = _matrix(numbers.stop)[numbers.start :]
    connection.execute("begin")
    connection.executemany("insert into photos values (?, ?)", ((n, f"{n}.jpg") for n in numbers))
    rows = (SideTableRow((n,), "path", MODEL, f"{n}", vectors.to_blob(v)) for n, v in zip(numbers, matrix, strict=True))
    side.write(connection, rows)
    connection.execute("commit")


# Runs


def _start(scenario: Scenario, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*scenario.command, *scenario.arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
    )


def _finished(process: subprocess.Popen[str], seconds: float) -> str:
    """Wait for the end, and return what was printed."""
    try:
        output, _ = process.communicate(timeout=PATIENCE * seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output += "\nkilled: it did not end"
    return output.strip()[-2000:]


def _look_at(work: Path, copy: Path, expected: End, report: Report, label: str) -> None:
    """See that what a killed command leaves can be read, and that all that is in it is right."""
    if not (work / DATABASE).exists():
        return
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in work.glob(f"{DATABASE}*"):
        if file.is_file():
            shutil.copy2(file, copy)
    try:
        with contextlib.closing(sqlite3.connect(f"file:{copy / DATABASE}?mode=ro", uri=True)) as connection:
            connection.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.Error:
        report.unreadable += 1
    with contextlib.closing(sqlite3.connect(copy / DATABASE)) as connection:
        if (found := connection.execute("pragma integrity_check").fetchall()) != [("ok",)]:
            report.problems.append(f"{label}: {found}")
        for (table,) in connection.execute(
            "select name from sqlite_master where type = 'table' and substr(name, 1, ?) = ?",
            (len(SIDE_TABLE_PREFIX), SIDE_TABLE_PREFIX),
        ).fetchall():
            known = set(expected[f"rows of {table}"][1])
            wrong = [row for row in _rows(connection, table)[1] if row not in known]
            if wrong and not report.scenario.name.startswith("index"):
                report.problems.append(f"{label}: {table} has {len(wrong)} rows that are not of the end: {wrong[0]}")


def _rows(connection: sqlite3.Connection, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    columns = [row[1] for row in connection.execute(f'pragma table_info("{table}")') if row[1] not in MOMENTS]
    shown = ", ".join(f'"{column}"' for column in columns)
    rows = connection.execute(
        f'select {shown} from "{table}" order by {", ".join(map(str, range(1, len(columns) + 1)))}'
    ).fetchall()
    folder = str(Path(connection.execute("pragma database_list").fetchone()[2]).parent).encode()
    return columns, [
        tuple(value.replace(folder.decode(), "FOLDER") if isinstance(value, str) else value for value in row)
        for row in rows
    ]


def _answers(folder: Path, table: str, model: str, column: str) -> list[list[tuple[Any, ...]]]:
    """Search for some rows of a table, by what the command saved where it saves an index."""
    vision = Vision()
    uri = f"file:{folder / DATABASE}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            searcher = Searcher(vision, improve=False)
            side = f'"{SIDE_TABLE_PREFIX}{table}"'
            sql = f"select embedding from {side} where embedding is not null order by content_hash limit ?"
            blobs = connection.execute(sql, (SEARCHES,)).fetchall()
            return [
                [
                    (*hit.key.values(), round(hit.similarity, 6))
                    for hit in searcher.search(connection, table, blob, 5, model, column)
                ]
                for (blob,) in blobs
            ]
    finally:
        vision.close()


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _state(folder: Path) -> set[tuple[str, int, int]]:
    return set(_walk(str(folder)))


def _walk(folder: str) -> Iterator[tuple[str, int, int]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == "pictures":  # many, and only read
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                yield entry.path, status.st_size, status.st_mtime_ns
                if entry.is_dir():
                    yield from _walk(entry.path)


def _difference(expected: Any, found: Any) -> str:
    """Show where two values part."""
    if isinstance(expected, tuple) and isinstance(found, tuple) and len(expected) == len(found) == 2:
        expected, found = expected[1], found[1]
    if isinstance(expected, list) and isinstance(found, list):
        missing = [entry for entry in expected if entry not in found][:2]
        extra = [entry for entry in found if entry not in expected][:2]
        return f"{len(expected)} expected, {len(found)} found; missing {missing!r:.500}, more {extra!r:.500}"
    return f"expected {expected!r:.500}, found {found!r:.500}"
