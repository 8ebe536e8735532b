"""files/storage.py: files of this machine and of object stores, by one way."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the extra parquet is not installed")

from datasette_vision.errors import ExtraMissing, InvalidArgument, StorageFailed
from datasette_vision.files.storage import Place, place
from datasette_vision.util.partial_files import unfinished


@pytest.fixture(params=["path", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty folder on this machine, by its path and by its URI, and one of fsspec."""
    address = {
        "path": str(tmp_path / "folder"),
        "file": (tmp_path / "folder").as_uri(),
        "memory": f"memory://{uuid.uuid4().hex}/folder",
    }[request.param]
    found = place(address)
    found.make_folder()
    return found


def test_write_read_list_remove(folder: Place) -> None:
    for name in ("b.jpg", "a.jpg", "_c.jpg", ".hidden"):
        folder.child(name).write(name.encode())
    inner = folder.child("inner")
    inner.make_folder()
    inner.child("d.jpg").write(b"d")
    names = [file.path.rpartition("folder/")[2] for file in folder.files()]
    assert names == ["_c.jpg", "a.jpg", "b.jpg", "inner/d.jpg"]
    assert [file.read() for file in folder.files(hidden=(".", "_"))] == [b"a.jpg", b"b.jpg", b"d"]
    assert folder.kind() == "folder"
    assert folder.child("a.jpg").kind() == "file"
    folder.child("a.jpg").remove()
    assert folder.child("a.jpg").kind() == "nothing"


def test_an_address_opens_the_same_again(folder: Place) -> None:
    folder.child("a.jpg").write(b"abc")
    again = place(folder.child("a.jpg").address)
    assert again.read() == b"abc"
    assert again.address == folder.child("a.jpg").address


def test_writing_replaces(folder: Place) -> None:
    for content in (b"first", b"second"):
        folder.child("a").write(content)
    assert folder.child("a").read() == b"second"
    assert len(list(folder.files(hidden=()))) == 1


@pytest.mark.parametrize("size", [0, 5, 6, 7])
def test_no_more_is_read_than_needed_to_see_that_it_is_too_large(folder: Place, size: int) -> None:
    folder.child("a").write(b"x" * size)
    assert folder.child("a").read(max_bytes=5) == b"x" * min(size, 6)


def test_what_cannot_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    here = place(str(tmp_path))
    with pytest.raises(StorageFailed, match="TypeError"):
        here.child("a").write("no bytes")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    left, other = tmp_path / ".part-1.parquet-12345678.part", tmp_path / ".other"
    left.write_bytes(b"half")
    other.write_bytes(b"")
    with unfinished(tmp_path / "part-2.parquet", ".part") as written:
        place(str(tmp_path)).clear_up()
        assert sorted(tmp_path.iterdir()) == sorted([other, written])
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "part-2.parquet"]


def test_errors_name_the_place(folder: Place) -> None:
    with pytest.raises(StorageFailed) as caught:
        folder.child("none.jpg").read()
    assert str(caught.value) == f"{folder.address}/none.jpg: there is no such file"
    with pytest.raises(StorageFailed, match="none: there is no such file"):
        list(folder.child("none").files())


def test_a_relative_path_is_one_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place("a/../b.jpg").address == f"{tmp_path}/b.jpg"
    assert place("~/x").address == str(Path("~/x").expanduser())


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "in" / "nowhere.jpg").symlink_to("b.jpg")
    found = [file.path for file in place(str(tmp_path)).files()]
    assert found == [f"{tmp_path}/in/a.jpg", f"{tmp_path}/in/link.jpg"]


@pytest.mark.parametrize("address", ["http://example.com/a.jpg", "https://example.com/a.jpg"])
def test_the_web_is_not_fetched(address: str) -> None:
    with pytest.raises(InvalidArgument, match="web addresses are not fetched"):
        place(address)


def test_unknown_schemes_are_named() -> None:
    with pytest.raises(InvalidArgument, match="nosuch://a: neither pyarrow"):
        place("nosuch://a/b")
    with pytest.raises(InvalidArgument, match="expected file:///"):
        place("file://a/b")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.fs", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'datasette-vision\[parquet\]'"):
        place("s3://bucket/missing-pyarrow")
