"""plugin/http/inputs.py: what an input means, and which images are in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
import pyarrow.parquet as pq  # noqa: E402

from datasette_vision.errors import InvalidArgument, StorageFailed  # noqa: E402
from datasette_vision.files.inputs import Column, Image, Inputs, Unit, folder_and_pattern  # noqa: E402
from datasette_vision.files.storage import place  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.PNG", "notes.txt", "2024/c.webp", "2024/deep/d.heic", "[x]/e.jpg", "_DSC1.jpg", ".h.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "photos"


def listed(*inputs: object, **options: object) -> list[str]:
    """The paths of the images, relative to where they are."""
    found = Inputs([str(text) for text in inputs], **options)  # type: ignore[arg-type]
    images = [image for unit in found.units() for image in unit.images(found.column)]
    return [re.sub(r"^.*/photos/", "", image.path) for image in images]


ALL = ["_DSC1.jpg", "a.jpg", "b.PNG", "2024/c.webp", "2024/deep/d.heic", "[x]/e.jpg"]


def test_a_folder(folder: Path) -> None:
    assert listed(folder) == ALL
    inputs = Inputs([str(folder)])
    assert len(list(inputs.units())) == 6
    assert inputs.ignored == 1


def test_names_are_addresses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lead back to the file, wherever the command was typed."""
    monkeypatch.chdir(folder)
    unit = next(Inputs(["2024"]).units())
    assert next(unit.images()) == Image(f"{folder}/2024/c.webp", uri=f"{folder}/2024/c.webp")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["_DSC1.jpg", "a.jpg"]),
        ("*", ["_DSC1.jpg", "a.jpg", "b.PNG", "notes.txt"]),
        ("?.jpg", ["a.jpg"]),
        ("[ab].*", ["a.jpg", "b.PNG"]),
        ("[!b].*", ["a.jpg"]),
        ("**/*.jpg", ["_DSC1.jpg", "a.jpg", "[x]/e.jpg"]),
        ("20*/*", ["2024/c.webp"]),
        ("2024/**", ["2024/c.webp", "2024/deep/d.heic"]),
        ("[x]/e.jpg", ["[x]/e.jpg"]),
        ("[x]", ["[x]/e.jpg"]),
        ("[[a].jpg", ["a.jpg"]),
        ("[&&a~~||].jpg", ["a.jpg"]),
    ],
)
def test_globs(folder: Path, pattern: str, expected: list[str]) -> None:
    assert listed(f"{folder}/{pattern}") == expected


def test_globs_of_a_store() -> None:
    assert folder_and_pattern("s3://bucket/a*/b.jpg?endpoint_override=localhost:9000") == (
        "s3://bucket?endpoint_override=localhost:9000",
        "a*/b.jpg",
    )
    assert folder_and_pattern("s3://bucket/a/b.jpg?x=1") == ("s3://bucket/a/b.jpg?x=1", None)


def test_a_name_that_is_not_utf8(folder: Path) -> None:
    try:
        (folder / os.fsdecode(b"2024/z\xff.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    images = [next(unit.images()) for unit in Inputs([str(folder / "2024")]).units()]
    assert images[1] == Image(
        f"{folder}/2024/z\\xff.jpg", error="its name is not UTF-8, which a row's path must be: rename it"
    )


def test_a_store(folder: Path) -> None:
    store = place("memory://inputs/photos")
    for name in ("x/a.jpg", "x/b.txt", "c.jpg"):
        store.child(name).write(name.encode())
    assert listed("memory://inputs/photos") == ["c.jpg", "x/a.jpg"]
    assert listed("memory://inputs/photos/**/*.txt") == ["x/b.txt"]
    (image,) = next(Inputs(["memory://inputs/photos/x/a.jpg"]).units()).images()
    assert image == Image("memory://inputs/photos/x/a.jpg", uri="memory://inputs/photos/x/a.jpg")


def test_several_inputs_in_order(folder: Path) -> None:
    assert listed(folder / "b.PNG", folder / "a.jpg", folder / "2024") == [
        "b.PNG", "a.jpg", "2024/c.webp", "2024/deep/d.heic",
    ]  # fmt: skip


def test_where_there_is_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"none: there is no such file or folder"):
        listed(folder / "none")
    with pytest.raises(InvalidArgument, match=r"\*.gif: there are no images, and no Parquet files"):
        listed(f"{folder}/*.gif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match="empty: there are no images"):
        listed(tmp_path / "empty")


def test_what_the_job_writes_is_no_input(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "x.jpg").write_bytes(b"")
    assert listed(folder, output=place(str(folder / "out"))) == ALL


def table(path: Path, /, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_a_column_of_images(tmp_path: Path) -> None:
    """A row is named by its file and number, however the file is cut into row groups."""
    path = table(tmp_path / "a.parquet", id=[1, 2, 3], image=[b"1", None, b"3"])
    units = list(Inputs([str(path)]).units())
    assert units == [Unit(str(path), 0, 0, 2), Unit(str(path), 1, 2, 1)]
    assert [image for unit in units for image in unit.images()] == [
        Image(f"{path}#0", content=b"1"),
        Image(f"{path}#1", error="the column image is null"),
        Image(f"{path}#2", content=b"3"),
    ]


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", image=[b"1" * 50, b"2" * 50])
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36  # the head of the first page
    path.write_bytes(content)
    with pytest.raises(StorageFailed, match=r"a\.parquet: "):
        list(next(Inputs([str(path)]).units()).images())


def test_names_of_a_column_path(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", path=["x", "y"], image=[b"1", b"2"])
    assert list(next(Inputs([str(path)]).units()).images()) == [Image("x", content=b"1"), Image("y", content=b"2")]


def test_datasets_of_hugging_face(tmp_path: Path) -> None:
    rows = [{"bytes": b"1", "path": "x.jpg"}, {"bytes": None, "path": "y.jpg"}]
    path = table(tmp_path / "a.parquet", image=rows, label=[1, 2])
    assert list(next(Inputs([str(path)]).units()).images()) == [
        Image(f"{path}#0", content=b"1"),
        Image(f"{path}#1", error="the column image is null"),
    ]


def test_a_column_without_a_name(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", **{"": [b"1"]})
    assert list(next(Inputs([str(path)]).units()).images()) == [Image(f"{path}#0", content=b"1")]


def test_a_column_of_paths(tmp_path: Path) -> None:
    names = ["x.jpg", "/y.jpg", "s3://bucket/z.jpg", "http://example.com/w.jpg", None]
    path = table(tmp_path / "a.parquet", label=["1", "2", "3", "4", "5"], file_name=names)
    images = [image for unit in Inputs([str(path)]).units() for image in unit.images()]
    assert [image.path for image in images] == [*names[:4], f"{path}#4"]
    assert [image.uri for image in images] == [f"{tmp_path}/x.jpg", "/y.jpg", *names[2:]]
    assert images[4].error == "the column file_name is null"


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    table(tmp_path / "data" / "train" / "0.parquet", image=[b"1", b"2", b"3"])
    table(tmp_path / "data" / "1.parquet", image=[b"4"])
    table(tmp_path / "data" / "_metadata.parquet", image=[b"5"])
    (tmp_path / "data" / "README.md").write_text("")
    inputs = Inputs([str(tmp_path / "data")])
    assert [image.content for unit in inputs.units() for image in unit.images()] == [b"4", b"1", b"2", b"3"]
    assert inputs.ignored == 1


def test_pictures_beside_parquet_files(folder: Path) -> None:
    """A folder of pictures with somebody's tables in it is a folder of pictures."""
    table(folder / "A.parquet", image=[b"1"])
    table(folder / "z.parquet", image=[b"1"])
    inputs = Inputs([str(folder)])
    assert len(list(inputs.units())) == 6
    assert inputs.ignored == 3


@pytest.mark.parametrize(
    ("schema", "wanted", "expected"),
    [
        ({"a": pa.binary()}, None, Column("a", True)),
        ({"a": pa.large_binary(), "png": pa.binary()}, None, Column("png", True)),
        ({"a": pa.binary(), "image": pa.binary()}, "a", Column("a", True)),
        ({"path": pa.string(), "uri": pa.string()}, None, Column("path", False, False, "path")),
        ({"path": pa.string(), "uri": pa.string()}, "uri", Column("uri", False, False, "path")),
        ({"x": pa.dictionary(pa.int32(), pa.string())}, "x", Column("x", False)),
        ({"x": pa.struct({"bytes": pa.binary(), "path": pa.string()})}, None, Column("x", True, True)),
    ],
)
def test_the_column_that_is_meant(schema: dict[str, object], wanted: str | None, expected: Column) -> None:
    assert Column.choose(pa.schema(schema), wanted, "x.parquet") == expected


def test_columns_that_cannot_be_meant() -> None:
    schema = pa.schema({"id": pa.int64(), "name": pa.string(), "a": pa.binary(), "b": pa.binary()})
    with pytest.raises(InvalidArgument, match=r"x.parquet: there is no column c; its columns are: id, name, a, b"):
        Column.choose(schema, "c", "x.parquet")
    with pytest.raises(InvalidArgument, match="neither images nor paths in the column id"):
        Column.choose(schema, "id", "x.parquet")
    with pytest.raises(InvalidArgument, match="Name it with --column; columns: id, name, a, b"):
        Column.choose(schema, None, "x.parquet")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and so on")
    with pytest.raises(StorageFailed, match=r"a\.parquet: not a Parquet file"):
        list(Inputs([str(tmp_path / "a.parquet")]).units())
