"""What goes wrong around a process: no disk, no file, no thread, another file, a killed writer. Nothing is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

import datasette_vision
from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.load import load
from datasette_vision.config.settings import AutoEmbed as Settings
from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import InvalidArgument, ModelCorrupt, NotEmbedded
from datasette_vision.models.store import ModelStore
from datasette_vision.plugin.server.activity import Activity
from datasette_vision.plugin.server.auto_embed import Watched
from datasette_vision.retrieval.index_entry import IndexEntry
from datasette_vision.retrieval.indexes import Indexes
from datasette_vision.retrieval.search import Searcher
from datasette_vision.tables.schema import SideTable
from datasette_vision.vectors import index_file
from tests import kills, pictures
from tests.kills import SCENARIOS, Scenario
from tests.paths import ROOT
from tests.servers import serve
from tests.vectors.test_index import clustered, index_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and mounts of Linux")


def run(scenario: Scenario, folder: Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [*scenario.command, *scenario.arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        preexec_fn=limited,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


# A disk that is full


def half_of_what_grew_most(before: Path, after: Path) -> int:
    """Return the bytes of a file, at most, with which a command fails somewhere in the middle of its writing."""
    sizes = {}
    for path in after.rglob("*"):
        if path.is_file():
            given = before / path.relative_to(after)
            size = given.stat().st_size if given.exists() else 0
            # What is written to a database in WAL mode goes to a file beside it, which begins empty.
            is_wal = path.read_bytes()[18:19] == b"\x02" and path.suffix == ".db"
            sizes[path.stat().st_size - size] = 0 if is_wal else size
    grown = max(sizes)
    assert grown > 0
    return sizes[grown] + grown // 2


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_full_disk_ends_a_command_with_one_line_and_once_there_is_room_it_goes_on(
    scenario: Scenario, tmp_path: Path
) -> None:
    scenario = dataclasses.replace(scenario, size=scenario.size // 4)
    given, whole, full = (tmp_path / name for name in ("given", "whole", "full"))
    given.mkdir()
    scenario.make(given, scenario.size)
    for folder in (whole, full):
        shutil.copytree(given, folder)
    result = run(scenario, whole)
    assert result.returncode == scenario.codes[0], result.stderr
    found = run(scenario, full, half_of_what_grew_most(given, whole))
    assert found.returncode not in {0, *scenario.codes}, (found.stdout, found.stderr)
    assert "Traceback" not in found.stderr, found.stderr
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: "), found.stderr
    assert any(word in last for word in ("full", "I/O error", "File too large", "written", "cannot write")), last
    result = run(scenario, full)
    assert result.returncode in scenario.codes, result.stderr
    assert kills.differences(scenario.end(whole), scenario.end(full)) == []


def test_an_index_that_does_not_fit_on_the_disk_is_an_oserror(tmp_path: Path) -> None:
    view = index_of(clustered(3000)).view
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            index_file.save_index(tmp_path / "x.index", {}, view.space, view.base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


# What cannot be written to


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write to a folder, not even root."""
    mounts = ["mount", "--bind", str(folder), str(folder)], ["mount", "-o", "remount,ro,bind", str(folder)]
    if os.geteuid() != 0:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        return
    if subprocess.run(mounts[0], capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(mounts[1], capture_output=True, check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_folder_that_cannot_be_written_to(scenario: Scenario, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    scenario.make(given, 40)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in given.rglob("*"))
    with read_only(given):
        found = run(scenario, given)
    assert found.returncode not in {0, 3}, (found.stdout, found.stderr)
    assert "Traceback" not in found.stderr, found.stderr
    assert found.stderr.strip().splitlines()[-1].startswith("Error: "), found.stderr
    assert sorted((path.name, path.stat().st_mtime_ns) for path in given.rglob("*")) == before


# Another file in the place of the database


def make_texts(path: Path, vision: Vision, names: list[str]) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("create table things (id integer primary key, name text)")
        connection.executemany("insert into things (name) values (?)", [(name,) for name in names])
        connection.commit()
    embed_table(path, "things", vision=vision, column="name")


async def nearest(datasette: Datasette, query: str) -> tuple[int, Any]:
    parameters = {"q": query, "_size": "1"}
    response = await datasette.client.get("/-/vision/search/things/things", params=parameters)
    body = response.json()
    return response.status_code, body["rows"][0]["row"]["name"] if response.status_code == 200 else body


@pytest.fixture
def things(tmp_path: Path, vision: Vision) -> Path:
    path = tmp_path / "things.db"
    make_texts(path, vision, ["red apple", "fire engine", "happy cat"])
    return path


@pytest.fixture
def others(tmp_path: Path, vision: Vision) -> Path:
    path = tmp_path / "others" / "things.db"
    path.parent.mkdir()
    make_texts(path, vision, ["violin", "purple heart", "sad cat", "green apple"])
    return path


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["backup", "copy"])
async def test_a_backup_that_is_restored_in_place_is_searched_at_once(things: Path, others: Path, how: str) -> None:
    datasette = Datasette([str(things)])
    assert await nearest(datasette, "happy cat") == (200, "happy cat")
    if how == "copy":
        things.write_bytes(others.read_bytes())
    else:
        with contextlib.closing(sqlite3.connect(others)) as source, contextlib.closing(sqlite3.connect(things)) as to:
            source.backup(to)
    assert await nearest(datasette, "happy cat") == (200, "sad cat")
    assert await nearest(datasette, "red apple") == (200, "green apple")


@pytest.mark.asyncio
async def test_garbage_in_the_place_of_a_database_is_an_error_and_the_database_serves_again(things: Path) -> None:
    datasette = Datasette([str(things)])
    content = things.read_bytes()
    assert await nearest(datasette, "happy cat") == (200, "happy cat")
    things.write_bytes(b"garbage." * (len(content) // 8))
    status, body = await nearest(datasette, "a dog")
    # Datasette looks at each database before it answers anything, and 0.65 does so with an error page of its own.
    assert status in (500, 503)
    assert "file is not a database" in str(body), body
    things.write_bytes(content)
    assert await nearest(datasette, "a happy cat") == (200, "happy cat")


def test_a_file_that_is_replaced_is_not_read_again_for_each_search(
    things: Path, others: Path, vision: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection goes on with the file that it opened, and finds what is in it."""
    reads: list[str] = []
    real = IndexEntry.read
    monkeypatch.setattr(IndexEntry, "read", lambda *given: (reads.append("read"), real(*given))[1])
    searcher = Searcher(vision, improve=False)
    with contextlib.closing(sqlite3.connect(things, isolation_level=None)) as connection:

        def first(query: str) -> object:
            (hit,) = searcher.search(connection, "things", query, 1)
            return connection.execute("select name from things where id = ?", (hit.rowid,)).fetchone()[0]

        assert connection.execute("select count(*) from things").fetchone() == (3,)
        others.replace(things)
        for _ in range(5):
            assert first("happy cat") == "happy cat"
            assert first("an apple") == "red apple"
    assert 1 <= len(reads) <= 2


def test_auto_embed_writes_nothing_once_a_file_was_replaced(things: Path, others: Path, vision: Vision) -> None:
    datasette = Datasette([str(things)])
    written: list[object] = []
    watched = Watched(
        datasette.get_database("things"),
        written.append,  # type: ignore[arg-type]
        Settings(),
        Activity(),
        lambda: vision,
    )
    try:
        watched.visit()
        assert watched.error is None
        others.replace(things)
        assert not watched.visit()
        assert watched.error == f"{things} is replaced by another: restart the server"
        things.unlink()
        assert not watched.visit()
        assert watched.error == f"{things} is gone: restart the server"
        assert written == []
    finally:
        watched.close()


# A writer that was killed in the middle of a transaction


def interrupt(path: Path) -> None:
    """Kill a process that has half-written a transaction to a database."""
    code = """
        import os, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("pragma cache_size = 1")
        connection.execute("begin immediate")
        connection.execute("create table ballast (a)")
        connection.execute("insert into ballast with recursive n(x) as (select 1 union all select x + 1 from n"
                           " where x < 2000) select zeroblob(500) from n")
        connection.execute("update things set name = 'half-written'")
        os.kill(os.getpid(), 9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path)], check=False)
    assert Path(f"{path}-journal").stat().st_size > 0
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with contextlib.closing(connection), pytest.raises(sqlite3.OperationalError):
        connection.execute("select * from things").fetchall()


@pytest.mark.asyncio
async def test_a_server_reads_a_database_whose_writer_was_killed(things: Path) -> None:
    datasette = Datasette([str(things)])
    for query in ("happy cat", "a cat that is happy"):  # when it starts, and while it runs
        interrupt(things)
        assert await nearest(datasette, query) == (200, "happy cat")
        page = await datasette.client.get("/things/things.json?_shape=array")
        assert [row["name"] for row in page.json()] == ["red apple", "fire engine", "happy cat"]


def test_an_immutable_database_is_left_as_it_is(things: Path) -> None:
    interrupt(things)
    before = things.read_bytes()
    datasette = Datasette([], immutables=[str(things)])
    with contextlib.suppress(Exception):
        datasette.get_database("things").connect().execute("select 1").fetchall()
    assert things.read_bytes() == before


def test_the_commands_that_read_such_a_database(things: Path) -> None:
    for command in (["search", str(things), "things", "happy cat"], ["index", str(things), "things"]):
        interrupt(things)
        result = subprocess.run([*kills.DATASETTE, *command], capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr


# No threads


def test_without_threads_an_index_is_read_by_the_thread_that_asks(
    things: Path, vision: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = Searcher(vision)
    vision.embed_text("happy cat")  # so that no thread is needed for the model

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with contextlib.closing(sqlite3.connect(things, isolation_level=None)) as connection:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert searcher.search(connection, "things", "happy cat", 1)[0].rowid == 3
        assert searcher.search(connection, "things", "happy cat", 1)[0].rowid == 3
    searcher.indexes.wait()


def test_work_in_the_background_that_gets_no_thread_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    indexes = Indexes()
    begun: list[str] = []
    monkeypatch.setattr("datasette_vision.retrieval.index_maintenance.next_step", lambda entry: "a step")
    monkeypatch.setattr(Indexes, "_do", lambda self, *given: begun.append("work"))

    class Wanted:
        class source:
            table = "things"

        def in_schema(self, schema: str) -> Wanted:
            return self

    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda thread: (_ for _ in ()).throw(RuntimeError("no thread")))
            indexes._improve(("path",), IndexEntry(), connection, Wanted())  # type: ignore[arg-type]
        indexes.wait()
        indexes._improve(("path",), IndexEntry(), connection, Wanted())  # type: ignore[arg-type]
        indexes.wait()
    assert begun == ["work"]


# No file descriptors


def test_a_server_without_file_descriptors_recovers(tmp_path: Path, things: Path) -> None:
    with serve(tmp_path, str(things)) as server:
        port = int(server.address.rpartition(":")[2])
        used = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 6, before[1]))
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
        with pytest.raises((urllib.error.URLError, OSError)):
            urllib.request.urlopen(f"{server.address}/-/vision/embed?text=cat", timeout=3)
        assert server.process.poll() is None
        for each in sockets:
            each.close()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
        assert b"embedding" in server.get("/-/vision/embed?text=cat")
        assert b"happy cat" in server.get("/-/vision/search/things/things?q=happy+cat&_size=1")


# Models


def test_a_model_that_is_damaged_under_a_server_is_named_and_serves_again_when_it_is_back(
    fake_models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(fake_models, folder)
    graph, hidden = folder / "fake/text.onnx", folder / "hidden"
    content = graph.read_bytes()
    vision = Vision(Config(default_model="fake"), store=ModelStore(folder))
    try:
        expected = vision.embed_text("cat").tolist()
        graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert vision.embed_text("dog").any()  # what is loaded serves on
    finally:
        vision.close()
    vision = Vision(Config(default_model="fake"), store=ModelStore(folder))
    try:
        for _ in range(2):
            with pytest.raises(ModelCorrupt, match=r"text\.onnx: expected the SHA-256"):
                vision.embed_text("cat")
        graph.rename(hidden)
        with pytest.raises(ModelCorrupt, match=r"text\.onnx: cannot be read"):
            vision.embed_text("cat")
        graph.write_bytes(content)
        assert vision.embed_text("cat").tolist() == expected
    finally:
        vision.close()


# Tables that somebody changed by hand


@pytest.fixture
def searched(things: Path, vision: Vision) -> Iterator[tuple[sqlite3.Connection, Searcher]]:
    searcher = Searcher(vision, improve=False)
    with contextlib.closing(sqlite3.connect(things, isolation_level=None)) as connection:
        assert searcher.search(connection, "things", "happy cat", 1)[0].rowid == 3
        yield connection, searcher


def test_a_side_table_that_was_dropped(
    searched: tuple[sqlite3.Connection, Searcher], things: Path, vision: Vision
) -> None:
    connection, searcher = searched
    connection.execute("drop table _vision_things")
    with pytest.raises(NotEmbedded, match="things has no embeddings yet"):
        searcher.search(connection, "things", "happy cat", 1)
    connection.execute("delete from things where id = 3")
    embed_table(things, "things", vision=vision, column="name")
    hits = searcher.search(connection, "things", "happy cat", 3)
    assert [hit.rowid for hit in hits if hit.rowid == 3] == []
    assert len(hits) == 2


def test_the_log_of_changes_that_was_dropped(
    searched: tuple[sqlite3.Connection, Searcher], things: Path, vision: Vision
) -> None:
    connection, searcher = searched
    connection.execute("drop table _visionchanges")
    assert searcher.search(connection, "things", "happy cat", 1)[0].rowid == 3
    connection.execute("insert into things values (4, 'happy cat with a hat')")
    embed_table(things, "things", vision=vision, column="name")
    assert {hit.rowid for hit in searcher.search(connection, "things", "happy cat", 2)} == {3, 4}


def test_a_side_table_that_was_altered(
    searched: tuple[sqlite3.Connection, Searcher], things: Path, vision: Vision
) -> None:
    connection, searcher = searched
    connection.execute("alter table _vision_things add column note text")
    with pytest.raises(InvalidArgument, match="_vision_things has other columns than a side table: expected id,"):
        embed_table(things, "things", vision=vision, column="name")
    with pytest.raises(NotEmbedded):
        searcher.search(connection, "things", "happy cat", 1)
    connection.execute("alter table _vision_things drop column note")
    assert searcher.search(connection, "things", "happy cat", 1)[0].rowid == 3


def test_embeddings_that_were_overwritten_by_hand(searched: tuple[sqlite3.Connection, Searcher]) -> None:
    connection, searcher = searched
    connection.execute("update _vision_things set embedding = x'00' where id = 3")
    connection.execute("update _vision_things set embedding = 'text' where id = 2")
    assert [hit.rowid for hit in searcher.search(connection, "things", "happy cat", 3)] == [1]


def test_an_interrupted_writer_says_what_sqlite_said(tmp_path: Path) -> None:
    """SQLite ends a transaction itself when the disk is full: to end it again was the error that people saw."""
    path = tmp_path / "x.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("create table things (id integer primary key)")
        connection.execute("pragma max_page_count = 3")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            SideTable("things", ("id",)).create(connection)
        assert not connection.in_transaction


# A clock that is set back


def test_times_decide_nothing_about_rows(things: Path, vision: Vision) -> None:
    """Rows that were embedded tomorrow, by a clock since set right, are as good as any: contents are compared."""
    with contextlib.closing(sqlite3.connect(things)) as connection:
        connection.execute("update _vision_things set embedded_at = '2999-01-01T00:00:00Z'")
        connection.commit()
        summary = embed_table(things, "things", vision=vision, column="name")
        assert (summary.embedded, summary.unchanged) == (0, 3)
        connection.execute("update things set name = 'sad cat' where id = 3")
        connection.commit()
        summary = embed_table(things, "things", vision=vision, column="name")
        assert (summary.embedded, summary.unchanged) == (1, 2)


def test_a_photo_that_is_older_than_what_was_read_is_read_again(tmp_path: Path, vision: Vision) -> None:
    photo, tomorrow = tmp_path / "photos/a.png", time.time() + 86400
    photo.parent.mkdir()
    photo.write_bytes(pictures.png(seed=1))
    os.utime(photo, (tomorrow, tomorrow))
    path = tmp_path / "photos.db"
    counts = []
    for _ in range(2):
        summary = load(path, [str(photo.parent)], vision=vision)
        counts.append((summary.embedded, summary.unchanged))
    photo.write_bytes(pictures.png(seed=2))  # now, before the time that is in the table
    summary = load(path, [str(photo.parent)], vision=vision)
    counts.append((summary.embedded, summary.unchanged))
    assert counts == [(1, 0), (0, 1), (1, 0)]


def test_only_leftovers_are_judged_by_the_clock_on_the_wall() -> None:
    """Whatever else waits or measures uses a clock that nobody sets."""
    package = Path(datasette_vision.__file__).parent
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\btime\.time\(|datetime\.now\(|\butcnow\(", path.read_text("utf-8"))
    }
    assert users == {"install/staging.py", "util/partial_files.py"}
