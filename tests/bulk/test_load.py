"""bulk/load.py and folders.py: a folder becomes a table, and stays in step with it."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datasette_vision.bulk import photos
from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.folders import Walk
from datasette_vision.bulk.load import LoadSummary, load
from datasette_vision.bulk.photo_rows import PhotoTable
from datasette_vision.bulk.photos import ImageStorage
from datasette_vision.bulk.pipeline import config_for_bulk
from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import InvalidArgument, Unreadable, WrongTask
from datasette_vision.images import decode
from datasette_vision.images.decode import sniff
from datasette_vision.models.store import ModelStore
from datasette_vision.tables.schema import SideTable
from tests import fakes, pictures
from tests.images.test_exif import LONDON, NOON, block

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def bulk(fake_models: Path, counting: fakes.CountingLoads) -> Iterator[Vision]:
    config = config_for_bulk(Config(default_model="fake", max_image_mb=1), workers=2, batch_size=4)
    vision = Vision(config, store=ModelStore(fake_models), load=counting)
    yield vision
    vision.close()


class Library:
    """A folder of pictures and the database it is loaded into."""

    def __init__(self, root: Path, vision: Vision) -> None:
        self.folder = root / "pictures"
        self.database = root / "photos.db"
        self.vision = vision
        self.folder.mkdir()

    def write(self, name: str, data: bytes | None = None, **options: Any) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures.jpeg(**options) if data is None else data)
        return path

    def load(self, *paths: object, **options: Any) -> LoadSummary:
        return load(self.database, [str(path) for path in paths or [self.folder]], vision=self.vision, **options)

    def rows(self, columns: str = "*", where: str = "1") -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.database)
        try:
            sql = f"select {columns} from photos left join _vision_photos using (id) where {where} order by path"
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


@pytest.fixture
def library(tmp_path: Path, bulk: Vision) -> Library:
    return Library(tmp_path, bulk)


def numbers(summary: LoadSummary) -> tuple[int, int, int]:
    return summary.embedded, summary.unchanged, summary.failed


def test_a_folder(library: Library) -> None:
    exif = block(NOON, LONDON)
    exif[0x0112] = 6
    first = library.write("a.jpg", pictures.encode(pictures.scene(640, 480, 1), "JPEG", exif=exif))
    library.write("sub/b.PNG", pictures.png(seed=2))
    library.write("sub/deep/no suffix", pictures.png(seed=3))
    library.write("notes.txt", b"hello")
    library.write("film.mp4", b"hello")
    library.write("README", b"hello")
    library.write(".hidden.jpg", seed=4)
    library.write(".thumbnails/c.jpg", seed=5)
    library.write("broken.jpg", pictures.jpeg(seed=6)[:500])
    library.write("text.jpg", b"hello")
    summary = library.load()
    assert numbers(summary) == (3, 0, 2)
    assert (summary.skipped, summary.links, summary.gone, summary.total) == (5, 0, 0, 6)
    assert dict(summary.failures).keys() == {"broken.jpg", "text.jpg"}
    found = {row[0]: row[1:] for row in library.rows("path, name, format, width, height, photos.error is null")}
    assert found == {
        "a.jpg": ("a.jpg", "JPEG", 480, 640, 1),
        "broken.jpg": ("broken.jpg", None, None, None, 0),
        "sub/b.PNG": ("b.PNG", "PNG", 64, 48, 1),
        "sub/deep/no suffix": ("no suffix", "PNG", 64, 48, 1),
        "text.jpg": ("text.jpg", None, None, None, 0),
    }
    ((at, latitude, longitude, size, digest, content_hash, thumbnail, embedding, column),) = library.rows(
        "taken_at, latitude, longitude, size, digest, content_hash, thumbnail, embedding, source_column",
        "path = 'a.jpg'",
    )
    assert (at, round(latitude, 3), round(longitude, 3)) == ("2024-05-01T12:00:30", 51.507, -0.128)
    assert (size, digest, column) == (first.stat().st_size, content_hash, "path")
    assert sniff(thumbnail) == "WEBP"
    assert len(embedding) == 32
    # Embedding the column again, from the folder that is remembered, finds nothing to do.
    again = embed_table(library.database, "photos", vision=library.vision)
    assert (again.embedded, again.unchanged, again.failed) == (0, 3, 2)
    again = embed_table(library.database, "photos", vision=library.vision, model="fake-wide", base=library.folder)
    assert (again.embedded, again.failed) == (3, 2)


@pytest.mark.parametrize("storage", [ImageStorage(pixels=64), ImageStorage(originals=True), ImageStorage()], ids=str)
def test_a_file_is_decoded_once(library: Library, monkeypatch: pytest.MonkeyPatch, storage: ImageStorage) -> None:
    files = [library.write(f"{number}.jpg", seed=number) for number in range(3)]
    real = decode._read_pixels
    decoded: list[str] = []
    monkeypatch.setattr(decode, "_read_pixels", lambda header: decoded.append(header.format) or real(header))
    library.load(storage=storage)
    assert decoded == ["JPEG"] * 3
    for (embedding,), file in zip(library.rows("embedding"), files, strict=True):
        assert embedding == library.vision.embed_image(file.read_bytes()).tobytes()


def test_only_what_changed_is_read_again(
    library: Library, counting: fakes.CountingLoads, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        library.write(f"{number}.jpg", seed=number)
    library.load()
    read: list[str] = []
    real = photos.describe_photo
    monkeypatch.setattr(photos, "describe_photo", lambda *arguments: read.append("described") or real(*arguments))
    monkeypatch.setattr(
        "datasette_vision.bulk.load.read_image",
        lambda path, limit: read.append(path.name) or Path(path).read_bytes(),
    )
    counting.batches.clear()
    assert numbers(library.load()) == (0, 8, 0)
    assert read == []
    os.utime(library.folder / "1.jpg", (1, 1))  # touched
    library.write("2.jpg", seed=102)  # changed
    library.write("new.jpg", seed=103)
    (library.folder / "3.jpg").rename(library.folder / "moved.jpg")
    (library.folder / "4.jpg").unlink()
    summary = library.load()
    assert numbers(summary) == (3, 5, 0)
    assert summary.gone == 2
    assert sorted(read) == ["1.jpg", "2.jpg", *["described"] * 3, "moved.jpg", "new.jpg"]
    assert sum(counting.batches) == 2  # what has moved is known by its content
    assert [row[0] for row in library.rows("path", "gone_at is not null")] == ["3.jpg", "4.jpg"]
    assert library.rows("modified", "path = '1.jpg'") == [("1970-01-01T00:00:01.000000000Z",)]
    read.clear()
    assert numbers(library.load()) == (0, 8, 0)
    assert read == []


def test_what_is_noted_is_found_at_once(library: Library) -> None:
    library.write("a.jpg", seed=1)
    library.load()
    connection = sqlite3.connect(library.database)
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    table = PhotoTable(SideTable("photos", ("id",)), "fake", ImageStorage())
    assert table.noted(connection, "a.jpg") is not None
    connection.set_trace_callback(None)
    plan = " ".join(row[3] for row in connection.execute("explain query plan " + statements[0]))
    connection.close()
    assert "sqlite_autoindex_photos_1 (path=?)" in plan
    assert "sqlite_autoindex__vision_photos_1 (id=? AND source_column=? AND model=?)" in plan


def test_what_is_back_is_unmarked(library: Library) -> None:
    path = library.write("a.jpg", seed=1)
    library.write("b.jpg", seed=2)
    library.load()
    path.rename(library.folder.parent / "a.jpg")
    assert library.load().gone == 1
    assert library.load().gone == 1
    (library.folder.parent / "a.jpg").rename(path)
    summary = library.load()
    assert (*numbers(summary), summary.gone) == (0, 2, 0, 0)
    assert library.rows("path", "gone_at is not null") == []


def test_a_file_that_breaks_and_is_mended(library: Library) -> None:
    path = library.write("a.jpg", seed=1)
    library.load()
    good = path.read_bytes()
    path.write_bytes(good[:500])
    assert numbers(library.load()) == (0, 0, 1)
    row = library.rows("width, thumbnail, photos.error, embedding, _vision_photos.error")[0]
    assert row == (None, None, row[2], None, row[2])
    assert "truncated" in row[2]
    assert numbers(library.load()) == (0, 0, 1)
    path.write_bytes(good)
    assert numbers(library.load()) == (1, 0, 0)
    assert library.rows("width, photos.error, _vision_photos.error") == [(64, None, None)]


def test_a_file_that_goes_before_it_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(pictures.jpeg())
    walk = Walk([str(path)])
    path.unlink()
    assert list(walk) == []
    assert walk.unreadable == [(str(path), "No such file or directory")]


@pytest.mark.skipif(IS_ROOT, reason="root may read everything")
def test_a_folder_that_may_not_be_read(library: Library) -> None:  # pragma: no cover
    locked = library.write("locked/a.jpg", seed=1)
    library.write("b.jpg", seed=2)
    library.load()
    locked.parent.chmod(0)
    try:
        summary = library.load()
    finally:
        locked.parent.chmod(0o755)
    assert summary.unreadable == [(str(locked.parent), "Permission denied")]
    assert summary.gone == 0


def test_a_folder_and_a_file_that_cannot_be_read(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the test above, for who is root."""
    library.write("locked/a.jpg", seed=1)
    library.write("b.jpg", seed=2)
    library.load()
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    os.utime(library.folder / "b.jpg", (1, 1))
    monkeypatch.setattr(
        "datasette_vision.bulk.load.read_image",
        lambda path, limit: (_ for _ in ()).throw(PermissionError(13, "Permission denied")),
    )
    summary = library.load()
    assert summary.unreadable == [(str(library.folder / "locked"), "Permission denied")]
    assert summary.failures == [("b.jpg", "cannot be read: Permission denied")]
    assert summary.gone == 0
    assert [row[0] for row in library.rows("path", "embedding is not null and gone_at is null")] == [
        "b.jpg",
        "locked/a.jpg",
    ]
    monkeypatch.undo()
    assert numbers(library.load()) == (0, 2, 0)
    assert library.rows("photos.error", "photos.error is not null") == []


def test_links_and_circles(library: Library, tmp_path: Path) -> None:
    library.write("a.jpg", seed=1)
    (tmp_path / "secret.jpg").write_bytes(pictures.jpeg(seed=2))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b.jpg").write_bytes(pictures.jpeg(seed=3))
    library.folder.joinpath("circle").symlink_to(library.folder)
    library.folder.joinpath("out").symlink_to(tmp_path / "outside")
    library.folder.joinpath("secret.jpg").symlink_to(tmp_path / "secret.jpg")
    library.folder.joinpath("dead.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(library.folder / "pipe.jpg")
    summary = library.load()
    assert (*numbers(summary), summary.links, summary.skipped) == (1, 0, 0, 4, 1)
    assert [row[0] for row in library.rows("path")] == ["a.jpg"]
    # The person's own links are followed.
    (tmp_path / "link").symlink_to(library.folder)
    assert numbers(library.load(tmp_path / "link")) == (0, 1, 0)


def test_names_that_are_not_utf8(library: Library) -> None:
    raw = os.fsencode(library.folder) + b"/caf\xe9.jpg"
    with open(raw, "wb") as file:  # noqa: PTH123
        file.write(pictures.jpeg(seed=1))
    library.write("é ü 日本 ' \" % .jpg", seed=2)
    for _ in range(2):
        summary = library.load()
        assert summary.failed == 0
    assert numbers(summary) == (0, 2, 0)
    assert set(library.rows("path, name")) == {
        (b"caf\xe9.jpg", "caf\ufffd.jpg"),
        ("é ü 日本 ' \" % .jpg", "é ü 日本 ' \" % .jpg"),
    }
    again = embed_table(library.database, "photos", vision=library.vision, model="fake-wide")
    assert (again.embedded, again.failed) == (2, 0)


def test_globs_and_files(library: Library, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "x/c.jpg", "x/y/d.jpg", "x/y/e.jpeg", "z/[1].jpg", "z/1.jpg"):
        library.write(name, seed=hash(name) % 100)

    def found(*patterns: str) -> list[str]:
        walk = Walk([f"{library.folder}/{pattern}" for pattern in patterns])
        names = [os.path.relpath(file.path, library.folder) for file in walk]
        assert walk.count() == len(names)
        return names

    assert found("*.jpg") == ["a.jpg"]
    assert found("**/*.jpg") == ["a.jpg", "x/c.jpg", "x/y/d.jpg", "z/1.jpg", "z/[1].jpg"]
    assert found("x/**") == ["x/c.jpg", "x/y/d.jpg", "x/y/e.jpeg"]
    assert found("*/?.jp*") == ["x/c.jpg", "z/1.jpg"]
    assert found("**/[c-d].*", "b.png") == ["x/c.jpg", "x/y/d.jpg", "b.png"]
    assert found("**/[!c-d].jpg") == ["a.jpg", "z/1.jpg"]
    assert found("x", "x/y", "x/c.jpg") == ["x/c.jpg", "x/y/d.jpg", "x/y/e.jpeg"]
    assert found("**/[z-a].jpg") == []
    for missing in ("nothing", "nothing/*.jpg", "a.jpg/x"):
        with pytest.raises(Unreadable, match="there is no such folder or file"):
            found(missing)
    # A glob says nothing of the files that it does not match.
    library.load()
    library.folder.joinpath("a.jpg").unlink()
    library.folder.joinpath("x/c.jpg").unlink()
    assert library.load(f"{library.folder}/x/**/*.jpg").gone == 1
    assert library.load(f"{library.folder}/a.j*g").gone == 1
    assert library.load(library.folder / "b.png", library.folder / "z").gone == 0
    assert len(library.rows("path", "gone_at is not null")) == 2


def test_a_file_that_is_named_like_a_pattern(library: Library) -> None:
    library.write("[1].jpg", seed=1)
    assert numbers(library.load(library.folder / "[1].jpg")) == (1, 0, 0)


def test_paths_are_below_the_first_folder(library: Library, tmp_path: Path) -> None:
    library.write("a/1.jpg", seed=1)
    library.write("b/2.jpg", seed=2)
    library.load(library.folder / "a", library.folder / "b")
    assert [row[0] for row in library.rows("path")] == ["a/1.jpg", "b/2.jpg"]
    (tmp_path / "usb").mkdir()
    (tmp_path / "usb" / "3.jpg").write_bytes(pictures.jpeg(seed=3))
    assert numbers(library.load(tmp_path / "usb")) == (1, 0, 0)
    assert numbers(library.load(tmp_path / "usb", library.folder)) == (0, 3, 0)
    assert [row[0] for row in library.rows("path")] == [str(tmp_path / "usb" / "3.jpg"), "a/1.jpg", "b/2.jpg"]
    # Everything moves.
    library.folder.rename(tmp_path / "elsewhere")
    summary = library.load(tmp_path / "elsewhere", base=tmp_path / "elsewhere")
    assert (*numbers(summary), summary.gone) == (0, 2, 0, 0)
    assert numbers(library.load(tmp_path / "elsewhere")) == (0, 2, 0)


@pytest.mark.parametrize(
    ("kept", "column"),
    [(ImageStorage(pixels=32), "thumbnail"), (ImageStorage(originals=True), "image"), (ImageStorage(), None)],
)
def test_what_is_kept_of_a_picture(library: Library, kept: ImageStorage, column: str | None) -> None:
    path = library.write("a.jpg", width=200, height=100, seed=1)
    library.load(storage=kept)
    connection = sqlite3.connect(library.database)
    columns = [row[1] for row in connection.execute("pragma table_info(photos)")]
    assert columns[-1] == (column or "gone_at")
    if column:
        (blob,) = connection.execute(f"select {column} from photos").fetchone()
        assert blob == path.read_bytes() if column == "image" else sniff(blob) == "WEBP"
    connection.close()
    other = ImageStorage(pixels=64)
    with pytest.raises(InvalidArgument, match=f"photos was loaded with {kept}, not with thumbnails of 64 pixels"):
        library.load(storage=other)
    assert numbers(library.load(storage=other, table="other")) == (1, 0, 0)


def test_a_table_of_others_is_left_alone(library: Library) -> None:
    library.write("a.jpg", seed=1)
    connection = sqlite3.connect(library.database)
    connection.execute("create table Photos (id integer primary key)")
    connection.close()
    with pytest.raises(InvalidArgument, match="photos was not made by vision load: choose another name with --table"):
        library.load()
    with pytest.raises(WrongTask):
        library.load(table="new", model="fake-classifier")


def test_near_duplicates(library: Library) -> None:
    original = pictures.scene(640, 480, seed=1)
    library.write("a.jpg", pictures.encode(original, "JPEG", quality=95))
    library.write("b.jpg", pictures.encode(original.resize((320, 240)), "JPEG", quality=60))
    library.write("c.webp", pictures.encode(original, "WEBP", quality=70))
    library.write("d.jpg", pictures.with_orientation(6, picture=original))
    library.write("e.jpg", seed=2)
    flat = pictures.encode(Image.new("RGB", (64, 64), (9, 9, 9)), "PNG")
    library.write("f.png", flat)
    library.write("g.png", flat)
    library.write("h.png", pictures.encode(Image.new("RGB", (64, 64), (200, 9, 9)), "PNG"))
    assert library.load().duplicates == 4
    ids = {row[0]: row[1] for row in library.rows("path, id")}

    def found() -> dict[str, int]:
        return {path: group for path, group in library.rows("path, near_duplicate_group") if group is not None}

    assert found() == {
        **dict.fromkeys(("a.jpg", "b.jpg", "c.webp", "d.jpg"), ids["a.jpg"]),
        **dict.fromkeys(("f.png", "g.png"), ids["f.png"]),
    }
    library.folder.joinpath("a.jpg").unlink()
    library.folder.joinpath("g.png").unlink()
    assert library.load().duplicates == 2
    assert found() == dict.fromkeys(("b.jpg", "c.webp", "d.jpg"), ids["b.jpg"])


def test_another_model(library: Library, counting: fakes.CountingLoads, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        library.write(f"{number}.jpg", seed=number)
    library.load()
    monkeypatch.setattr(photos, "describe_photo", lambda *_: pytest.fail("was described before"))
    assert numbers(library.load(model="fake-wide")) == (4, 0, 0)
    assert len(library.rows("model")) == 8


def test_stopping_and_going_on(library: Library, counting: fakes.CountingLoads) -> None:
    for number in range(40):
        library.write(f"{number:02d}.jpg", seed=number)
    stop = threading.Event()
    summary = library.load(stop=stop, on_progress=lambda summary: summary.done == 15 and stop.set())
    assert (summary.stopped, *numbers(summary)) == (True, 15, 0, 0)
    assert len(library.rows("path", "embedding is not null")) == 15
    assert numbers(library.load()) == (25, 15, 0)
    whole = [row[:3] for row in library.rows("path, digest, embedding")]
    library.database.unlink()
    library.load()
    assert library.rows("path, digest, embedding") == whole


def test_rows_that_somebody_deletes_are_made_again(library: Library) -> None:
    for number in range(3):
        library.write(f"{number}.jpg", seed=number)
    library.load()
    connection = sqlite3.connect(library.database)
    connection.execute("delete from photos where path = '1.jpg'")
    connection.execute("delete from _vision_photos where id = 1")
    connection.commit()
    connection.close()
    summary = library.load()
    assert (*numbers(summary), summary.removed) == (2, 1, 0, 1)
    assert len(library.rows("path", "embedding is not null")) == 3


def test_a_file_that_grows_too_large(library: Library) -> None:
    library.write("a.jpg", pictures.jpeg() + b"\0" * 1_000_000)
    summary = library.load()
    assert summary.failures == [("a.jpg", "an image of 1.0 MB is more than the 1 MB allowed (max_image_mb)")]


def test_times_to_the_nanosecond() -> None:
    assert photos.moment(0) == "1970-01-01T00:00:00.000000000Z"
    assert photos.moment(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456789Z"
    assert photos.moment(-1) == "1969-12-31T23:59:59.999999999Z"
