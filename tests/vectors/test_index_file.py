"""vectors/index_file.py: what was saved comes back as it was, and what is damaged is known for it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from datasette_vision.util.partial_files import unfinished
from datasette_vision.vectors import hnsw, index_file
from datasette_vision.vectors.eight_bit import empty
from datasette_vision.vectors.index import Index
from datasette_vision.vectors.index_file import UnusableIndex
from tests.paths import ROOT
from tests.vectors.test_index import clustered, flat, graph

MATRIX = clustered(500)
ALIVE = np.arange(500) % 3 > 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "photos.db-vision" / "photos.index"


@pytest.mark.parametrize("alive", [None, ALIVE])
@pytest.mark.parametrize("kind", ["flat", "graph"])
def test_what_is_saved_comes_back(path: Path, kind: str, alive: np.ndarray | None) -> None:
    base = flat(MATRIX) if kind == "flat" else graph(MATRIX)
    if isinstance(base, hnsw.HnswGraph):
        base.expand(512)
    index_file.save_index(path, {"state": [3, -5]}, base, alive, 64)
    index_file.verify_index(path)
    saved = index_file.open_index(path)
    assert saved.about == {"state": [3, -5]}
    assert type(saved.base) is type(base)
    assert (saved.alive is None) == (alive is None)
    for row in range(0, 500, 50):
        before = Index(base, 64, alive).search(MATRIX[row], 20)
        after = Index(saved.base, 64, saved.alive).search(MATRIX[row], 20)
        np.testing.assert_array_equal(before[0], after[0])
        np.testing.assert_allclose(before[1], after[1], atol=1e-6)
    if isinstance(saved.base, hnsw.HnswGraph):
        assert saved.base.expansion == 512
    assert [file.name for file in path.parent.iterdir()] == ["photos.index"]


def test_an_opened_index_changes_in_memory_only(path: Path) -> None:
    index_file.save_index(path, {}, flat(MATRIX), None, 64)
    before = path.read_bytes()
    index = Index(index_file.open_index(path).base, 64)
    index.change(np.arange(400), np.arange(1000, 1100), MATRIX[:100])
    assert len(index) == 200
    assert path.read_bytes() == before


def test_an_empty_index(path: Path) -> None:
    index_file.save_index(path, {}, empty(64), None, 64)
    assert len(Index(index_file.open_index(path).base, 64)) == 0


def test_one_is_replaced_while_it_is_open(path: Path) -> None:
    index_file.save_index(path, {}, graph(MATRIX), None, 64)
    first = Index(index_file.open_index(path).base, 64)
    expected = first.search(MATRIX[0], 5)[0].tolist()
    index_file.save_index(path, {}, graph(MATRIX[:100]), None, 64)
    assert first.search(MATRIX[0], 5)[0].tolist() == expected
    assert len(Index(index_file.open_index(path).base, 64)) == 100


PARTS = {
    "flat": ["codes", "scales", "labels", "alive", "json", "end"],
    "graph": ["head", "vectors", "links", "labels", "alive", "json", "end"],
}


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, parts in PARTS.items() for part in parts])
def test_every_damaged_byte_is_found(path: Path, kind: str, part: str) -> None:
    index_file.save_index(path, {}, flat(MATRIX) if kind == "flat" else graph(MATRIX), ALIVE, 64)
    content = bytearray(path.read_bytes())
    start = content.rindex(b'{"format"')
    header = json.loads(content[start : -index_file.END.size])
    places = {"json": (start, len(content) - 48), "end": (len(content) - 48, len(content))}
    places |= {name: (each["from"], each["to"]) for name, each in header["parts"].items()}
    assert set(places) == set(PARTS[kind])
    first, last = places[part]
    for place in {first, (first + last) // 2, last - 1}:
        damaged = bytearray(content)
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(UnusableIndex):
            index_file.verify_index(path)
        if part in {"vectors", "codes"}:
            index_file.open_index(path)  # cannot crash by it: what it says is compared with the table
        else:
            with pytest.raises(UnusableIndex):
                index_file.open_index(path)


@pytest.mark.parametrize("kind", ["flat", "graph"])
def test_a_part_of_a_file_is_not_an_index(path: Path, kind: str) -> None:
    index_file.save_index(path, {}, flat(MATRIX) if kind == "flat" else graph(MATRIX), None, 64)
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
    index_file.save_index(path, {}, flat(MATRIX), None, 64)
    monkeypatch.undo()
    with pytest.raises(UnusableIndex, match="of format 99, not 1"):
        index_file.open_index(path)


def test_a_kill_while_saving_leaves_what_was_there(path: Path) -> None:
    """At many moments: what is there afterwards is the old index or the new one, whole."""
    index_file.save_index(path, {"which": "old"}, flat(MATRIX), None, 64)
    code = """
        import sys
        from pathlib import Path
        from datasette_vision.vectors import index_file as indexfile
        from tests.vectors.test_index import clustered, flat, graph
        base = graph(clustered(3000))
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
    index_file.save_index(path, {"which": "last"}, flat(MATRIX), None, 64)
    assert list(path.parent.iterdir()) == [path]


def test_what_is_being_written_by_another_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with unfinished(path, ".tmp") as others:
        index_file.save_index(path, {}, flat(MATRIX), None, 64)
        assert sorted(path.parent.iterdir()) == sorted([others, path])
        others.write_bytes(b"the other's")
    assert path.read_bytes() == b"the other's"


def test_a_folder_that_cannot_be_written(path: Path) -> None:
    path.parent.write_text("a file of that name")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        index_file.save_index(path, {}, flat(MATRIX), None, 64)
