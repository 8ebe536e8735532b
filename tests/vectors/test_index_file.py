"""vectors/index_file.py: what was saved comes back as it was, and what is damaged is known for it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from datasette_vision.util.partial_files import unfinished
from datasette_vision.vectors import index_file
from datasette_vision.vectors.codes import empty
from datasette_vision.vectors.index import Index
from datasette_vision.vectors.index_file import UnusableIndex
from tests.paths import ROOT
from tests.vectors.test_index import change, clustered, index_of

MATRIX = clustered(500)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "photos.db-vision" / "photos.index"


def save(path: Path, matrix: np.ndarray = MATRIX, about: dict[str, object] | None = None) -> Index:
    index = index_of(matrix)
    index_file.save_index(path, about or {}, index.view.space, index.view.base)
    return index


def open_index(path: Path) -> Index:
    saved = index_file.open_index(path)
    return Index(saved.space, saved.base)


def test_what_is_saved_comes_back(path: Path) -> None:
    index = save(path, about={"state": [3, -5]})
    index_file.verify_index(path)
    saved = index_file.open_index(path)
    assert saved.about == {"state": [3, -5]}
    for before, after in ((index.view.space, saved.space), (index.view.base, saved.base)):
        for field in fields(before):
            np.testing.assert_array_equal(getattr(before, field.name), getattr(after, field.name))
            assert getattr(before, field.name).dtype == getattr(after, field.name).dtype
    for row in range(0, 500, 50):
        np.testing.assert_array_equal(index.search(MATRIX[row], 20), open_index(path).search(MATRIX[row], 20))
    assert [file.name for file in path.parent.iterdir()] == ["photos.index"]


def test_an_opened_index_changes_in_memory_only(path: Path) -> None:
    save(path)
    before = path.read_bytes()
    index = open_index(path)
    change(index, np.arange(400), np.arange(1000, 1100), MATRIX[:100])
    assert len(index) == 200
    assert path.read_bytes() == before


def test_an_empty_index(path: Path) -> None:
    save(path, np.empty((0, 64), np.float32))
    assert len(open_index(path)) == 0


def test_one_is_replaced_while_it_is_open(path: Path) -> None:
    save(path)
    first = open_index(path)
    expected = first.search(MATRIX[0], 5)[0].tolist()
    save(path, MATRIX[:100])
    assert first.search(MATRIX[0], 5)[0].tolist() == expected
    assert len(open_index(path)) == 100


def test_memory_of_a_file_without_a_name(tmp_path: Path) -> None:
    allocate = index_file.allocator(tmp_path / "new")
    codes = empty(index_of(MATRIX).view.space, 500, allocate=allocate)
    codes.put(index_of(MATRIX).view.base, 0)
    assert codes.labels.tolist() == list(range(500))
    assert not isinstance(codes.levels.base, np.ndarray) or codes.levels.base.base is not None
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    assert index_file.allocator(tmp_path / "file")((2, 3), np.int64).shape == (2, 3)


CODES = ["signs", "levels", "scales", "along"]
PARTS = ["mean", "flips", "left", "right", "labels", "keys", *CODES, "json", "end"]


@pytest.mark.parametrize("part", PARTS)
def test_every_damaged_byte_is_found(path: Path, part: str) -> None:
    save(path)
    content = bytearray(path.read_bytes())
    start = content.rindex(b'{"format"')
    header = json.loads(content[start : -index_file.END.size])
    places = {"json": (start, len(content) - 48), "end": (len(content) - 48, len(content))}
    places |= {name: (each["from"], each["to"]) for name, each in header["parts"].items()}
    assert set(places) == set(PARTS)
    first, last = places[part]
    for place in {first, (first + last) // 2, last - 1}:
        damaged = bytearray(content)
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(UnusableIndex):
            index_file.verify_index(path)
        if part in CODES:
            index_file.open_index(path)  # cannot crash by it: what it says is compared with the table
        else:
            with pytest.raises(UnusableIndex):
                index_file.open_index(path)


def test_a_part_of_a_file_is_not_an_index(path: Path) -> None:
    save(path)
    content = path.read_bytes()
    for size in (0, 1, 47, 48, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        for read in (index_file.open_index, index_file.verify_index):
            with pytest.raises(UnusableIndex):
                read(path)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(UnusableIndex):
        index_file.open_index(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        index_file.open_index(path)


def test_another_format(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "INDEX_FORMAT", 99)
    save(path)
    monkeypatch.undo()
    with pytest.raises(UnusableIndex, match="of format 99, not 2"):
        index_file.open_index(path)


def test_a_kill_while_saving_leaves_what_was_there(path: Path) -> None:
    """At many moments: what is there afterwards is the old index or the new one, whole."""
    save(path, about={"which": "old"})
    code = """
        import sys
        from pathlib import Path
        from datasette_vision.vectors import index_file as indexfile
        from tests.vectors.test_index import clustered, index_of
        view = index_of(clustered(3000)).view
        print("ready", flush=True)
        while True:
            indexfile.save(Path(sys.argv[1]), {"which": "new"}, base, None, 64)
            print("saved", flush=True)
    """
    seen = set()
    for delay in (0.0, 0.001, 0.002, 0.004, 0.008, 0.016):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        index_file.verify_index(path)
        seen.add(index_file.open_index(path).about["which"])
    assert seen <= {"old", "new"}
    save(path, about={"which": "last"})
    assert list(path.parent.iterdir()) == [path]


def test_what_is_being_written_by_another_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with unfinished(path, ".tmp") as others:
        save(path)
        assert sorted(path.parent.iterdir()) == sorted([others, path])
        others.write_bytes(b"the other's")
    assert path.read_bytes() == b"the other's"


def test_a_folder_that_cannot_be_written(path: Path) -> None:
    path.parent.write_text("a file of that name")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        save(path)
