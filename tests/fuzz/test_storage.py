"""Files that others wrote: Parquet of any columns, damaged Parquet, damaged indexes, and EXIF."""

from __future__ import annotations

import contextlib
import datetime
import re
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example
from hypothesis import strategies as st

from datasette_vision.errors import VisionError
from datasette_vision.images import exif, tiff_tags
from datasette_vision.vectors import index_file
from datasette_vision.vectors.index import Index
from datasette_vision.vectors.index_file import UnusableIndex
from tests import pictures
from tests.fuzz import strategies as own
from tests.fuzz.properties import assert_linear, fuzz
from tests.vectors.test_index import clustered, index_of

# Damage to the bytes of any file


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1) | st.integers(max(0, len(data) - 400), len(data) - 1))
        what = draw(st.sampled_from(("bit", "bit", "number", "cut", "insert", "end", "head")))
        if what == "bit":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "number":
            size = draw(st.sampled_from((1, 2, 4, 8)))
            data[at : at + size] = draw(
                st.binary(min_size=size, max_size=size) | st.just(b"\xff" * size) | st.just(bytes(size))
            )
        elif what == "cut":
            del data[at : at + draw(st.integers(1, 100))]
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        elif what == "head":
            del data[:at]
        else:
            del data[at:]
    return bytes(data)


# Indexes

MATRIX = clustered(60)


def written_index(folder: Path) -> bytes:
    path = folder / "good.index"
    if not path.exists():
        view = index_of(MATRIX).view
        index_file.save_index(path, {"state": [1]}, view.space, view.base)
    return path.read_bytes()


@fuzz(st.data(), weight=2)
def test_damaged_indexes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A damaged index is known for it before anything follows its links; what is not noticed is harmless."""
    folder = tmp_path_factory.getbasetemp() / "indexes"
    folder.mkdir(exist_ok=True)
    good = written_index(folder)
    content = data.draw(damaged(good))
    path = folder / "damaged.index"
    path.write_bytes(content)
    verified = True
    try:
        index_file.verify_index(path)
    except UnusableIndex as reason:
        assert str(path) in str(reason)
        assert len(str(reason)) < len(str(path)) + 200
        verified = False
    try:
        saved = index_file.open_index(path)
    except UnusableIndex as reason:
        assert str(path) in str(reason)
        assert not verified
        return
    assert saved.about == {"state": [1]}
    labels, similarities = Index(saved.space, saved.base).search(MATRIX[1], 5)
    assert set(labels.tolist()) <= set(range(60))
    assert len(labels) == len(similarities) == 5
    if verified and len(content) == len(good):
        # Between the parts there is padding, which nothing looks at.
        expected = index_of(MATRIX).search(MATRIX[1], 5)[0]
        assert labels.tolist() == expected.tolist()


# Parquet

pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
import pyarrow.parquet as pq  # noqa: E402

from datasette_vision.files.import_embeddings import Importer, Plan  # noqa: E402
from datasette_vision.files.inputs import Inputs  # noqa: E402
from datasette_vision.files.parquet import ImageRow, Output, OutputForm, vectors_of  # noqa: E402
from datasette_vision.util.listing import glob_regex  # noqa: E402

PNG = pictures.png(4, 4)
TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.string(), own.plain_texts),
    (pa.large_string(), own.plain_texts),
    (pa.binary(), st.just(PNG) | st.binary(max_size=20)),
    (pa.large_binary(), st.binary(max_size=20)),
    (pa.int64(), own.INTEGERS),
    (pa.float64(), own.FLOATS),
    (pa.bool_(), st.booleans()),
    (pa.timestamp("us"), st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))),
    (pa.list_(pa.float32()), st.lists(st.floats(width=32), max_size=4)),
    (pa.list_(pa.float32()), st.lists(st.floats(width=32) | st.none(), min_size=2, max_size=2)),
    (pa.list_(pa.float32(), 2), st.lists(st.floats(width=32) | st.none(), min_size=2, max_size=2)),
    (pa.large_list(pa.float64()), st.lists(own.FLOATS, min_size=2, max_size=2)),
    (pa.list_(pa.float16()), st.lists(st.floats(width=16), min_size=2, max_size=2)),
    (pa.list_(pa.string()), st.lists(own.plain_texts, max_size=2)),
    (pa.list_(pa.list_(pa.float32())), st.lists(st.lists(st.floats(width=32), max_size=2), max_size=2)),
    (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        st.fixed_dictionaries({"bytes": st.binary(max_size=9) | st.none(), "path": own.plain_texts}),
    ),
    (pa.struct([("path", pa.string())]), st.fixed_dictionaries({"path": own.plain_texts})),
    (pa.dictionary(pa.int32(), pa.string()), own.plain_texts),
    (pa.null(), st.none()),
    (pa.date32(), st.dates()),
    (pa.decimal128(10, 2), st.decimals(-1000, 1000, places=2)),
]  # fmt: skip
NAMES = (
    st.sampled_from(["path", "image", "embedding", "digest", "error", "width", "height", "bytes", "file_name", "x"])
    | own.plain_texts
)


@st.composite
def tables(draw: st.DrawFn) -> Any:
    rows = draw(st.integers(0, 4))
    names = draw(
        st.lists(NAMES, max_size=5, unique=True)
        | st.just(["path", "embedding"])
        | st.just(["path", "embedding", "error", "width"])
    )
    columns = []
    for name in names:
        usual = {"path": TYPES[0], "embedding": TYPES[10], "image": TYPES[2]}.get(name, TYPES[0])
        kind, values = usual if draw(st.integers(0, 2)) else draw(st.sampled_from(TYPES))
        found = [draw(values | st.none()) for _ in range(rows)]
        columns.append(pa.array(found, kind))
    metadata = draw(
        st.sampled_from(
            [
                {},
                {b"datasette_vision.model": b"fake"},
                {b"datasette_vision.model": b"\xff"},
                {b"datasette_vision.model": b""},
            ]
        )
    )
    return pa.table(columns, names=names).replace_schema_metadata(metadata)


def folder_of(factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "parquet"
    folder.mkdir(exist_ok=True)
    return folder


def check_parquet(path: Path) -> None:
    """Everything that reads a Parquet file either reads it, or says what is wrong in words of ours."""
    with contextlib.suppress(VisionError):
        inputs = Inputs([str(path)])
        for unit in inputs.units():
            for image in unit.images(inputs.column):
                assert isinstance(image.path, str)
                assert image.error is None or image.content is None
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for create in (True, False):
            connection.execute("create table if not exists t (id integer primary key, path text)")
            with contextlib.suppress(VisionError):
                summary = Importer(
                    connection, Plan("made" if create else "t", (str(path),), create=create, model="m")
                ).run()
                assert summary.done == summary.total
        for row in (
            connection.execute("select embedding, error from _vision_made")
            if "_vision_made" in {name for (name,) in connection.execute("select name from sqlite_master")}
            else ()
        ):
            assert (row[0] is None) != (row[1] is None)
    finally:
        connection.close()
    with contextlib.suppress(VisionError):
        output = Output(str(path.parent), OutputForm("fake", "f", 2))
        output.prepare()  # what is of another form goes no further
        assert output.known() is not None
        output.forget_errors()


@fuzz(tables())
def test_parquet_of_any_columns(tmp_path_factory: pytest.TempPathFactory, table: Any) -> None:
    path = folder_of(tmp_path_factory) / "any.parquet"
    pq.write_table(table, path)
    check_parquet(path)


@fuzz(st.data())
def test_damaged_parquet(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = folder_of(tmp_path_factory)
    rows = [ImageRow(f"/p/{number}", "d" * 64, 4, 3, np.full(2, number, np.float32)) for number in range(1, 5)]
    table = OutputForm("fake", "f", 2).table([*rows, ImageRow("/p/bad", error="no image")])
    if data.draw(st.booleans()):
        table = pa.table({"path": ["a", "b"], "image": [PNG, PNG]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=data.draw(st.sampled_from(["none", "snappy", "zstd", "gzip"])))
    path = folder / "any.parquet"
    path.write_bytes(data.draw(damaged(sink.getvalue().to_pybytes())))
    check_parquet(path)


@fuzz(st.sampled_from(TYPES), st.data())
def test_columns_of_embeddings(kind: tuple[Any, st.SearchStrategy[Any]], data: st.DataObject) -> None:
    array = pa.array(data.draw(st.lists(kind[1] | st.none(), max_size=5)), kind[0])
    chunked = pa.chunked_array([array[:1], array[1:]])
    for column in (array, chunked, array.slice(1)):
        with contextlib.suppress(VisionError):
            matrix, missing = vectors_of(column)
            assert len(matrix) == len(missing) == len(column)
            assert matrix.dtype == np.float32
            assert missing.tolist() == [value is None for value in column.to_pylist()]


@fuzz(
    own.texts
    | st.lists(
        st.sampled_from(["*", "**", "?", "[", "]", "!", "^", "-", "a", "z", "/", "\\", "**/", "[z-a]"]), max_size=8
    ).map("".join)
)
@example("[z-a]")
@example("[[]")
def test_globs(pattern: str) -> None:
    """Every pattern is one, and what is no special character stands for itself."""
    matches = re.compile(glob_regex(pattern)).fullmatch
    if not set(pattern) & set("*?[\n"):
        assert matches(pattern)


# EXIF

values = st.sampled_from([0, 1, 2, 8, 9, 100, 0xFFFF, 2**31, 2**32 - 1])
TAGS = st.sampled_from([0x0112, 0x8769, 0x8825, 0xA005, 0x9003, 0x9004, 0x9011, 0x9012, 1, 2, 3, 4, 0x010F])


@st.composite
def exifs(draw: st.DrawFn) -> bytes:
    order = draw(st.sampled_from(("<", ">")))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
        order + "I", draw(st.sampled_from((8, 8, 8, 0, 2**32 - 1)))
    )
    entries = draw(st.lists(st.tuples(TAGS, st.integers(0, 20), values, values | st.integers(0, 200)), max_size=6))
    count = draw(st.just(len(entries)) | st.sampled_from((0, 65535)))
    block = head + struct.pack(order + "H", count) + b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    return (
        draw(st.sampled_from((b"", b"Exif\0\0", b"Exif\0\0" * 3)))
        + block
        + draw(st.binary(max_size=60) | st.just(b"2024:05:06 07:08:09\0" * 3))
    )


@fuzz(exifs() | st.binary(max_size=100), weight=2)
def test_any_exif(block: bytes) -> None:
    taken = exif.read_exif(block)
    assert taken.latitude is None or -90 <= taken.latitude <= 90
    assert taken.longitude is None or -180 <= taken.longitude <= 180
    assert (taken.latitude is None) == (taken.longitude is None)
    if taken.at is not None:
        datetime.datetime.fromisoformat(taken.at)
    assert 1 <= tiff_tags.exif_orientation(block) <= 8
    for image_format in ("TIFF", "AVIF"):
        tiff_tags.tag_bomb(image_format, block)


@fuzz(
    st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1)).map(
        lambda time: time.replace(microsecond=0)
    ),
    st.tuples(st.integers(0, 89), st.integers(0, 59), st.integers(0, 59)),
    st.tuples(st.integers(0, 179), st.integers(0, 59), st.integers(0, 59)),
    st.booleans(),
    st.booleans(),
    st.integers(1, 8),
)
def test_what_a_camera_writes_is_read(
    at: datetime.datetime,
    north: tuple[int, int, int],
    east: tuple[int, int, int],
    is_south: bool,
    is_west: bool,
    orientation: int,
) -> None:
    from PIL import Image

    tags = Image.Exif()
    tags[0x0112] = orientation
    tags.get_ifd(0x8769)[0x9003] = at.strftime("%Y:%m:%d %H:%M:%S")
    tags.get_ifd(0x8825).update({1: "S" if is_south else "N", 2: north, 3: "W" if is_west else "E", 4: east})
    found = exif.read_exif(tags.tobytes())
    assert found.at == at.isoformat()
    expected = [sum(part / 60**place for place, part in enumerate(parts)) for parts in (north, east)]
    if any(expected):
        assert found.latitude == pytest.approx(-expected[0] if is_south else expected[0], abs=1e-6)
        assert found.longitude == pytest.approx(-expected[1] if is_west else expected[1], abs=1e-6)
    assert tiff_tags.exif_orientation(tags.tobytes()) == orientation


@fuzz(
    st.sampled_from([b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"]),
    st.binary(min_size=1, max_size=24),
    weight=0.5,
)
def test_reading_exif_takes_time_in_proportion(head: bytes, repeated: bytes) -> None:
    def work(count: int) -> None:
        block = head + repeated * count
        exif.read_exif(block)
        tiff_tags.exif_orientation(block)
        tiff_tags.tag_bomb("TIFF", block)
        tiff_tags.tag_bomb("AVIF", block)

    assert_linear(work, 20_000 // len(repeated))
