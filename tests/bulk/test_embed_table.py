"""bulk/embed_table.py: whole tables, whatever their key; run again, stopped, killed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.pipeline import config_for_bulk
from datasette_vision.bulk.tally import Summary
from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import DimensionMismatch, InvalidArgument, UnknownModel, Unreadable, WrongTask
from datasette_vision.models.store import ModelStore
from datasette_vision.tables import rows
from datasette_vision.vectors import embedding as vectors
from tests import fakes, pictures

PICTURES = [pictures.png(width=20 + seed % 5, height=30, seed=seed) for seed in range(30)]


@pytest.fixture
def bulk(fake_models: Path, counting: fakes.CountingLoads) -> Iterator[Vision]:
    config = config_for_bulk(Config(default_model="fake", max_image_mb=0.1), workers=2, batch_size=4)
    vision = Vision(config, store=ModelStore(fake_models), load=counting)
    yield vision
    vision.close()


class Database:
    """A database of one table, and jobs over it."""

    def __init__(self, path: Path, vision: Vision) -> None:
        self.path = path
        self.vision = vision
        self.connection = sqlite3.connect(path, isolation_level=None)

    def execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    def insert(self, table: str, *values: tuple[object, ...]) -> None:
        marks = ", ".join("?" * len(values[0]))
        self.connection.executemany(f"insert into {rows.quote(table)} values ({marks})", values)

    def embed(self, table: str, **options: Any) -> Summary:
        return embed_table(self.path, table, vision=self.vision, **options)

    def side(self, table: str) -> dict[Any, tuple[Any, ...]]:
        """{key: (embedding, error)}"""
        side = rows.quote(f"_vision_{table}")
        found = self.connection.execute(f"select * from {side}").fetchall()
        return {row[0] if len(row) == 7 else row[:-6]: row[-3:-1] for row in found}


@pytest.fixture
def database(tmp_path: Path, bulk: Vision) -> Iterator[Database]:
    database = Database(tmp_path / "photos.db", bulk)
    yield database
    database.connection.close()


@pytest.fixture
def photos(database: Database) -> Database:
    """A table of thirty pictures."""
    database.execute("create table photos (id integer primary key, name text, image blob)")
    database.insert("photos", *((number, f"photo {number}", image) for number, image in enumerate(PICTURES, start=1)))
    return database


def numbers(summary: Summary) -> tuple[int, int, int, int]:
    return summary.embedded, summary.unchanged, summary.failed, summary.removed


def test_a_table_of_images(photos: Database, counting: fakes.CountingLoads) -> None:
    seen = []
    summary = photos.embed("photos", on_progress=lambda summary: seen.append(summary.done))
    assert numbers(summary) == (30, 0, 0, 0)
    assert (summary.total, summary.done, summary.computed, summary.stopped) == (30, 30, 30, False)
    assert summary.seconds > 0
    assert summary.per_second > 0
    assert seen == [*range(1, 31), 30]
    side = photos.side("photos")
    assert sorted(side) == list(range(1, 31))
    for number, image in enumerate(PICTURES, start=1):
        np.testing.assert_allclose(vectors.from_blob(side[number][0]), photos.vision.embed_image(image), atol=1e-6)
    assert photos.execute("select distinct source_column, model, error from _vision_photos") == [
        ("image", "fake", None)
    ]


def test_only_what_is_new_or_changed_is_embedded_again(photos: Database, counting: fakes.CountingLoads) -> None:
    photos.embed("photos")
    before = dict(photos.execute("select id, embedded_at from _vision_photos"))
    photos.insert("photos", (100, "new", pictures.png(seed=100)))
    photos.execute("update photos set image = ? where id = 7", pictures.png(seed=101))
    photos.execute("update photos set name = 'renamed' where id = 8")
    photos.execute("delete from photos where id = 9")
    photos.execute("update photos set image = null where id = 10")
    counting.batches.clear()
    assert numbers(photos.embed("photos")) == (2, 27, 0, 2)
    assert sum(counting.batches) == 2
    after = dict(photos.execute("select id, embedded_at from _vision_photos"))
    assert {key for key in after if after[key] != before.get(key)} == {7, 100}
    assert set(before) - set(after) == {9, 10}
    assert numbers(photos.embed("photos")) == (0, 29, 0, 0)


def test_bad_rows_are_named_and_tried_again(photos: Database) -> None:
    """One bad file aborted a whole run without being named: elsewhere."""
    bad = {3: b"", 5: b"hello", 7: PICTURES[6][:-300], 9: 12, 11: "no image", 13: b"x" * 100_001}
    for key, value in bad.items():
        photos.execute("update photos set image = ? where id = ?", value, key)
    summary = photos.embed("photos")
    assert numbers(summary) == (24, 0, 6, 0)
    assert sorted(summary.failures) == [
        ("id 11", "this text is not an image: expected a data: URI or base64, found 'no image'"),
        ("id 13", "an image of 0.1 MB is more than the 0.1 MB allowed (max_image_mb)"),
        ("id 3", "an image of 0 bytes is empty"),
        ("id 5", summary_of(photos, 5)),
        ("id 7", summary_of(photos, 7)),
        ("id 9", "expected an image, found an integer"),
    ]
    assert "not an image of a known format" in summary_of(photos, 5)
    assert "truncated PNG image" in summary_of(photos, 7)
    assert photos.execute("select id from _vision_photos where embedding is null order by id") == [
        (key,) for key in bad
    ]
    stamps = photos.execute("select id, embedded_at from _vision_photos order by id")
    assert numbers(photos.embed("photos")) == (0, 24, 6, 0)
    assert photos.execute("select id, embedded_at from _vision_photos order by id") == stamps  # nothing was written
    photos.execute("update photos set image = ? where id = 5", pictures.png(seed=200))
    assert numbers(photos.embed("photos")) == (1, 24, 5, 0)
    assert photos.side("photos")[5][1] is None


def summary_of(database: Database, key: object) -> str:
    return str(database.side("photos")[key][1])


def test_only_the_first_failures_are_shown(photos: Database) -> None:
    photos.execute("update photos set image = cast('x' || id as blob)")
    summary = photos.embed("photos", column="image")
    assert (summary.failed, len(summary.failures)) == (30, 20)


def test_duplicates_are_computed_once_now_and_later(photos: Database, counting: fakes.CountingLoads) -> None:
    photos.insert("photos", *((100 + n, "copy", PICTURES[n % 30]) for n in range(90)))
    summary = photos.embed("photos")
    assert (summary.embedded, summary.computed) == (120, 30)
    assert sum(counting.batches) == 30
    photos.insert("photos", (500, "copy", PICTURES[0]))
    summary = photos.embed("photos")
    assert (summary.embedded, summary.computed, sum(counting.batches)) == (1, 0, 30)
    side = photos.side("photos")
    assert side[500] == side[1] == side[100]


@pytest.mark.parametrize(
    ("create", "keys"),
    [
        ("create table photos (image blob)", None),
        ("create table photos (k text primary key, image blob)", ["a", "é", "", "10", "9", "A", "\0z"]),
        ("create table photos (k text collate nocase primary key, image blob) without rowid", ["a", "B", "c", "D"]),
        ("create table photos (k primary key, image blob) without rowid", [1, 2.5, "1", b"1", b"\xff", -9, "x"]),
        ("create table photos (k integer primary key desc, image blob)", [3, 1, 2, -5, 1 << 40]),
        ("create table photos (k, m, image blob, primary key (k, m)) without rowid", [(1, "b"), (1, "a"), (0, 2)]),
        ("create table photos (k, m text, image blob, primary key (m, k))", [(1, "b"), (1, "a"), (0, "c"), (2, "a")]),
        ("create table photos (model text primary key, image blob)", ["x", "y"]),
        ("create table photos (rowid, oid, k integer primary key, image blob)", [("r", "o", 5), ("s", "p", 6)]),
    ],
)  # fmt: skip
def test_keys_of_every_kind(
    database: Database, create: str, keys: list[Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "CHUNK_ROWS", 2)
    database.execute(create)
    values = [(key if isinstance(key, tuple) else (key,)) if keys else () for key in keys or range(5)]
    for number, key in enumerate(values):
        database.insert("photos", (*key, PICTURES[number]))
    assert numbers(database.embed("photos")) == (len(values), 0, 0, 0)
    side = database.side("photos")
    wanted = [1, 2, 3, 4, 5] if keys is None else [5, 6] if "oid" in create else keys
    if "(m, k)" in create:
        wanted = [key[::-1] for key in wanted]
    assert set(side) == set(wanted)
    for number, key in enumerate(wanted):
        expected = database.vision.embed_image(PICTURES[number])
        np.testing.assert_allclose(vectors.from_blob(side[key][0]), expected, atol=1e-6)
    assert numbers(database.embed("photos")) == (0, len(values), 0, 0)
    database.execute("delete from photos where rowid = 1" if keys is None else "delete from photos where image = ?",
                     *([] if keys is None else [PICTURES[0]]))  # fmt: skip
    assert numbers(database.embed("photos")) == (0, len(values) - 1, 0, 1)


def test_keys_that_are_null_or_not_utf8(database: Database) -> None:
    database.execute("create table photos (k text primary key, image blob)")
    database.insert("photos", ("a", PICTURES[0]), (None, PICTURES[1]), (None, PICTURES[2]))
    database.execute("insert into photos values (cast(x'ff41' as text), ?)", PICTURES[3])
    summary = database.embed("photos")
    assert numbers(summary) == (1, 0, 3, 0)
    assert {reason for _, reason in summary.failures} == {"its key is NULL, or text that is not UTF-8"}
    assert list(database.side("photos")) == ["a"]


def test_names_that_need_quoting(database: Database) -> None:
    database.execute('create table "my ""photos""" ("the key" text primary key, "select" blob, model text)')
    database.insert('my "photos"', ("a'b", PICTURES[0], "x"), ("c", PICTURES[1], "y"))
    assert numbers(database.embed('MY "photos"', column="SELECT", where="model = 'x' -- only")) == (1, 0, 0, 0)
    assert list(database.side('my "photos"')) == ["a'b"]


@pytest.mark.parametrize("kind", ["integer", "text", "varchar(9)", "real", "blob", ""])
def test_what_is_noted_is_found_by_the_key(database: Database, kind: str) -> None:
    """With the affinity of a column in the way SQLite reads the whole side table for each row."""
    database.execute(f"create table t (k {kind}, m text, image blob, primary key (k, m))")
    database.insert("t", *((number, "x", image) for number, image in enumerate(PICTURES)))
    assert numbers(database.embed("t")) == (30, 0, 0, 0)
    assert numbers(database.embed("t")) == (0, 30, 0, 0)
    source = rows.SourceTable(database.connection, "t")
    sql = source._query(rows.Wanted("image", "fake", 1000, digest="m"), after=False, limit=True)
    plan = [row[3] for row in database.execute("explain query plan " + sql)]
    found = [detail for detail in plan if "_side" in detail]
    assert found
    assert all("SEARCH _side USING INDEX sqlite_autoindex__vision_t_1 (k=? AND m=?" in detail for detail in found)


def test_without_pruning_nothing_is_removed(photos: Database) -> None:
    photos.embed("photos")
    photos.execute("delete from photos where id = 3")
    assert numbers(photos.embed("photos", where="id = 4", prune=False)) == (0, 1, 0, 0)
    assert numbers(photos.embed("photos", where="id = 4")) == (0, 1, 0, 1)


def test_where_chooses_rows_and_loses_none(photos: Database) -> None:
    assert numbers(photos.embed("photos", where="photos.id <= 10 or rowid = 12")) == (11, 0, 0, 0)
    assert numbers(photos.embed("photos", where="id > 10")) == (19, 1, 0, 0)
    assert len(photos.side("photos")) == 30
    with pytest.raises(InvalidArgument, match="--where: no such column: nonsense, in: nonsense = 1"):
        photos.embed("photos", where="nonsense = 1")


@pytest.mark.parametrize(
    "view",
    [
        "select id as k, image as picture from photos where id > 3",
        "select name as k, max(image) as picture from photos group by name having min(id) > 3",
        "select distinct name as k, image as picture from photos where id > 3",
        "select id as k, image as picture from photos where id between 4 and 10"
        " union all select id, image from photos where id > 10",
    ],
)
def test_views(photos: Database, view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_ROWS", 4)
    photos.execute(f"create view v as {view}")
    with pytest.raises(InvalidArgument, match="v is a view: name the column"):
        photos.embed("v")
    assert numbers(photos.embed("v", key=["K"])) == (27, 0, 0, 0)
    assert len(photos.side("v")) == 27
    photos.execute("delete from photos where id = 30")
    assert numbers(photos.embed("v")) == (0, 26, 0, 1)  # by the key of its side table
    with pytest.raises(InvalidArgument, match="_vision_v identifies the rows of v by k: pass that as --key"):
        photos.embed("v", key=["picture"])


def test_a_key_that_does_not_tell_rows_apart(photos: Database) -> None:
    photos.execute("update photos set name = 'same' where id < 4")
    with pytest.raises(InvalidArgument, match="--key name does not identify the rows of photos: 3 rows have 'same'"):
        photos.embed("photos", key=["name"])
    photos.execute("update photos set name = id")
    assert numbers(photos.embed("photos", key=["name"])) == (30, 0, 0, 0)
    assert set(photos.side("photos")) == {str(number) for number in range(1, 31)}
    assert numbers(photos.embed("photos")) == (0, 30, 0, 0)  # by the same key again
    with pytest.raises(
        InvalidArgument, match="_vision_photos identifies the rows of photos by name: pass that as --key"
    ):
        photos.embed("photos", key=["id"])
    photos.execute("update photos set name = 'same' where id < 4")
    with pytest.raises(InvalidArgument, match="--key name does not identify the rows of photos: 3 rows have 'same'"):
        photos.embed("photos")


def test_texts(photos: Database) -> None:
    assert numbers(photos.embed("photos", column="name")) == (30, 0, 0, 0)
    embedding = photos.side("photos")[4][0]
    np.testing.assert_allclose(vectors.from_blob(embedding), photos.vision.embed_text("photo 4"), atol=1e-6)
    photos.execute("update photos set name = 'other' where id = 4")
    assert numbers(photos.embed("photos", column="name")) == (1, 29, 0, 0)
    photos.embed("photos", column="image")
    count = "select source_column, count(*) from _vision_photos group by 1"
    assert photos.execute(count) == [("image", 30), ("name", 30)]
    photos.execute("update photos set name = null")
    assert numbers(photos.embed("photos", column="name")) == (0, 0, 0, 30)
    assert photos.execute(count) == [("image", 30)]


def test_images_as_text(database: Database) -> None:
    database.execute("create table t (id integer primary key, picture text)")
    database.execute(
        "insert into t values (1, 'data:image/gif;base64,R0lGODdhAQABAIAAAP8AAP///ywAAAAAAQABAAACAkQBADs=')"
    )
    assert numbers(database.embed("t")) == (1, 0, 0, 0)


def test_paths(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.joinpath("sub").mkdir(parents=True)
    tmp_path.joinpath("secret.png").write_bytes(PICTURES[0])
    folder.joinpath("a.png").write_bytes(PICTURES[1])
    folder.joinpath("sub", "b.png").write_bytes(PICTURES[2])
    folder.joinpath("broken.png").write_bytes(PICTURES[3][:50])
    folder.joinpath("huge.png").write_bytes(b"x" * 100_001)
    folder.joinpath("out.png").symlink_to(tmp_path / "secret.png")
    folder.joinpath("in.png").symlink_to(folder / "a.png")
    folder.joinpath("circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(PICTURES[4])
    database.execute("create table t (path primary key)")
    good = ["a.png", "sub/b.png", str(folder / "sub" / "b.png"), "sub/../in.png", b"\xff.png"]
    bad = {
        "broken.png": "truncated PNG image",
        "huge.png": "an image of 0.1 MB is more than",
        "out.png": "leads out of the folder",
        "../secret.png": "leads out of the folder",
        str(tmp_path / "secret.png"): "leads out of the folder",
        "circle.png": "cannot be read: ",
        "pipe.png": "cannot be read: it is not a regular file",
        "sub": "cannot be read: it is not a regular file",
        "none.png": "cannot be read: No such file or directory",
        "nul\0.png": "cannot be read: ",
    }
    database.insert("t", *((name,) for name in [*good, *bad]))
    with pytest.raises(InvalidArgument, match=r"path holds names of files, such as '.*.png': name their folder"):
        database.embed("t", column="path")
    database.insert("t", (7,))
    with pytest.raises(Unreadable, match="there is no such folder"):
        database.embed("t", base=tmp_path / "nowhere")
    summary = database.embed("t", base=folder)
    side = database.side("t")
    reasons = {key: error for key, (_, error) in side.items() if error}
    assert set(reasons) == {*bad, 7}
    for name, reason in bad.items():
        assert reason in reasons[name], name
    assert reasons[7] == "expected the path of a file, found an integer"
    assert numbers(summary) == (len(good), 0, len(bad) + 1, 0)
    assert summary.computed == 3
    assert ("broken.png", reasons["broken.png"]) in summary.failures
    assert side["a.png"] == side["sub/../in.png"]


def test_what_cannot_be_read_keeps_its_embedding(database: Database, tmp_path: Path) -> None:
    """A disk that is not mounted is no reason to lose hours of work."""
    path = tmp_path / "a.png"
    path.write_bytes(PICTURES[0])
    database.execute("create table t (path primary key)")
    database.insert("t", ("a.png",))
    database.embed("t", base=tmp_path)
    before = database.side("t")
    path.unlink()
    summary = database.embed("t", base=tmp_path)
    assert numbers(summary) == (0, 0, 1, 0)
    assert database.side("t") == before
    path.write_bytes(PICTURES[0])
    assert numbers(database.embed("t", base=tmp_path)) == (0, 1, 0, 0)


def test_a_column_of_digests_saves_reading(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURES[0])
    database.execute("create table t (path primary key, sha256 text)")
    database.insert("t", ("a.png", None))
    database.embed("t", base=tmp_path)
    path.unlink()
    assert database.embed("t", base=tmp_path, digest="sha256").failed == 1
    database.execute("update t set sha256 = (select content_hash from _vision_t)")
    assert numbers(database.embed("t", base=tmp_path, digest="sha256")) == (0, 1, 0, 0)
    assert numbers(database.embed("t", base=tmp_path, digest="sha256", force=True)) == (0, 0, 1, 0)


def test_the_column_is_found_when_there_is_one(photos: Database, tmp_path: Path) -> None:
    photos.execute("create table two (id integer primary key, a blob, b blob)")
    photos.insert("two", (1, PICTURES[0], PICTURES[1]))
    with pytest.raises(InvalidArgument, match=r"choose with --column what to embed of two \(id, a, b\).*: .*, a, b do"):
        photos.embed("two")
    photos.embed("two", column="b")
    assert numbers(photos.embed("two")) == (0, 1, 0, 0)
    photos.execute("create table none (id integer primary key, a text)")
    with pytest.raises(InvalidArgument, match="images, none does"):
        photos.embed("none")
    with pytest.raises(InvalidArgument, match="photos has no column 'picture'; its columns are: id, name, image"):
        photos.embed("photos", column="picture")
    with pytest.raises(InvalidArgument, match="there is no table or view 'picture'; there are: none, photos, two"):
        photos.embed("picture")
    with pytest.raises(Unreadable, match="there is no such database"):
        embed_table(tmp_path / "no.db", "photos", vision=photos.vision)


def test_models(photos: Database) -> None:
    photos.embed("photos", model="fake-wide")
    photos.embed("photos")
    found = photos.execute("select model, count(*), max(length(embedding)) from _vision_photos group by 1")
    assert found == [("fake", 30, 32), ("fake-wide", 30, 48)]
    with pytest.raises(WrongTask):
        photos.embed("photos", model="fake-classifier")
    with pytest.raises(UnknownModel):
        photos.embed("photos", model="nothing")
    photos.execute("update _vision_photos set embedding = zeroblob(8) where model = 'fake'")
    with pytest.raises(DimensionMismatch, match="_vision_photos has embeddings of fake of 2 floats"):
        photos.embed("photos")
    assert numbers(photos.embed("photos", force=True)) == (30, 0, 0, 0)


def test_stopping_writes_what_is_ready(photos: Database, counting: fakes.CountingLoads) -> None:
    """Ctrl-C lost up to 50,000 processed files: elsewhere."""
    stop = threading.Event()
    summary = photos.embed("photos", stop=stop, on_progress=lambda summary: summary.done == 10 and stop.set())
    assert summary.stopped
    assert numbers(summary) == (10, 0, 0, 0)
    assert len(photos.side("photos")) == 10
    assert numbers(photos.embed("photos")) == (20, 10, 0, 0)


def test_an_interrupt_writes_what_is_ready(photos: Database) -> None:
    def interrupt(summary: Summary) -> None:
        if summary.done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        photos.embed("photos", on_progress=interrupt)
    assert len(photos.side("photos")) == 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("datasette-vision-read")]


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_nothing_is_locked_while_inference_runs(photos: Database, counting: fakes.CountingLoads, mode: str) -> None:
    """Others may read and write at any moment of the job: were there a lock, this would wait for itself."""
    photos.execute(f"pragma journal_mode = {mode}")
    photos.execute("create table other (x)")
    other = sqlite3.connect(photos.path, timeout=5, isolation_level=None, check_same_thread=False)
    failures = []

    def before_run(inputs: object) -> None:
        try:
            other.execute("insert into other values (1)")
            other.execute("select count(*) from _vision_photos").fetchall()
        except sqlite3.OperationalError as error:
            failures.append(error)

    photos.embed("photos", where="0")  # makes the side table
    counting.before_run = before_run
    with contextlib.closing(other):
        assert numbers(photos.embed("photos")) == (30, 0, 0, 0)
    assert failures == []
    assert photos.execute("select count(*) > 3 from other") == [(1,)]


def test_a_checkpoint_never_waits_for_the_job(photos: Database, counting: fakes.CountingLoads) -> None:
    photos.execute("pragma journal_mode = wal")
    results = []
    other = sqlite3.connect(photos.path, isolation_level=None, check_same_thread=False)
    counting.before_run = lambda inputs: results.extend(other.execute("pragma wal_checkpoint(truncate)").fetchall())
    with contextlib.closing(other):
        photos.embed("photos")
    assert len(results) > 3
    assert {result[0] for result in results} == {0}  # 1 would be: busy


def test_another_sqlite_may_open_the_connections(photos: Database) -> None:
    made: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        made.append(sqlite3.connect(photos.path, isolation_level=None, check_same_thread=False))
        return made[-1]

    assert embed_table(connect, "photos", vision=photos.vision).embedded == 30
    for connection in made:
        with pytest.raises(sqlite3.ProgrammingError):
            connection.execute("select 1")


def test_rows_of_many_bytes_are_read_in_smaller_chunks(photos: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK_BYTES", len(PICTURES[0]) * 2)
    assert numbers(photos.embed("photos")) == (30, 0, 0, 0)
