"""indexes.py: what a query finds is what its connection sees, whoever writes, however the index came about."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datasette_vision.engine.vision import Vision
from datasette_vision.errors import Busy, DeadlineExceeded
from datasette_vision.retrieval import index_entry, index_maintenance, indexes
from datasette_vision.retrieval.index_entry import IndexEntry
from datasette_vision.retrieval.search import Searcher
from datasette_vision.sql import registration as sql
from datasette_vision.tables import change_log
from datasette_vision.tables.embedding_reader import Embeddings
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.util.caller import Caller, acting
from datasette_vision.util.progress import Progress
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors import index_file
from tests.paths import ROOT
from tests.vectors.test_index import clustered

SIDE = SideTable("photos", ("id",))
SIZE = 600
DIMENSIONS = 8
MATRIX = clustered(SIZE, DIMENSIONS)

# One statement, so one snapshot: what vision_search() finds, and what a comparison with every row finds.
BOTH = """
select vision_search('photos', ?1, 10), (
  select json_group_array(id) from (
    select side.id from _vision_photos side join photos using (id)
    order by vision_similarity(embedding, ?1) desc limit 10
  )
)"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database of photos with their embeddings, in WAL mode as a bulk job leaves it."""
    path = tmp_path / "photos.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    connection.execute("create table photos (id integer primary key)")
    SIDE.create(connection)
    with transaction(connection):
        write(connection, range(SIZE), MATRIX)
    connection.close()
    return path


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("begin immediate")
    yield
    connection.execute("commit")


def write(connection: sqlite3.Connection, keys: range | list[int], matrix: np.ndarray) -> None:
    connection.executemany("insert or replace into photos values (?)", ((key,) for key in keys))
    SIDE.write(
        connection,
        (SideTableRow((k,), "image", "fake", "h", vectors.to_blob(v)) for k, v in zip(keys, matrix, strict=True)),
    )


class Shared:
    """Connections to one database that share their indexes."""

    def __init__(self, vision: Vision, path: Path, **options: object) -> None:
        self.path = path
        self.messages: list[str] = []
        self.registration = sql.Registration(lambda: vision, on_error=self.messages.append)
        self.searcher = Searcher(vision, **options)  # type: ignore[arg-type]
        self._vision = vision

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)

    def search(self, connection: sqlite3.Connection, query: np.ndarray, k: int = 10) -> list[int]:
        hits = self.searcher.search(connection, "photos", vectors.to_blob(query), k)
        return [hit.key["id"] for hit in hits]

    @property
    def entry(self) -> IndexEntry:
        (entry,) = self.searcher.indexes._entries.values()
        return entry


@pytest.fixture
def shared(fake_vision: Vision, path: Path) -> Iterator[Shared]:
    shared = Shared(fake_vision, path)
    yield shared
    shared.searcher.indexes.wait()


def exact(connection: sqlite3.Connection, query: np.ndarray, k: int = 10) -> list[int]:
    rows = connection.execute(
        "select photos.id, embedding from photos join _vision_photos using (id) where model = 'fake'"
    ).fetchall()
    matrix = np.array([vectors.from_blob(row[1]) for row in rows])
    return [rows[place][0] for place in np.argsort(-(matrix @ query), kind="stable")[:k]]


def check(shared: Shared, connection: sqlite3.Connection, *queries: np.ndarray) -> None:
    for query in (*queries, MATRIX[0], MATRIX[300]):
        assert shared.search(connection, query) == exact(connection, query)


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes of more than 100 rows are saved."""
    monkeypatch.setattr(index_entry, "SAVED_NUMBERS", 100 * DIMENSIONS)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts how often a table is read as a whole, and an index opened."""
    seen: list[str] = []
    read, opened = IndexEntry.read, IndexEntry.open

    def counted_read(self: IndexEntry, *arguments: object, **options: object) -> None:
        seen.append("read")
        read(self, *arguments, **options)  # type: ignore[arg-type]

    def counted_open(self: IndexEntry, *arguments: object) -> bool:
        done = opened(self, *arguments)  # type: ignore[arg-type]
        seen.extend(["opened"] * done)
        return done

    monkeypatch.setattr(IndexEntry, "read", counted_read)
    monkeypatch.setattr(IndexEntry, "open", counted_open)
    return seen


# Never stale


@pytest.mark.parametrize("count", [1, indexes.FEW, indexes.FEW + 10, 500])
def test_what_another_connection_writes_is_seen_at_once(shared: Shared, reads: list[str], count: int) -> None:
    reader, writer = shared.connect(), shared.connect()
    check(shared, reader)
    new = clustered(count, DIMENSIONS, seed=5)
    with transaction(writer):
        write(writer, range(1000, 1000 + count), new)
    check(shared, reader, new[0])
    with transaction(writer):
        write(writer, list(range(0, 3 * count, 3))[:count], new)  # changed, or new
    check(shared, reader, new[-1], MATRIX[3])
    with transaction(writer):
        writer.execute("delete from _vision_photos where id % 2")
        writer.execute("update _vision_photos set embedding = null, error = 'x' where id % 7 = 0")
        writer.execute("delete from photos where id % 5 = 0")
    rows = writer.execute("select count(*) from photos join _vision_photos using (id) where embedding is not null")
    assert len(shared.search(reader, MATRIX[0], 5000)) == rows.fetchone()[0]
    writer.execute("delete from _vision_photos where embedding is null")
    check(shared, reader)
    assert reads == ["read"]
    reader.close()
    writer.close()


def test_what_another_process_writes_is_seen_at_once(shared: Shared, reads: list[str]) -> None:
    reader = shared.connect()
    check(shared, reader)
    statement = "delete from _vision_photos where id < 50"
    code = f"import sqlite3; c = sqlite3.connect({str(shared.path)!r}); c.execute({statement!r}); c.commit()"
    subprocess.run([sys.executable, "-c", code], check=True)
    check(shared, reader)
    assert min(shared.search(reader, MATRIX[0], 5000)) == 50
    assert reads == ["read"]
    reader.close()


@pytest.mark.parametrize("count", [5, 200])
def test_an_older_snapshot_is_searched_as_it_is(shared: Shared, reads: list[str], count: int) -> None:
    reader, other, writer = shared.connect(), shared.connect(), shared.connect()
    check(shared, reader)
    reader.execute("begin")
    before = exact(reader, MATRIX[0])
    new = clustered(count, DIMENSIONS, seed=5)
    with transaction(writer):
        writer.execute("delete from _vision_photos where id in (" + ", ".join(map(str, before[:5])) + ")")
        write(writer, range(1000, 1000 + count), new)
    check(shared, other, new[0])  # brings the index to the new state
    check(shared, reader, new[0])
    assert shared.search(reader, MATRIX[0]) == before
    reader.execute("commit")
    check(shared, reader, new[0])
    assert reads == ["read"]
    for connection in (reader, other, writer):
        connection.close()


def test_what_is_not_committed_is_for_its_own_connection_alone(shared: Shared, reads: list[str]) -> None:
    reader, writer = shared.connect(), shared.connect()
    check(shared, reader)
    new = clustered(300, DIMENSIONS, seed=5)
    writer.execute("begin immediate")
    write(writer, range(1000, 1300), new)
    check(shared, writer, new[0])
    check(shared, reader, new[0])
    writer.execute("rollback")
    check(shared, writer, new[0])
    with transaction(writer):  # as many changes as were taken back, so the same generation
        write(writer, range(2000, 2300), new[::-1].copy())
    check(shared, writer, new[0])
    check(shared, reader, new[0])
    assert reads == ["read"]
    reader.close()
    writer.close()


def test_a_database_in_memory_with_changes_that_are_not_committed(fake_vision: Vision) -> None:
    shared = Shared(fake_vision, Path(":memory:"))
    connection = shared.connect()
    connection.execute("create table photos (id integer primary key)")
    SIDE.create(connection)
    connection.execute("begin")
    write(connection, range(100), MATRIX[:100])
    check(shared, connection)
    connection.execute("rollback")
    connection.execute("begin")
    write(connection, range(100, 200), MATRIX[100:200])
    check(shared, connection, MATRIX[100])
    connection.execute("commit")
    check(shared, connection, MATRIX[100])
    connection.close()


def test_more_changes_than_are_kept(shared: Shared, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "SOME", 50)
    reader, writer = shared.connect(), shared.connect()
    check(shared, reader)
    with transaction(writer):
        writer.execute("delete from _vision_photos where id < 60")
    check(shared, reader)
    assert reads == ["read", "read"]
    reader.close()
    writer.close()


def test_a_file_put_back_from_a_backup(shared: Shared, tmp_path: Path) -> None:
    """The generation goes back, then on along another way, with as many changes."""
    writer = shared.connect()
    backup = sqlite3.connect(tmp_path / "backup.db")
    writer.backup(backup)
    new = clustered(20, DIMENSIONS, seed=5)
    with transaction(writer):
        write(writer, range(1000, 1020), new[:20])
    check(shared, writer, new[0])
    backup.backup(writer)
    check(shared, writer, new[0])
    with transaction(writer):
        write(writer, range(1000, 1020), new[::-1].copy())
    check(shared, writer, new[0], new[19])
    writer.close()
    backup.close()


def test_a_side_table_made_anew(shared: Shared) -> None:
    connection = shared.connect()
    check(shared, connection)
    connection.execute("drop table _vision_photos")
    SIDE.create(connection)
    with transaction(connection):
        write(connection, range(50), MATRIX[50:100])
    check(shared, connection, MATRIX[60])
    connection.close()


def test_the_index_is_read_once_for_all(shared: Shared, reads: list[str]) -> None:
    connections = [shared.connect() for _ in range(6)]
    threads = [threading.Thread(target=check, args=(shared, connection)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == ["read"]
    assert len(shared.searcher.indexes._entries) == 1
    for connection in connections:
        connection.close()


WRITER = """
    import sqlite3, sys, time
    import numpy as np
    from tests.retrieval.test_indexes import SIDE, transaction, write
    from tests.vectors.test_index import clustered
    connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
    random = np.random.default_rng(7)
    matrix = clustered(2000, 8, seed=9)
    print("ready", flush=True)
    for step in range(80):
        keys = random.choice(1500, random.integers(1, 120), replace=False).tolist()
        with transaction(connection):
            write(connection, keys, matrix[random.integers(0, 2000, len(keys))])
            gone = random.choice(1500, 15, replace=False).tolist()
            table = "photos" if step % 2 else "_vision_photos"
            connection.execute(f"delete from {table} where id in ({str(gone)[1:-1]})")
            if step % 20 == 19:
                connection.execute("update _vision_photos set embedding = null where id % 11 = 5")
        time.sleep(0.005)
    connection.close()
"""


@pytest.mark.parametrize("kind", ["in memory", "saved"])
def test_searching_while_another_process_writes(
    fake_vision: Vision, path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Each query on each thread finds what a comparison with all rows finds in the same snapshot."""
    if kind == "saved":
        request.getfixturevalue("saves")
    registration = sql.Registration(lambda: fake_vision)
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    answers: list[tuple[list[int], list[int]]] = []
    errors: list[Exception] = []

    def search(thread: int) -> None:
        connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        registration.register(connection)
        random = np.random.default_rng(thread)
        try:
            while writer.poll() is None:
                query = vectors.to_blob(MATRIX[random.integers(0, SIZE)])
                found, expected = connection.execute(BOTH, [query]).fetchone()
                answers.append(([hit["rowid"] for hit in json.loads(found)], json.loads(expected)))
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=search, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.stdout.close()
    assert writer.returncode == 0
    assert errors == []
    assert len(answers) > 20
    assert [pair for pair in answers if pair[0] != pair[1]] == []


# Saved


def saved(shared: Shared) -> Path:
    (file,) = (shared.path.parent / f"{shared.path.name}-vision").iterdir()
    return file


def again(shared: Shared) -> Shared:
    """The same in another process, so to speak."""
    shared.searcher.indexes.wait()
    return Shared(shared._vision, shared.path)


def test_a_small_table_is_not_saved(shared: Shared) -> None:
    connection = shared.connect()
    check(shared, connection)
    shared.searcher.indexes.wait()
    assert [file.name for file in shared.path.parent.glob("*-vision")] == []
    connection.close()


def test_an_index_is_saved_in_the_background(shared: Shared, saves: None, reads: list[str]) -> None:
    connection = shared.connect()
    check(shared, connection)
    shared.searcher.indexes.wait()
    check(shared, connection)
    index_file.verify_index(saved(shared))
    other = again(shared)
    check(other, connection)
    assert reads == ["read", "opened"]
    connection.close()


def test_a_saved_index_is_brought_up_to_date(shared: Shared, saves: None, reads: list[str]) -> None:
    connection = shared.connect()
    check(shared, connection)
    shared.searcher.indexes.wait()
    new = clustered(90, DIMENSIONS, seed=5)
    with transaction(connection):
        write(connection, range(580, 670), new)
        connection.execute("delete from _vision_photos where id < 30")
    other = again(shared)
    check(other, connection, new[0])
    assert reads == ["read", "opened"]
    connection.close()


def test_what_was_added_is_saved_too(shared: Shared, saves: None, reads: list[str]) -> None:
    connection = shared.connect()
    check(shared, connection)
    shared.searcher.indexes.wait()
    for start in range(1000, 1500, 100):
        with transaction(connection):
            write(connection, range(start, start + 100), clustered(100, DIMENSIONS, seed=start))
            connection.execute("delete from _vision_photos where id = ?", [start - 950])
        check(shared, connection)
        shared.searcher.indexes.wait()
    view = shared.entry.index and shared.entry.index.view
    assert view is not None
    assert len(view.base) > 900
    check(again(shared), connection)
    assert reads == ["read", "opened"]
    connection.close()


def test_a_table_that_has_grown_much_is_read_anew(shared: Shared, saves: None, reads: list[str]) -> None:
    """What its embeddings have in common was found out from a few of them."""
    connection = shared.connect()
    check(shared, connection)
    shared.searcher.indexes.wait()
    assert shared.entry.index is not None
    mean = shared.entry.index.view.space.mean
    with transaction(connection):
        write(connection, range(1000, 2000), vectors.normalise(clustered(1000, DIMENSIONS, seed=3) + 1))
    check(shared, connection)
    shared.searcher.indexes.wait()
    check(shared, connection)
    view = shared.entry.index and shared.entry.index.view
    assert view is not None
    assert (len(view.base), len(view.tail)) == (1600, 0)
    assert not np.allclose(view.space.mean, mean)
    assert reads == ["read", "read"]
    check(again(shared), connection)
    assert reads == ["read", "read", "opened"]
    connection.close()


def test_an_index_of_version_0_1_is_replaced(
    shared: Shared, saves: None, reads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    connection = shared.connect()
    check(shared, connection)
    shared.searcher.indexes.wait()
    file = saved(shared)
    header = {"format": 1, "dimensions": DIMENSIONS, "about": {}, "parts": {}, "kind": "graph", "expansion": 256}
    text = json.dumps(header).encode()
    end = index_file.END.pack(len(text), hashlib.sha256(text).digest(), index_file.INDEX_MAGIC)
    file.write_bytes(bytes(1000) + text + end)
    other = again(shared)
    with caplog.at_level(logging.INFO):
        check(other, connection)
    assert "is of format 1, not 2: rebuilding the index" in caplog.text
    other.searcher.indexes.wait()
    index_file.verify_index(file)
    check(again(other), connection)
    assert reads == ["read", "read", "opened"]
    connection.close()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "codes"])
def test_a_damaged_file_is_made_anew(
    shared: Shared, saves: None, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = shared.connect()
    check(shared, connection)
    shared.searcher.indexes.wait()
    file = saved(shared)
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
    elif damage == "codes":
        header = json.loads(content[content.rindex(b'{"format"') : -index_file.END.size])
        part = slice(header["parts"]["levels"]["from"], header["parts"]["levels"]["to"])
        content[part] = content[part][::-1]
    file.write_bytes({"truncate": content[:1000], "empty": b""}.get(damage, bytes(content)))
    other = again(shared)
    with caplog.at_level(logging.INFO):
        check(other, connection)
    other.searcher.indexes.wait()
    assert "rebuilding the index" in caplog.text
    index_file.verify_index(file)
    check(again(other), connection)
    connection.close()


def test_an_index_that_does_not_fit_is_found_out_while_searching(
    shared: Shared, saves: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever made it wrong: its similarities are compared with those of the table."""
    connection = shared.connect()
    check(shared, connection)
    shared.searcher.indexes.wait()
    entry = shared.entry
    assert entry.index is not None
    view = entry.index.view
    entry.index.view = replace(view, base=replace(view.base, labels=np.roll(view.base.labels, 7)))
    check(shared, connection)
    assert "does not match" in caplog.text
    assert shared.entry is not entry
    check(shared, connection)
    connection.close()


def test_a_database_loaded_from_a_dump(shared: Shared, saves: None, tmp_path: Path) -> None:
    """It has the same history, and other row numbers."""
    connection = shared.connect()
    connection.execute("delete from _vision_photos where id < 7")
    check(shared, connection)
    shared.searcher.indexes.wait()
    other = sqlite3.connect(tmp_path / "other.db")
    other.executescript("\n".join(connection.iterdump()))
    other.close()
    connection.close()
    for file in tmp_path.glob("photos.db*"):
        if file.is_file():
            file.unlink()
    shutil.move(tmp_path / "other.db", tmp_path / "photos.db")
    fresh = again(shared)
    connection = fresh.connect()
    check(fresh, connection)
    connection.close()


def test_a_vacuum_changes_nothing(shared: Shared, reads: list[str]) -> None:
    connection = shared.connect()
    connection.execute("delete from _vision_photos where id % 3 = 0")
    check(shared, connection)
    connection.execute("vacuum")
    check(shared, connection)
    assert reads == ["read"]
    connection.close()


def test_where_nothing_can_be_saved(shared: Shared, saves: None, caplog: pytest.LogCaptureFixture) -> None:
    Path(f"{shared.path}-vision").write_text("in the way")
    connection = shared.connect()
    for _ in range(3):
        check(shared, connection)
        shared.searcher.indexes.wait()
    assert caplog.text.count("cannot be saved") == 1
    connection.close()


def test_what_fails_in_the_background_is_not_tried_again(
    shared: Shared, saves: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of everything")

    monkeypatch.setattr(index_maintenance, "save", broken)
    connection = shared.connect()
    for _ in range(3):
        check(shared, connection)
        shared.searcher.indexes.wait()
    assert caplog.text.count("RuntimeError: out of everything") == 1
    connection.close()


def test_an_index_of_a_database_in_memory(fake_vision: Vision, saves: None) -> None:
    shared = Shared(fake_vision, Path(":memory:"))
    connection = shared.connect()
    connection.execute("create table photos (id integer primary key)")
    SIDE.create(connection)
    with transaction(connection):
        write(connection, range(SIZE), MATRIX)
    for _ in range(2):
        check(shared, connection)
        shared.searcher.indexes.wait()
        with transaction(connection):  # half of it changes: there is nothing to make it anew from
            write(connection, range(SIZE // 2), clustered(SIZE // 2, DIMENSIONS, seed=5))
    check(shared, connection)
    connection.close()


def test_each_model_and_column_has_its_own(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_entry, "SAVED_NUMBERS", 10)
    connection = shared.connect()
    wide = clustered(50, 12)
    with transaction(connection):
        SIDE.write(
            connection, (SideTableRow((k,), "image", "fake-wide", "h", vectors.to_blob(wide[k])) for k in range(50))
        )
    check(shared, connection)
    assert shared.searcher.search(connection, "photos", vectors.to_blob(wide[7]), 1, "fake-wide")[0].key == {"id": 7}
    shared.searcher.indexes.wait()
    names = sorted(file.name.rpartition("-")[0] for file in Path(f"{shared.path}-vision").iterdir())
    assert names == ["photos-image-fake", "photos-image-fake-wide"]
    connection.close()


# Waiting


def test_a_query_does_not_wait_for_ever(
    fake_vision: Vision, path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    shared = Shared(fake_vision, path, wait_s=0.5)
    goes_on = threading.Event()
    read = Embeddings.read

    def slow(self: Embeddings, *arguments: object) -> Iterator[object]:
        for batch in read(self, *arguments):  # type: ignore[arg-type]
            yield batch
            assert goes_on.wait(60)

    monkeypatch.setattr(Embeddings, "read", slow)
    connection = shared.connect()
    for _ in range(2):
        with pytest.raises(Busy, match=r"the embeddings of photos are being read, 600 of them so far: try again"):
            shared.search(connection, MATRIX[0])
    goes_on.set()
    shared.searcher.indexes._wait_s = None
    check(shared, connection)
    assert reads == ["read"]
    connection.close()


def test_a_query_that_would_wait_asks_to_be_admitted_first(shared: Shared, reads: list[str]) -> None:
    admitted: list[dict[str, object]] = []

    def refuse(**work: object) -> None:
        admitted.append(work)
        raise DeadlineExceeded("later")

    connection = shared.connect()
    with acting(Caller(admit=refuse)), pytest.raises(DeadlineExceeded, match="later"):
        shared.search(connection, MATRIX[0])
    assert admitted == [{}]
    assert reads == []
    check(shared, connection)
    with acting(Caller(admit=refuse)):  # there is nothing to wait for now
        assert shared.search(connection, MATRIX[0])
    connection.close()


def test_a_query_waits_until_its_deadline(
    fake_vision: Vision, path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    shared = Shared(fake_vision, path)  # which would wait for as long as it takes
    goes_on = threading.Event()
    read = Embeddings.read

    def slow(self: Embeddings, *arguments: object) -> Iterator[object]:
        assert goes_on.wait(60)
        yield from read(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Embeddings, "read", slow)
    connection = shared.connect()
    with (
        acting(Caller(deadline=time.monotonic() + 0.2)),
        pytest.raises(Busy, match="the embeddings of photos are being read"),
    ):
        shared.search(connection, MATRIX[0])
    goes_on.set()
    check(shared, connection)
    assert reads == ["read"]
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with shared.entry.lock:
            held.set()
            assert release.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    with (
        acting(Caller(deadline=time.monotonic() + 0.2)),
        pytest.raises(Busy, match="the index of photos is being brought up to date"),
    ):
        shared.search(connection, MATRIX[0])
    release.set()
    holder.join()
    check(shared, connection)
    connection.close()


def test_an_error_while_reading_is_told(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("disk on fire")

    connection = shared.connect()
    with monkeypatch.context() as patch:
        patch.setattr(Embeddings, "count", broken)
        with pytest.raises(RuntimeError, match="disk on fire"):
            shared.search(connection, MATRIX[0])
    check(shared, connection)
    connection.close()


def test_a_query_that_is_interrupted_says_so(fake_vision: Vision) -> None:
    shared = Shared(fake_vision, Path(":memory:"))
    connection = shared.connect()
    connection.execute("create table photos (id integer primary key)")
    SIDE.create(connection)
    write(connection, range(SIZE), MATRIX)
    connection.set_progress_handler(lambda: 1, 1000)
    with pytest.raises(Busy, match="searching photos takes longer than a query may take here"):
        shared.search(connection, MATRIX[0])
    connection.set_progress_handler(None, 0)
    check(shared, connection)
    connection.close()


def test_background_work_keeps_the_server_awake_and_stops_with_it(fake_vision: Vision, path: Path, saves: None) -> None:
    names: list[str] = []
    stopping = threading.Event()
    stopping.set()

    @contextlib.contextmanager
    def keep_awake(name: str) -> Iterator[threading.Event]:
        names.append(name)
        yield stopping

    shared = Shared(fake_vision, path, keep_awake=keep_awake)
    connection = shared.connect()
    check(shared, connection)
    shared.searcher.indexes.wait()
    assert set(names) == {"index of photos"}
    assert list(Path(f"{shared.path}-vision").iterdir()) == []
    connection.close()


@pytest.mark.parametrize("options", [{}, {"improve": False}])
def test_where_there_is_nothing_to_improve_nobody_is_kept_awake(
    fake_vision: Vision, path: Path, options: dict[str, bool], request: pytest.FixtureRequest
) -> None:
    """The index of a small table is not saved; nor is any by a search that improves no index."""
    if options:
        request.getfixturevalue("saves")
    names: list[str] = []

    @contextlib.contextmanager
    def keep_awake(name: str) -> Iterator[threading.Event]:
        names.append(name)
        yield threading.Event()

    shared = Shared(fake_vision, path, keep_awake=keep_awake, **options)
    connection = shared.connect()
    check(shared, connection)
    shared.searcher.indexes.wait()
    assert names == []
    connection.close()


# Databases that cannot be written


@pytest.mark.parametrize("options", ["mode=ro", "immutable=1"])
def test_an_immutable_database(fake_vision: Vision, path: Path, options: str, reads: list[str]) -> None:
    plain = sqlite3.connect(path, isolation_level=None)
    plain.execute("pragma journal_mode = delete")
    plain.close()
    shared = Shared(fake_vision, path)
    connection = sqlite3.connect(f"{path.as_uri()}?{options}", uri=True, isolation_level=None)
    check(shared, connection)
    check(shared, connection)
    assert reads == ["read"]
    connection.close()


def test_a_side_table_without_triggers_is_read_for_each_query(shared: Shared, reads: list[str]) -> None:
    connection = shared.connect()
    connection.execute('drop trigger "_vision-insert-_vision_photos"')
    new = clustered(5, DIMENSIONS, seed=5)
    with transaction(connection):
        write(connection, range(1000, 1005), new)
    check(shared, connection, new[0])
    assert reads == []
    connection.close()


def test_what_is_prepared_is_what_is_searched(shared: Shared, reads: list[str], saves: None) -> None:
    connection = shared.connect()
    source = shared.searcher.source(connection, "photos")
    wanted = Embeddings.of(connection, source, "fake", "image")
    file = index_entry.file_of(str(shared.path), wanted)
    steps: list[str] = []

    def on_progress(progress: Progress) -> None:
        assert 0 < progress.done <= progress.total
        steps.append(progress.step)

    entry = index_maintenance.prepare_index(file, connection, wanted, DIMENSIONS, on_progress)
    assert set(steps) == {"reading"}
    assert (entry.saved_at, entry.state) == (entry.changed, change_log.state(connection, "main", SIDE.name))
    content = file.read_bytes()
    index_maintenance.prepare_index(file, connection, wanted, DIMENSIONS)
    assert file.read_bytes() == content  # there was nothing to do
    for key in (5, 5000):
        connection.execute("delete from _vision_photos where id < ?", [key // 1000 + key % 1000])
        write(connection, [key], MATRIX[:1])
        entry = index_maintenance.prepare_index(file, connection, wanted, DIMENSIONS)
        assert index_file.open_index(file).about["state"] == list(change_log.state(connection, "main", SIDE.name) or ())
    check(shared, connection)
    assert reads == ["read", "opened", "opened", "opened", "opened"]
    connection.close()
