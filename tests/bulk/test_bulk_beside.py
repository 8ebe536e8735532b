"""Jobs that are killed, and jobs beside a server: nothing is lost, locked or wrong."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from tests import pictures

ROWS, BROKEN, KILLS = 800, 10, 3
# Of 5,000 pictures in ten kills 5 % may be computed twice.
TWICE_A_KILL = 25


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with many small pictures, ten of them broken."""
    path = tmp_path_factory.mktemp("table") / "photos.db"
    connection = sqlite3.connect(path)
    connection.execute("create table photos (id integer primary key, image blob)")
    images = [pictures.png(18, 18 + number % 7, number) for number in range(ROWS)]
    for number in broken():
        images[number] = images[number][:60]
    connection.executemany("insert into photos values (?, ?)", enumerate(images))
    connection.commit()
    connection.close()
    return path


def broken() -> list[int]:
    return sorted(random.Random(1).sample(range(ROWS), BROKEN))


def contents(path: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        sql = "select id, source_column, model, content_hash, embedding, error from _vision_photos order by 1, 2, 3"
        return connection.execute(sql).fetchall()


def count(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        try:
            return int(connection.execute("select count(*) from _vision_photos").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_job_that_is_killed_again_and_again(table: Path, fake_models: Path, tmp_path: Path, mode: str) -> None:
    def start(database: Path, log: Path) -> subprocess.Popen[bytes]:
        module = [sys.executable, "-m", "tests.bulk_worker"]
        return subprocess.Popen([*module, str(database), str(fake_models), str(log)])

    whole, killed, log = tmp_path / "whole.db", tmp_path / "killed.db", tmp_path / "log"
    for database in (whole, killed):
        shutil.copy(table, database)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute(f"pragma journal_mode = {mode}")
    assert start(whole, tmp_path / "whole.log").wait() == 0
    source = random.Random(2)
    for kill in range(KILLS):
        process = start(killed, log)
        at = ROWS * (kill + source.random()) / (KILLS + 1)
        while count(killed) < at and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None
        process.kill()
        process.wait()
    assert 0 < count(killed) < ROWS
    assert start(killed, log).wait() == 0
    found = contents(killed)
    assert found == contents(whole)
    assert len(found) == ROWS
    assert [row[0] for row in found if row[4] is None] == broken()
    assert all(row[5].startswith("truncated PNG image") for row in found if row[4] is None)
    inferences = log.stat().st_size
    assert tmp_path.joinpath("whole.log").stat().st_size == ROWS - BROKEN
    assert 0 <= inferences - (ROWS - BROKEN) <= TWICE_A_KILL * KILLS


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.asyncio
async def test_datasette_serves_and_writes_while_a_job_writes(table: Path, tmp_path: Path, mode: str) -> None:
    database = Path(shutil.copy(table, tmp_path))
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute(f"pragma journal_mode = {mode}")
        connection.execute("create table visits (seen integer)")
        for number in range(ROWS, 2 * ROWS):  # so that it takes a while
            connection.execute("insert into photos values (?, ?)", (number, pictures.png(18, 18, number)))
        connection.commit()
    datasette = Datasette([str(database)])
    await datasette.invoke_startup()

    async def query(sql: str) -> list[dict[str, Any]]:
        parameters = {"sql": sql, "_shape": "array"}
        response = await datasette.client.get("/photos.json", params=parameters, follow_redirects=True)
        assert response.status_code == 200, response.text
        return response.json()

    command = [sys.executable, "-m", "datasette", "vision", "embed", str(database), "photos"]
    process = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    seen = [0]
    while process.returncode is None:
        if not await query("select 1 as x from sqlite_master where name = '_vision_photos'"):
            await asyncio.sleep(0.01)
            continue
        (row,) = await query(
            "select count(*) as rows, count(embedding) as embedded, count(error) as failed,"
            " coalesce(sum(length(embedding) != 1024), 0) as wrong, max(id) as last from _vision_photos"
        )
        assert row["rows"] == row["embedded"] + row["failed"]
        assert row["wrong"] == 0
        seen.append(row["rows"])
        nearest = await query(
            "select id from _vision_photos where embedding is not null order by vision_similarity(embedding,"
            " (select embedding from _vision_photos where id = 1)) desc limit 1"
        )
        assert nearest in ([], [{"id": 1}])
        await datasette.get_database("photos").execute_write("insert into visits values (?)", [row["rows"]])
        await asyncio.sleep(0)
    output, errors = await process.communicate()
    assert process.returncode == 3, errors
    assert f"{2 * ROWS - BROKEN:,} embedded, 0 unchanged, {BROKEN} failed".encode() in output
    assert seen == sorted(seen)
    assert len(set(seen)) > 3  # it was looked at while it worked
    assert len(await query("select * from visits limit 1000")) == min(len(seen) - 1, 1000)
    assert len(contents(database)) == 2 * ROWS
