"""tables/diff.py and sync.py: what is out of step is found by keys, by lengths, by reading; nothing is done twice."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datasette_vision.bulk import sync
from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.sync import SyncedColumn, SyncResources
from datasette_vision.bulk.tally import Summary
from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import InvalidArgument, UnknownModel
from datasette_vision.models.store import ModelStore
from datasette_vision.tables import diff, side_tables
from datasette_vision.tables.diff import ContentCheck, Glance, glance
from datasette_vision.tables.rows import SourceTable, connected
from datasette_vision.util.transactions import writer_on
from tests import fakes, pictures

PICTURES = [pictures.png(width=20 + seed % 5, height=30, seed=seed) for seed in range(12)]


@pytest.fixture
def serving(fake_models: Path, counting: fakes.CountingLoads) -> Iterator[Vision]:
    """A Vision as a server has it: batches of up to 32."""
    vision = Vision(Config(default_model="fake"), store=ModelStore(fake_models), load=counting)
    yield vision
    vision.close()


class Place:
    """A database with what keeps its tables in step, driven by hand: no thread, and no clock."""

    def __init__(self, path: Path, vision: Vision) -> None:
        self.path = path
        self.vision = vision
        self.connection = self.connect()
        self.reader = connected(self.connect())
        self.stop = threading.Event()
        self.awoken = 0
        self.done: list[Summary] = []
        self.now = 0.0
        self.processor_s = 0.0
        self.writer = writer_on(self.connect())
        self.version = -1

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)

    def execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    def insert(self, table: str, *values: tuple[object, ...]) -> None:
        marks = ", ".join("?" * len(values[0]))
        self.connection.executemany(f"insert into {diff.quote(table)} values ({marks})", values)

    def embed(self, table: str, **options: Any) -> Summary:
        return embed_table(self.path, table, vision=self.vision, **options)

    def source(self, table: str) -> side_tables.EmbeddedSource:
        found = side_tables.find_source(self.reader, table)
        assert found is not None
        return found

    def glance(self, table: str, column: str = "image") -> Glance:
        return glance(self.reader, self.source(table), column, "fake")

    def check(self, table: str, column: str = "image", kind: str = "images") -> list[Any]:
        source = self.source(table)
        check = ContentCheck(SourceTable(self.reader, source.table), column, "fake", kind, 100_000)
        found, done = check.run(60, 1000)
        assert done
        return found

    @contextlib.contextmanager
    def awake(self) -> Iterator[threading.Event]:
        self.awoken += 1
        yield self.stop

    def kept(self, table: str, column: str = "image", model: str = "fake") -> SyncedColumn:
        resources = SyncResources(
            self.connect,
            self.writer,
            lambda: self.vision,
            self.awake,
            lambda kept, summary: self.done.append(summary),
            clock=lambda: self.now,
            processor_clock=lambda: self.processor_s,
        )
        return SyncedColumn(self.source(table), column, model, resources)

    def settle(self, kept: SyncedColumn, steps: int = 20) -> None:
        """Go on, as the server's thread does, until there is nothing more to do."""
        for _ in range(steps):
            (version,) = self.reader.execute("pragma data_version").fetchone()
            if version != self.version:
                self.version = version
                kept.changed()
            self.now += 1000
            kept.step(self.reader)
            if kept.report.checked and kept.report.state == sync.IN_STEP:
                return
        pytest.fail(f"never in step: {kept.report}")


@pytest.fixture
def place(tmp_path: Path, serving: Vision) -> Iterator[Place]:
    place = Place(tmp_path / "photos.db", serving)
    yield place
    place.connection.close()
    place.reader.close()


@pytest.fixture
def photos(place: Place) -> Place:
    """Twelve pictures, embedded."""
    place.execute("create table photos (id integer primary key, name text, image blob)")
    place.insert("photos", *((number, f"photo {number}", image) for number, image in enumerate(PICTURES, start=1)))
    place.embed("photos")
    return place


def changed_in_place(image: bytes) -> bytes:
    """The picture in other bytes, as many: the last ones of a PNG are a checksum that nobody looks at."""
    return image[:-1] + bytes([image[-1] ^ 1])


# Looking


def test_a_glance_counts_by_keys(photos: Place) -> None:
    length = sum(map(len, PICTURES))
    assert photos.glance("photos") == Glance(12, 12, 0, 0, length)
    photos.insert("photos", (100, "new", b"hello"), (101, "nothing", None))
    photos.execute("delete from photos where id = 1")
    photos.execute("update photos set image = null where id = 2")
    found = photos.glance("photos")
    assert found == Glance(11, 10, 2, 0, length - len(PICTURES[0]) - len(PICTURES[1]) + 5)
    assert found.new == 1
    photos.embed("photos")
    assert photos.glance("photos")[:4] == (11, 11, 0, 1)
    source = photos.source("photos")
    assert diff.failures(photos.reader, source, "image", "fake", 20) == [
        ("id 100", photos.execute("select error from _vision_photos where id = 100")[0][0])
    ]


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs /proc/self/io, which counts bytes read")
def test_a_glance_reads_no_value_and_no_embedding(photos: Place) -> None:
    small = pages_read(photos, "photos")
    photos.execute("create table large (id integer primary key, name text, image blob)")
    photos.insert("large", *((number, "", PICTURES[0] + bytes(2_000_000)) for number in range(12)))
    photos.execute("create table _vision_large as select * from _vision_photos where 0")
    assert pages_read(photos, "large") < small + 40


def pages_read(place: Place, table: str) -> int:
    """The pages of the file that a glance looks at: those that a cache of one page has to fetch."""
    source = place.source(table)
    path = f"file:{place.path}?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True)) as connection:
        connection.execute("pragma cache_size = 1")
        before = read_bytes()
        glance(connection, source, "image", "fake")
        return (read_bytes() - before) // 4096


def read_bytes() -> int:
    """What this process has read from files so far, cached by the system or not."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])


@pytest.mark.parametrize(
    ("create", "keys"),
    [
        ("create table photos (k text primary key, image blob)", ["a", "é'", "", "10", "\0z"]),
        ("create table photos (k text collate nocase primary key, image blob) without rowid", ["a", "B", "c"]),
        ("create table photos (k primary key, image blob) without rowid", [1, 2.5, "1", b"1", b"\xff", -9, 9e999]),
        ("create table photos (k, m, image blob, primary key (k, m)) without rowid", [(1, "b"), (1, "a"), (0, 2.5)]),
        ("create table photos (model text primary key, image blob)", ["x", "y"]),
        ("create table photos (image blob)", [()] * 3),
    ],
)
def test_keys_of_every_kind(place: Place, create: str, keys: list[Any]) -> None:
    place.execute(create)
    whole = [key if isinstance(key, tuple) else (key,) for key in keys]
    place.insert("photos", *((*key, PICTURES[number]) for number, key in enumerate(whole[1:])))
    place.embed("photos")
    place.insert("photos", (*whole[0], PICTURES[-1]))
    assert place.glance("photos")[:3] == (len(keys), len(keys) - 1, 0)
    kept = place.kept("photos")
    place.settle(kept)
    assert place.glance("photos")[:3] == (len(keys), len(keys), 0)
    assert (kept.report.embedded, kept.report.removed) == (1, 0)
    place.execute("update photos set image = cast(substr(image, 1, length(image) - 1) || x'00' as blob)")
    assert len(place.check("photos")) == len(keys)
    place.settle(kept)  # what was found by reading is embedded by its key
    assert place.check("photos") == []
    assert place.execute("select count(distinct content_hash) from _vision_photos") == [(len(keys),)]


def test_views_and_other_keys(photos: Place) -> None:
    photos.execute("create view v as select name as k, image as picture from photos where id > 3")
    photos.embed("v", key=["k"])
    photos.execute("create table other (id integer primary key, slug text, image blob)")
    photos.execute("insert into other select id, name, image from photos")
    photos.embed("other", key=["slug"])
    photos.insert("photos", (100, "new", pictures.png(seed=100)))
    photos.insert("other", (100, "new", pictures.png(seed=100)))
    photos.execute("update photos set image = ? where id = 5", pictures.png(seed=101))
    for table, column in (("v", "picture"), ("other", "image")):
        photos.settle(kept := photos.kept(table, column))
        assert kept.report.error is None
        assert photos.glance(table, column).new == 0
    assert photos.execute("select count(*) from _vision_v") == [(10,)]
    assert photos.execute("select count(*) from _vision_other where slug = 'new'") == [(1,)]


# Keeping


def test_what_is_new_changed_and_gone(photos: Place, counting: fakes.CountingLoads) -> None:
    kept = photos.kept("photos")
    photos.settle(kept)
    assert photos.awoken == 0
    before = dict(photos.execute("select id, content_hash from _vision_photos"))
    counting.batches.clear()
    photos.insert("photos", (100, "new", pictures.png(seed=100)), (101, "bad", b"hello"))
    photos.execute("delete from photos where id = 1")
    photos.execute("update photos set image = ? where id = 2", pictures.png(seed=102, width=99))
    photos.execute("update photos set image = ? where id = 3", changed_in_place(PICTURES[2]))
    photos.execute("update photos set name = 'renamed' where id = 4")
    photos.settle(kept)
    after = dict(photos.execute("select id, content_hash from _vision_photos"))
    assert set(before) - set(after) == {1}
    assert {key for key in after if after[key] != before.get(key)} == {100, 101, 2, 3}
    assert sum(counting.batches) == 3
    report = kept.report
    assert (report.embedded, report.removed, report.failed, report.queued) == (3, 1, 1, 0)
    ((name, reason),) = report.failures
    assert name == "id 101"
    assert "not an image of a known format" in reason


def test_why_it_is_not_in_step_is_kept_until_the_next_look(photos: Place) -> None:
    photos.settle(kept := photos.kept("photos"))
    kept.changed()
    photos.now += 1000
    kept.step(photos.reader)  # a look
    kept.report.error = "no model"  # as the server's thread writes when a step raises
    kept.changed()
    photos.now += 1000
    kept.step(photos.reader)  # values are read
    assert kept.report.error == "no model"
    photos.now += 1000
    kept.step(photos.reader)  # a look
    assert kept.report.error is None


def test_values_are_read_while_rows_keep_coming(photos: Place) -> None:
    """Each step finds the database changed: what changed in place must not wait for that to end."""
    photos.settle(kept := photos.kept("photos"))
    photos.execute("update photos set image = ? where id = 3", changed_in_place(PICTURES[2]))
    (before,) = photos.execute("select content_hash from _vision_photos where id = 3")
    for number in range(200, 205):
        photos.insert("photos", (number, "new", PICTURES[0]))
        kept.changed()
        photos.now += 1000
        kept.step(photos.reader)
    (after,) = photos.execute("select content_hash from _vision_photos where id = 3")
    assert after != before


def test_nothing_to_do_writes_nothing_and_wakes_nobody(photos: Place) -> None:
    photos.insert("photos", (101, "bad", b"hello"))  # tried once, and not again
    photos.settle(kept := photos.kept("photos"))
    version, awoken = photos.version, photos.awoken
    for _ in range(3):
        kept.changed()
        photos.settle(kept)
    assert (photos.version, photos.awoken) == (version, awoken)


def test_another_length_is_found_at_the_next_look(photos: Place) -> None:
    photos.settle(kept := photos.kept("photos"))
    photos.execute("update photos set image = ? where id = 12", pictures.png(seed=102, width=99))
    kept.changed()
    photos.now += 1000
    kept.step(photos.reader)
    assert kept.impatient
    kept.step(photos.reader)  # at once, though the clock stands still
    assert not kept.impatient
    assert kept.report.embedded == 1


@pytest.mark.parametrize(
    ("processor_s", "works_at"),
    [
        (2.0, [0, 40, 80]),  # a twentieth of a core
        (0.2, [0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 66, 72, 78, 84, 90, 96]),  # a busy machine: it waits its turn
        (0.0, [*range(0, 100, 4)]),  # half of the time at most, as where a disk is slow
    ],
)
def test_looking_and_reading_rest_in_between(
    photos: Place, monkeypatch: pytest.MonkeyPatch, processor_s: float, works_at: list[float]
) -> None:
    kept = photos.kept("photos")
    began_at: list[float] = []
    run = ContentCheck.run

    def work() -> None:
        began_at.append(photos.now)
        photos.now += 2  # seconds that it takes
        photos.processor_s += processor_s

    monkeypatch.setattr(sync, "glance", lambda *arguments: (work(), glance(*arguments))[1])
    monkeypatch.setattr(ContentCheck, "run", lambda *arguments: (work(), run(*arguments))[1])
    for _ in range(100):
        kept.changed()
        kept.step(photos.reader)
        photos.now += 1
    assert [moment for moment in began_at if moment < 100] == works_at


def test_few_are_in_the_queue_at_a_time(photos: Place, counting: fakes.CountingLoads) -> None:
    """Whoever asks meanwhile waits for four pictures at most, and not for the table."""
    photos.insert("photos", *((number, "", pictures.png(seed=number)) for number in range(100, 160)))
    counting.batches.clear()
    photos.settle(photos.kept("photos"))
    assert sum(counting.batches) == 60
    assert max(counting.batches) <= sync.MAX_QUEUED


def test_what_somebody_else_is_at_is_left_to_them(photos: Place, counting: fakes.CountingLoads) -> None:
    kept = photos.kept("photos")
    photos.settle(kept)
    photos.insert("photos", *((number, "", pictures.png(seed=number)) for number in range(100, 110)))
    photos.embed("photos", where="id < 103")  # half-way
    counting.batches.clear()
    photos.now += 1000
    kept.changed()
    kept.step(photos.reader)
    assert kept.report.state == sync.WAITING
    assert kept.report.queued == 7
    assert counting.batches == []
    photos.now += 1000
    kept.step(photos.reader)  # values are read
    photos.now += 1000
    kept.step(photos.reader)  # they have not gone on
    assert sum(counting.batches) == 7
    assert kept.report.queued == 0


def test_rows_that_have_no_usable_key_keep_nobody_awake(place: Place) -> None:
    place.execute("create table photos (k text primary key, image blob)")
    place.insert("photos", ("a", PICTURES[0]))
    place.embed("photos")
    place.insert("photos", (None, PICTURES[1]))
    place.execute("insert into photos values (cast(x'ff41' as text), ?)", PICTURES[2])
    kept = place.kept("photos")
    for _ in range(10):
        (version,) = place.reader.execute("pragma data_version").fetchone()
        if version != place.version:
            place.version = version
            kept.changed()
        place.now += 1000
        kept.step(place.reader)
    assert place.awoken == 1
    assert place.execute("select k from _vision_photos") == [("a",)]


def test_stopping_and_going_on(photos: Place) -> None:
    photos.insert("photos", *((number, "", pictures.png(seed=number)) for number in range(100, 130)))
    photos.stop.set()
    kept = photos.kept("photos")
    kept.step(photos.reader)
    assert photos.done[-1].stopped
    assert photos.glance("photos").new > 0
    photos.stop.clear()
    photos.settle(kept := photos.kept("photos"))  # as after a restart
    assert photos.glance("photos").new == 0
    assert kept.report.embedded + photos.done[0].embedded == 30


def test_texts(photos: Place) -> None:
    photos.embed("photos", column="name")
    photos.execute("update photos set name = 'PHOTO 3' where id = 3")
    photos.insert("photos", (100, "new", None))
    photos.settle(kept := photos.kept("photos", "name"))
    assert kept.report.embedded == 2


def test_a_text_among_pictures_is_no_text(photos: Place) -> None:
    """What a column holds is told by the column, not by the one row that is new."""
    photos.insert("photos", (100, "new", "hello"))
    photos.settle(kept := photos.kept("photos"))
    assert kept.report.failures == [
        ("id 100", "this text is not an image: expected a data: URI or base64, found 'hello'")
    ]


def test_paths_need_a_folder(place: Place, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    place.execute("create table t (path primary key)")
    place.insert("t", ("a.png",))
    place.embed("t", base=tmp_path)
    with pytest.raises(InvalidArgument, match="path holds names of files"):
        place.kept("t", "path").step(place.reader)


def test_the_log_names_table_column_and_model(photos: Place) -> None:
    assert photos.kept("photos", model="other").name == "photos (image, other)"


def test_a_model_that_is_not_installed(photos: Place) -> None:
    photos.execute("update _vision_photos set model = 'gone'")
    photos.insert("photos", (100, "new", PICTURES[0]))
    with pytest.raises(UnknownModel, match="no model 'gone' is installed"):
        photos.kept("photos", model="gone").step(photos.reader)


def test_a_column_that_is_gone_is_not_taken_for_a_text(photos: Place) -> None:
    kept = photos.kept("photos")
    photos.settle(kept)
    photos.execute("alter table photos rename column image to picture")
    kept.changed()
    photos.now += 1000
    with pytest.raises(sqlite3.OperationalError, match=r"no such column: photos\.image"):
        kept.step(photos.reader)
