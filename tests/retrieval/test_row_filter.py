"""row_filter.py: a search among some rows finds what a comparison with those finds, whatever they are known by."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from datasette_vision.engine.vision import Vision
from datasette_vision.errors import InvalidArgument
from datasette_vision.retrieval import hits, row_filter
from datasette_vision.retrieval.search import Searcher
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.vectors import codes
from datasette_vision.vectors import embedding as vectors
from tests.vectors.test_index import clustered

SIZE, DIMENSIONS = 400, 8
MATRIX = clustered(SIZE, DIMENSIONS)

# How a table is declared, its key, and the SQL for what `rows` holds of it.
TABLES = {
    "integer primary key": ("create table photos (id integer primary key, n)", ("id",), "rowid"),
    "row numbers": ("create table photos (n)", ("rowid",), "rowid"),
    "text key": ("create table photos (id text primary key, n)", ("id",), "rowid"),
    "int key": ("create table photos (id int primary key, n)", ("id",), "rowid"),
    "descending": ("create table photos (id integer primary key desc, n)", ("id",), "rowid"),
    "two columns": ("create table photos (a text, b int, n, primary key (a, b))", ("a", "b"), "rowid"),
    "without rowid": ("create table photos (id text primary key, n) without rowid", ("id",), "id"),
    "two without": (
        "create table photos (a text, b int, n, primary key (a, b)) without rowid",
        ("a", "b"),
        "json_array(a, b)",
    ),
    "view": ("create table t (id integer primary key, n); create view photos as select * from t", ("id",), "id"),
}


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[sqlite3.Connection, str]:
    create, key, rows = TABLES[request.param]
    connection = sqlite3.connect(tmp_path / "photos.db", isolation_level=None)
    connection.executescript(create)
    SideTable("photos", key).create(connection)
    write(connection, key, range(SIZE), MATRIX)
    return connection, rows


def write(connection: sqlite3.Connection, key: tuple[str, ...], numbers: range, matrix: np.ndarray) -> None:
    place = "t" if connection.execute("select 1 from sqlite_master where name = 't'").fetchone() else "photos"
    side = []
    connection.execute("begin")
    for number, vector in zip(numbers, matrix, strict=True):
        known = (number * 7 + 3,) if len(key) == 1 else (f"a{number % 5}", number)
        columns = ", ".join((*key, "n"))
        marks = ", ".join("?" * (len(key) + 1))
        connection.execute(f"insert or replace into {place} ({columns}) values ({marks})", (*known, number))
        if (
            key == ("id",)
            and "id text" in connection.execute("select group_concat(sql) from sqlite_master").fetchone()[0]
        ):
            known = (str(known[0]),)
        side.append(SideTableRow(known, "image", "fake", "h", vectors.to_blob(vector)))
    SideTable("photos", key).write(connection, side)
    connection.execute("commit")


def found(searcher: Searcher, connection: sqlite3.Connection, query: np.ndarray, rows: str, k: int = 10) -> list[int]:
    best = searcher.search(connection, "photos", vectors.to_blob(query), k, rows=rows)
    return [
        connection.execute(
            f"select n from photos where {' and '.join(f'{name} = ?' for name in hit.key)}", [*hit.key.values()]
        ).fetchone()[0]
        for hit in best
    ]


@pytest.mark.parametrize("where", ["n = 7", "n < 40", "n % 2", "n % 10 < 9", "1", "n > 1000"])
def test_what_passes_is_searched_exactly(
    fake_vision: Vision, table: tuple[sqlite3.Connection, str], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "CANDIDATES", 300)
    connection, key = table
    searcher = Searcher(fake_vision)
    passing = [row[0] for row in connection.execute(f"select n from photos where {where}")]
    (rows,) = connection.execute(f"select json_group_array({key}) from photos where {where}").fetchone()
    if key.startswith("json_array"):
        rows = json.dumps([json.loads(row) if isinstance(row, str) else row for row in json.loads(rows)])
    for query in (MATRIX[0], -MATRIX[0]):
        expected = sorted(passing, key=lambda n: -float(MATRIX[n] @ query))[:10]
        assert found(searcher, connection, query, rows) == expected
    connection.close()


def test_the_rows_of_a_filter_may_all_be_far_from_the_query(
    fake_vision: Vision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest of those that pass are then hardly nearer than thousands of others: rounding would hide which."""
    monkeypatch.setattr(codes, "CANDIDATES", 100)
    monkeypatch.setattr(hits, "FILTERED_SPARE", 5)
    matrix = clustered(5000, DIMENSIONS)
    connection = sqlite3.connect(tmp_path / "photos.db", isolation_level=None)
    connection.execute(TABLES["integer primary key"][0])
    SideTable("photos", ("id",)).create(connection)
    write(connection, ("id",), range(len(matrix)), matrix)
    searcher = Searcher(fake_vision)
    for query in (matrix[0], -matrix[7]):
        order = np.argsort(matrix @ query, kind="stable")
        for part in (0.5, 0.8, 0.95):
            far = order[: round(part * len(order))]
            rows = json.dumps([number * 7 + 3 for number in far.tolist()])
            assert found(searcher, connection, query, rows) == far[::-1][:10].tolist()
    connection.close()


def test_what_changes_counts_at_once(fake_vision: Vision, table: tuple[sqlite3.Connection, str]) -> None:
    connection, key = table
    searcher = Searcher(fake_vision)
    names = TABLES["two columns"][1] if "json_array" in key or connection.execute(
        "select count(*) from pragma_table_info('photos') where name = 'a'").fetchone()[0] else ("id",)  # fmt: skip
    if (
        "id" in names
        and not connection.execute("select 1 from pragma_table_info('photos') where name = 'id'").fetchone()
    ):
        names = ("rowid",)
    everything = f"select json_group_array({key}) from photos where n >= 390"
    (rows,) = connection.execute(everything).fetchone()
    assert len(found(searcher, connection, MATRIX[0], rows, 50)) == 10
    write(connection, names, range(SIZE, SIZE + 5), MATRIX[:5])
    assert len(found(searcher, connection, MATRIX[0], rows, 50)) == 10
    (rows,) = connection.execute(everything).fetchone()
    nearest = found(searcher, connection, MATRIX[0], rows, 50)
    assert len(nearest) == 15
    assert nearest[0] == SIZE
    connection.execute("delete from _vision_photos where rowid % 2")
    assert len(found(searcher, connection, MATRIX[0], rows, 50)) < 15
    connection.close()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "a JSON array, found "),
        ("7", "a JSON array, found 7"),
        ('{"a": 1}', 'a JSON array, found {"a": 1}'),
        ("[1, 2", r"a JSON array, found \[1, 2"),
        ("[" * 100_000, r"a JSON array, found \[\[\["),
        ("[1, true]", "row numbers, found true in it"),
        ("[1, null]", "row numbers, found null in it"),
        ("[1, 2.0]", "row numbers, found 2.0 in it"),
        ('[1, "2"]', "row numbers, found 2 in it"),
        ("[[1], 2]", r"row numbers, found \[1\] in it"),
        ("[9223372036854775808]", "row numbers, found 9223372036854775808 in it"),
    ],
)
def test_anything_else_is_a_mistake(fake_vision: Vision, tmp_path: Path, rows: str, message: str) -> None:
    connection = sqlite3.connect(tmp_path / "photos.db", isolation_level=None)
    connection.execute("create table photos (id integer primary key, n)")
    SideTable("photos", ("id",)).create(connection)
    write(connection, ("id",), range(5), MATRIX[:5])
    with pytest.raises(
        InvalidArgument, match=f"expected rows to be a JSON array.*{message}|expected rows to be {message}"
    ):
        found(Searcher(fake_vision), connection, MATRIX[0], rows)
    assert found(Searcher(fake_vision), connection, MATRIX[0], "[]") == []
    assert found(Searcher(fake_vision), connection, MATRIX[0], " [ 10 , -3, 9223372036854775807 ] ") == [1]
    connection.close()


def test_a_long_array_is_parsed_as_a_short_one_is() -> None:
    """In pieces: 32 MB of numbers as Python objects would take more memory than a small server has."""
    numbers = list(range(-40_000, 40_000))
    for text in (json.dumps(numbers), json.dumps(numbers, indent=1), f" {json.dumps(numbers)}\n"):
        assert row_filter._whole_numbers(text).tolist() == numbers
    whole = json.dumps(numbers)
    middle = whole.index(",", row_filter.PIECE_CHARS + 1)
    for mistake in (",,", ", ,", ",],[", ',"1",', ",1.5,", ",null,", f",{2**63},"):
        for place in (middle, len(whole) // 2):
            cut = whole.index(",", place)
            with pytest.raises(InvalidArgument, match="expected rows to be a JSON array"):
                row_filter._whole_numbers(whole[:cut] + mistake + whole[cut + 1 :])
    for text in (whole[:-1], whole[1:], whole[:-1] + ",]", "[," + whole[1:]):
        with pytest.raises(InvalidArgument, match="expected rows to be a JSON array"):
            row_filter._whole_numbers(text)
