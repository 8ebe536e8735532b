"""files/parquet.py: shards that are whole or not there, in a form that other tools read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
import pyarrow.parquet as pq  # noqa: E402

from datasette_vision.errors import InvalidArgument, StorageFailed  # noqa: E402
from datasette_vision.files.parquet import (  # noqa: E402
    READERS,
    ImageRow,
    Output,
    OutputForm,
    _parallel,
    open_shard,
    shards,
    vectors_of,
)
from datasette_vision.files.storage import Place, place  # noqa: E402

FORM = OutputForm("fake", "f" * 64, 4)
# With an earlier pyarrow, nulls cannot be among lists of a fixed size.
FIXED = int(pa.__version__.partition(".")[0]) >= 26


def row(number: int) -> ImageRow:
    if number % 5 == 4:
        return ImageRow(f"/photos/{number}.jpg", error="an image of 0 bytes is empty")
    vector = np.arange(4, dtype=np.float32) + number
    return ImageRow(f"/photos/{number}.jpg", f"{number:064}", 640, 480, vector)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    found = Output(str(tmp_path / "out"), FORM)
    found.prepare()
    return found


def rows_of(output: Output) -> list[dict[str, object]]:
    return [row for shard in output.shards() for row in open_shard(shard).read().to_pylist()]


def test_rows_come_back(output: Output) -> None:
    assert output.write(FORM.table([row(number) for number in range(10)])) == 10
    found = rows_of(output)
    assert found[3] == {
        "path": "/photos/3.jpg",
        "digest": f"{3:064}",
        "width": 640,
        "height": 480,
        "embedding": [3.0, 4.0, 5.0, 6.0],
        "error": None,
    }
    assert found[4] == {
        "path": "/photos/4.jpg",
        "digest": None,
        "width": None,
        "height": None,
        "embedding": None,
        "error": "an image of 0 bytes is empty",
    }
    (shard,) = output.shards()
    matrix, missing = vectors_of(open_shard(shard).read().column("embedding"))
    assert missing.tolist() == [False] * 4 + [True] + [False] * 4 + [True]
    assert (matrix[3] == [3, 4, 5, 6]).all()
    assert matrix.dtype == np.float32


def test_the_form_is_written_in_the_file(output: Output) -> None:
    output.write(FORM.table([row(0)]))
    (shard,) = output.shards()
    schema = open_shard(shard).schema_arrow
    fixed = "fixed_size_list<element: float>[4]" if FIXED else "list<element: float>"
    assert str(schema.field("embedding").type) == fixed
    assert schema.metadata[b"datasette_vision.model"] == b"fake"
    assert json.dumps(schema.names) == '["path", "digest", "width", "height", "embedding", "error"]'


def test_the_same_rows_are_the_same_shard(output: Output) -> None:
    """What a worker writes in the place of one that died replaces what that one wrote."""
    rows = [row(number) for number in range(6)]
    output.write(FORM.table(rows))
    output.write(FORM.table(rows[::-1]))
    assert len(list(output.shards())) == 1
    output.write(FORM.table([row(7)]))
    assert len(rows_of(output)) == 7


def test_nothing_is_no_shard(output: Output) -> None:
    assert output.write(FORM.table([])) == 0
    assert list(output.shards()) == []


def test_what_is_there_is_known(output: Output) -> None:
    output.write(FORM.table([row(number) for number in range(6)]))
    known = output.known()
    assert "/photos/4.jpg" in known  # with its error
    assert "/photos/6.jpg" not in known
    digests = output.known("digest")
    assert len(digests) == 5
    assert f"{3:064}" in digests


def test_shards_are_read_several_at_a_time_in_order_and_not_all_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(READERS)
    asked: list[Place] = []

    def places() -> Iterator[Place]:
        for number in range(4 * READERS):
            asked.append(place(str(tmp_path / str(number))))
            yield asked[-1]

    def work(found: Place) -> Place:
        together.wait(10)  # fails where fewer are at work
        return found

    for number, (found, result) in enumerate(_parallel(work, places())):
        assert found is result is asked[number]
        assert len(asked) <= number + 1 + 2 * READERS


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert list(Output(str(tmp_path / "none"), FORM).shards()) == []
    assert list(shards(place(str(tmp_path / "none")))) == []


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (OutputForm("other", "f" * 64, 4), "embeddings of fake, not of other"),
        (OutputForm("fake", "0" * 64, 4), "embeddings of another fake, not of fake"),
        pytest.param(
            OutputForm("fake", "f" * 64, 8),
            "embeddings in other columns, not of fake",
            marks=pytest.mark.skipif(not FIXED, reason="lists of any size do not say which"),
        ),
    ],
)
def test_models_are_not_mixed(output: Output, form: OutputForm, message: str) -> None:
    output.write(FORM.table([row(0)]))
    with pytest.raises(InvalidArgument, match=message):
        Output(output.address, form).prepare()
    output.prepare()


def test_forgetting_errors(output: Output) -> None:
    output.write(FORM.table([row(number) for number in range(10)]))
    output.write(FORM.table([row(14)]))
    output.write(FORM.table([row(20)]))
    assert output.forget_errors() == 3
    assert sorted(found["path"] for found in rows_of(output)) == sorted(  # type: ignore[type-var]
        f"/photos/{number}.jpg" for number in [0, 1, 2, 3, 5, 6, 7, 8, 20]
    )
    assert output.forget_errors() == 0


def test_a_damaged_shard_is_named(output: Output) -> None:
    output.write(FORM.table([row(0)]))
    (shard,) = output.shards()
    path = Path(shard.path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StorageFailed, match=r"part-\w+\.parquet: not a Parquet file"):
        output.known()


def test_hidden_files_are_others(output: Output) -> None:
    folder = Path(output.folder.path)
    for name in ("_SUCCESS", ".part-x.parquet-0.part", "_metadata.parquet", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert list(output.shards()) == []


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "half", "double"])
def test_embeddings_of_others_are_read(kind: str, tmp_path: Path) -> None:
    rows = [[0.5, 1.0], None, [0.25, -1.0]]
    if kind == "fixed" and not FIXED:
        pytest.skip("this pyarrow cannot write them")
    types = {
        "list": pa.list_(pa.float32()),
        "large_list": pa.large_list(pa.float32()),
        "fixed": pa.list_(pa.float32(), 2),
        "double": pa.list_(pa.float64()),
    }
    half = pa.ListArray.from_arrays(pa.array([0, None, 2, 4], pa.int32()), pa.array(np.float16([0.5, 1.0, 0.25, -1.0])))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"embedding": half if kind == "half" else pa.array(rows, types[kind])}), path)
    for column in (
        open_shard(place(str(path))).read().column("embedding"),
        next(iter(open_shard(place(str(path))).iter_batches(2))).column(0),
        open_shard(place(str(path))).read().column("embedding").slice(1, 2),
    ):
        expected = rows[1:] if len(column) == 2 and column[0].as_py() is None else rows[: len(column)]
        matrix, missing = vectors_of(column)
        assert missing.tolist() == [row is None for row in expected]
        assert matrix.tolist() == [row or [0, 0] for row in expected]


def test_what_is_no_column_of_embeddings() -> None:
    with pytest.raises(InvalidArgument, match="expected lists of floats, found string"):
        vectors_of(pa.array(["a"]))
    with pytest.raises(InvalidArgument, match="expected embeddings of one length, found 1, 2"):
        vectors_of(pa.array([[1.0], [1.0, 2.0]]))
    matrix, _ = vectors_of(pa.array([[1.0, None]]))
    assert np.isnan(matrix).tolist() == [[False, True]]
