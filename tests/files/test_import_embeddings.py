"""files/import_embeddings.py and `datasette vision import-embeddings`: from Parquet into the side table of a table."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from datasette.cli import cli

pa = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
import pyarrow.parquet as pq  # noqa: E402

from datasette_vision.engine.vision import Vision  # noqa: E402
from datasette_vision.files import import_embeddings  # noqa: E402
from datasette_vision.files.parquet import ImageRow, Output, OutputForm  # noqa: E402
from datasette_vision.retrieval.search import Searcher  # noqa: E402
from datasette_vision.tables.schema import SideTable  # noqa: E402
from datasette_vision.vectors import embedding as vectors  # noqa: E402

FORM = OutputForm("fake", "f" * 64, 4)
COUNT = 50


def embedding(number: int) -> np.ndarray:
    return vectors.normalise(np.random.default_rng(number).standard_normal(4))


def image(number: int) -> ImageRow:
    path = f"/photos/{number:03}.jpg"
    if number % 10 == 9:
        return ImageRow(path, f"{number:064}", error="truncated JPEG image")
    return ImageRow(path, f"{number:064}", 640, 480, embedding(number))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    output = Output(str(tmp_path / "out"), FORM)
    output.prepare()
    for first in range(0, COUNT, 20):
        output.write(FORM.table([image(number) for number in range(first, min(COUNT, first + 20))]))
    return tmp_path / "out"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "photos.db"


@pytest.fixture
def connection(database: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(database)
    connection.execute("create table photos (id integer primary key, path text, digest text)")
    connection.executemany(
        "insert into photos values (?, ?, ?)",
        [(100 + number, f"/photos/{number:03}.jpg", f"{number:064}") for number in reversed(range(COUNT))],
    )
    connection.commit()
    yield connection
    connection.close()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["vision", "import-embeddings", *map(str, arguments)])


def stored(connection: sqlite3.Connection, table: str = "photos") -> list[tuple[Any, ...]]:
    return connection.execute(
        f"select id, source_column, model, content_hash, embedding, error from _vision_{table} order by id"
    ).fetchall()


def expected(column: str = "path") -> list[tuple[Any, ...]]:
    rows = [(number, image(number)) for number in range(COUNT)]
    return [
        (100 + n, column, "fake", r.digest, None if r.embedding is None else vectors.to_blob(r.embedding), r.error)
        for n, r in rows
    ]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("key", ["path", "digest"])
def test_rows_find_their_rows(
    connection: sqlite3.Connection, database: Path, shards: Path, key: str, index: bool
) -> None:
    """By path or by digest, with an index on the column or without; the embeddings bit for bit."""
    if index:
        connection.execute(f"create index by_key on photos ({key})")
        connection.commit()
    result = run(database, "photos", shards, "--key", key)
    assert result.exit_code == 0, result.output
    assert "45 imported, 0 unchanged, 5 with an error, 0 not in photos" in result.output
    assert stored(connection) == expected(key)


def test_they_can_be_searched(connection: sqlite3.Connection, database: Path, shards: Path) -> None:
    """The index is prepared, unless it is not wanted."""
    result = run(database, "photos", shards, "--no-index")
    assert "45 embeddings" not in result.output
    assert not list(database.parent.glob("photos.db-vision/*"))
    result = run(database, "photos", shards)
    assert "photos (path, fake): 45 embeddings" in result.output
    assert list(database.parent.glob("photos.db-vision/*"))
    searcher = Searcher(Vision(), improve=False)
    hits = searcher.search(connection, "photos", vectors.to_blob(embedding(12)), 1, "fake", "path")
    assert [hit.key for hit in hits] == [{"id": 112}]


def test_a_second_time_nothing_is_written(connection: sqlite3.Connection, database: Path, shards: Path) -> None:
    run(database, "photos", shards)
    connection.execute("update _vision_photos set embedded_at = 'then'")
    connection.commit()
    result = run(database, "photos", shards)
    assert "0 imported, 50 unchanged, 0 with an error, 0 not in photos" in result.output
    assert connection.execute("select distinct embedded_at from _vision_photos").fetchall() == [("then",)]


def test_stopped_half_way(
    connection: sqlite3.Connection, database: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written stays, and the next import goes on from there."""
    whole = import_embeddings.Importer._write
    batches = iter(range(2))  # one of each shard

    def stopped(self: import_embeddings.Importer, *arguments: Any) -> import_embeddings.ImportSummary:
        if next(batches, None) is None:
            whole(self, *arguments)
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(import_embeddings.Importer, "_write", stopped)
    result = run(database, "photos", shards)
    assert result.exit_code == 130
    assert "Stopped: results that were written stay. To continue: datasette" in result.output
    there = len(stored(connection))
    assert 0 < there < len(expected())
    monkeypatch.setattr(import_embeddings.Importer, "_write", whole)
    result = run(database, "photos", shards)
    assert f"{there} unchanged" in result.output
    assert stored(connection) == expected()


@pytest.mark.parametrize("new", [True, False])
def test_a_table_is_made(database: Path, shards: Path, new: bool) -> None:
    """In a database that is made for it too: with pages that hold several embeddings."""
    assert "there is no such file; use --create to make it" in run(database, "photos", shards).output
    assert not database.exists()
    if not new:
        connection = sqlite3.connect(database)
        connection.execute("create table other (x)")
        connection.close()
        assert run(database, "photos", shards).exit_code == 2
    result = run(database, "photos", shards, "--create", "--base", "/photos/")
    assert result.exit_code == 0, result.output
    connection = sqlite3.connect(database)
    rows = connection.execute("select path, digest, width, height from photos order by path").fetchall()
    assert rows[0] == ("000.jpg", f"{0:064}", 640, 480)
    assert rows[9] == ("009.jpg", f"{9:064}", None, None)
    assert len(rows) == COUNT
    assert len(stored(connection)) == COUNT
    assert connection.execute("pragma page_size").fetchone()[0] == (16_384 if new else 4096)
    assert connection.execute(
        "select count(*) from photos join _vision_photos using (id)"
        " where content_hash = digest and source_column = 'path'"
    ).fetchone() == (COUNT,)
    again = run(database, "photos", shards, "--create", "--base", "/photos")
    assert "50 unchanged" in again.output
    assert connection.execute("select count(*) from photos").fetchone() == (COUNT,)
    connection.close()


def test_rows_are_added_to_a_table_with_an_index_only(
    connection: sqlite3.Connection, database: Path, shards: Path
) -> None:
    connection.execute("delete from photos where id >= 110")
    connection.commit()
    result = run(database, "photos", shards, "--create")
    assert result.exit_code == 2
    assert 'create unique index … on "photos" ("path")' in result.output
    connection.execute("create unique index by_path on photos (path)")
    connection.commit()
    assert run(database, "photos", shards, "--create").exit_code == 0
    assert connection.execute("select count(*) from photos").fetchone() == (COUNT,)


def test_what_is_not_in_the_table_is_named(connection: sqlite3.Connection, database: Path, shards: Path) -> None:
    connection.execute("delete from photos where id < 125")
    connection.commit()
    result = run(database, "photos", shards)
    assert result.exit_code == 3
    assert "25 not in photos" in result.output
    assert "  not in photos: /photos/000.jpg" in result.output
    assert "  … and 5 more" in result.output
    assert [row[0] for row in stored(connection)] == list(range(125, 150))


@pytest.mark.parametrize(
    ("schema", "key"),
    [
        ("create table t (path text)", ("rowid",)),
        ("create table t (path text primary key)", ("path",)),
        ("create table t (path text, a, b, primary key (b, a))", ("b", "a")),
        ('create table t (path text, "model" text primary key)', ("source_model",)),
        ("create table t (path text primary key) without rowid", ("path",)),
    ],
)
def test_keys_of_every_kind(database: Path, shards: Path, schema: str, key: tuple[str, ...]) -> None:
    connection = sqlite3.connect(database)
    connection.execute(schema)
    columns = [row[1] for row in connection.execute("pragma table_info(t)")]
    for number in range(COUNT):
        values = [f"/photos/{number:03}.jpg" if column == "path" else number for column in columns]
        connection.execute(f"insert into t values ({', '.join('?' * len(values))})", values)
    connection.commit()
    assert run(database, "t", shards).exit_code == 0
    names = ", ".join(key)
    originals = ", ".join(name.removeprefix("source_") for name in key)
    assert (
        connection.execute(f"select {names}, content_hash from _vision_t order by content_hash").fetchall()
        == connection.execute(
            f"select {originals}, printf('%064d', substr(path, 9, 3)) from t order by path"
        ).fetchall()
    )
    connection.close()


def test_a_view_that_has_been_embedded(connection: sqlite3.Connection, database: Path, shards: Path) -> None:
    """It has no key of its own; its side table says what it is known by."""
    connection.execute("create view seen as select * from photos where id >= 110")
    connection.commit()
    result = run(database, "seen", shards)
    assert result.exit_code == 2
    assert "seen has no key that identifies its rows" in result.output
    SideTable("seen", ("id",)).create(connection)
    connection.commit()
    assert run(database, "seen", shards).exit_code == 3
    assert stored(connection, "seen") == expected()[10:]


def test_several_rows_of_one_path(connection: sqlite3.Connection, database: Path, shards: Path) -> None:
    connection.execute("insert into photos values (999, '/photos/000.jpg', '')")
    connection.commit()
    assert "45 imported" in run(database, "photos", shards).output
    found = connection.execute("select count(*), count(distinct embedding) from _vision_photos where id in (100, 999)")
    assert found.fetchone() == (2, 1)


def test_an_error_does_not_take_the_place_of_an_embedding(
    connection: sqlite3.Connection, database: Path, shards: Path
) -> None:
    run(database, "photos", shards)
    blob = vectors.to_blob(embedding(1))
    connection.execute("update _vision_photos set embedding = ?, error = null where id = 109", [blob])
    connection.commit()
    assert "50 unchanged" in run(database, "photos", shards).output
    assert connection.execute("select embedding from _vision_photos where id = 109").fetchone() == (blob,)


def test_a_changed_image_is_written_anew(connection: sqlite3.Connection, database: Path, shards: Path) -> None:
    run(database, "photos", shards)
    connection.execute("update _vision_photos set content_hash = 'other' where id = 100")
    connection.commit()
    assert "1 imported, 49 unchanged" in run(database, "photos", shards).output
    assert stored(connection) == expected()


def test_embeddings_of_another_making(connection: sqlite3.Connection, database: Path, tmp_path: Path) -> None:
    """Lists of any floats, of any length, without a digest: what other tools write."""
    rows = {
        "url": [f"/photos/{number:03}.jpg" for number in range(5)],
        "embedding": [[3.0, 4.0], None, [0.0, 0.0], [float("nan"), 1.0], [1.0, 0.0]],
    }
    path = tmp_path / "others.parquet"
    pq.write_table(pa.table(rows), path)
    assert run(database, "photos", path).exit_code == 2  # no column path
    result = run(database, "photos", path, "--key", "url", "--on", "path")
    assert result.exit_code == 2
    assert "pass it with --model" in result.output
    arguments = (database, "photos", path, "--key", "url", "--on", "path", "--model", "other", "--column", "image")
    result = run(*arguments)
    assert "2 imported, 0 unchanged, 3 with an error" in result.output
    found = connection.execute(
        "select embedding, error, source_column, model from _vision_photos order by id"
    ).fetchall()
    assert [None if row[0] is None else vectors.from_blob(row[0]).tolist() for row in found] == [
        pytest.approx([0.6, 0.8], abs=1e-6), None, None, None, [1.0, 0.0],
    ]  # fmt: skip
    assert [row[1] for row in found] == [
        None,
        "there is no embedding",
        "expected an embedding with a direction, found one that is zero everywhere",
        "expected an embedding of finite floats, found a NaN or an infinity in it",
        None,
    ]
    assert {row[2:] for row in found} == {("image", "other")}
    assert "5 unchanged" in run(*arguments).output


def test_sizes_are_not_mixed(connection: sqlite3.Connection, database: Path, shards: Path, tmp_path: Path) -> None:
    run(database, "photos", shards)
    path = tmp_path / "others.parquet"
    pq.write_table(pa.table({"path": ["/photos/000.jpg"], "embedding": [[1.0, 0.0]]}), path)
    result = run(database, "photos", path, "--model", "fake")
    assert result.exit_code == 2
    assert "expected embeddings of 4 floats, as fake has them in _vision_photos, found 2" in result.output
    assert stored(connection) == expected()


def test_mistakes_are_named(connection: sqlite3.Connection, database: Path, shards: Path, tmp_path: Path) -> None:
    assert (
        "photos has no column 'file'; its columns are: id, path, digest"
        in run(database, "photos", shards, "--on", "file").output
    )
    assert "none: there is no Parquet file" in run(database, "photos", tmp_path / "none").output
    for columns, found in (
        ({"digest": [[1]]}, "expected text in the column digest, found list"),
        ({"width": ["640"]}, "expected whole numbers in the column width, found string"),
        ({"height": pa.array([2**63], pa.uint64())}, "expected whole numbers in the column height, found uint64"),
        ({"error": [b"no"]}, "expected text in the column error, found binary"),
    ):
        path = tmp_path / "others.parquet"
        pq.write_table(pa.table({"path": ["/photos/000.jpg"], "embedding": [[1.0, 0.0]], **columns}), path)
        result = run(database, "photos", path, "--model", "fake")
        assert result.exit_code == 2
        assert found in result.output
    result = run(database, "photos", database)
    assert result.exit_code == 12
    assert "not a Parquet file" in result.output


def test_what_is_too_large_for_float32_is_no_embedding(
    connection: sqlite3.Connection, database: Path, tmp_path: Path
) -> None:
    path = tmp_path / "others.parquet"
    table = pa.table({"path": ["/photos/000.jpg", "/photos/001.jpg"], "embedding": [[1e300, 0.0], [3.0, 4.0]]})
    pq.write_table(table.replace_schema_metadata({"datasette_vision.model": b"\xff"}), path)
    assert "1 imported" in run(database, "photos", path).output
    (first, second) = stored(connection)
    assert (first[2], first[4], first[5]) == (
        "\ufffd",
        None,
        "expected an embedding of finite floats, found a NaN or an infinity in it",
    )
    assert vectors.from_blob(second[4]).tolist() == pytest.approx([0.6, 0.8])


def test_another_may_write_meanwhile(connection: sqlite3.Connection, database: Path, shards: Path) -> None:
    """Between two transactions the database is free."""
    importer_connection = sqlite3.connect(database, isolation_level=None)
    plan = import_embeddings.Plan("photos", (str(shards),), batch_rows=7)
    importer = import_embeddings.Importer(importer_connection, plan)

    def on_progress(summary: import_embeddings.ImportSummary) -> None:
        other = sqlite3.connect(database, timeout=0)
        with other:
            other.execute("insert into photos (path) values ('new')")
        other.close()

    assert importer.run(on_progress).imported == 45
    importer_connection.close()


def test_pyarrow_is_asked_for(database: Path, connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.fs"):
        monkeypatch.setitem(sys.modules, name, None)
    from datasette_vision.files import storage

    storage._local.cache_clear()
    result = run(database, "photos", "x.parquet")
    assert result.exit_code == 11
    assert "pip install 'datasette-vision[parquet]'" in result.output
