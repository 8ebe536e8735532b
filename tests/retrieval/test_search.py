"""vision_search(): what it finds, in tables of every kind, and what it says when it cannot."""

from __future__ import annotations

import gc
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasette_vision.engine.vision import Vision
from datasette_vision.retrieval.hits import from_table
from datasette_vision.retrieval.search import Searcher
from datasette_vision.sql import registration as sql
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.util.sql_names import quote
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.embedding import Vector
from tests import pictures
from tests.conftest import Connection

Found = list[dict[str, Any]]


def directions(count: int, dimensions: int = 8, seed: int = 0) -> np.ndarray:
    return vectors.normalise(np.random.default_rng(seed).standard_normal((count, dimensions)))


def embed(
    connection: sqlite3.Connection,
    side: SideTable,
    keys: list[tuple[object, ...]],
    matrix: np.ndarray,
    model: str = "fake",
    column: str = "image",
) -> None:
    side.create(connection)
    rows = (
        SideTableRow(key, column, model, "hash", vectors.to_blob(vector))
        for key, vector in zip(keys, matrix, strict=True)
    )
    side.write(connection, rows)
    connection.commit()


def search(db: Connection, query: object, *more: object, table: str = "photos") -> Found:
    marks = ", ".join("?" * (2 + len(more)))
    answer = db.one(f"vision_search({marks})", table, query, *more)
    assert isinstance(answer, str)
    found: Found = json.loads(answer)
    return found


def rowids(found: Found) -> list[int]:
    return [hit["rowid"] for hit in found]


PHOTOS = SideTable("photos", ("id",))
MATRIX = directions(100)


@pytest.fixture(params=["file", "memory"])
def photos(request: pytest.FixtureRequest, fake_vision: Vision, tmp_path: Path) -> Iterator[Connection]:
    """100 photos, embedded, with the numbers 1 to 100."""
    db = Connection(fake_vision, tmp_path / "photos.db" if request.param == "file" else ":memory:")
    db.connection.execute("create table photos (id integer primary key, name text, image blob)")
    db.connection.executemany("insert into photos (id, name) values (?, ?)", ((n, f"p{n}") for n in range(1, 101)))
    embed(db.connection, PHOTOS, [(n,) for n in range(1, 101)], MATRIX)
    yield db
    db.connection.close()


def best(query: Vector, k: int = 10, without: tuple[int, ...] = ()) -> list[int]:
    order = np.argsort(-(MATRIX @ query), kind="stable") + 1
    return [int(n) for n in order if n not in without][:k]


# What is found


def test_by_embedding(photos: Connection) -> None:
    found = search(photos, vectors.to_blob(MATRIX[41]))
    assert rowids(found) == best(MATRIX[41])
    assert found[0] == {"rowid": 42, "similarity": pytest.approx(1, abs=1e-6)}
    for hit in found:
        assert hit["similarity"] == pytest.approx(float(MATRIX[hit["rowid"] - 1] @ MATRIX[41]), abs=1e-6)


def test_by_text_and_by_image(photos: Connection, fake_vision: Vision) -> None:
    assert rowids(search(photos, "a cat")) == best(fake_vision.embed_text("a cat"))
    assert rowids(search(photos, pictures.png())) == best(fake_vision.embed_image(pictures.png()))


def test_an_embedding_of_any_length(photos: Connection) -> None:
    assert rowids(search(photos, vectors.to_blob(MATRIX[6] * 3))) == best(MATRIX[6])


def test_similarities_are_those_of_vision_similarity(photos: Connection) -> None:
    found = photos.connection.execute(
        "select json_extract(value, '$.similarity'), vision_similarity(embedding, vision_embed('x'))"
        " from json_each(vision_search('photos', 'x', 100))"
        " join _vision_photos side on side.id = json_extract(value, '$.rowid')"
    ).fetchall()
    assert len(found) == 100
    assert all(one == pytest.approx(other, abs=1e-6) for one, other in found)


@pytest.mark.parametrize("k", [1, 7, 99, 100, 5000])
def test_k(photos: Connection, k: int) -> None:
    assert rowids(search(photos, "x", k)) == rowids(search(photos, "x", 100))[:k]


def test_the_same_as_without_an_index(photos: Connection, fake_vision: Vision) -> None:
    """A side table whose triggers are gone is read anew for each query."""
    expected = search(photos, "x", 20)
    photos.connection.execute('drop trigger "_vision-update-_vision_photos"')
    assert search(photos, "x", 20) == expected
    photos.connection.execute(
        "update _vision_photos set embedding = ? where id = 7", [fake_vision.embed_text("x").tobytes()]
    )
    assert rowids(search(photos, "x", 20))[0] == 7
    PHOTOS.create(photos.connection)
    assert rowids(search(photos, "x", 20))[0] == 7


def test_once_for_a_query(photos: Connection, fake_vision: Vision, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(Searcher, "search", lambda *arguments: calls.append(arguments) or [])
    photos.connection.execute("select vision_search('photos', 'x') from photos").fetchall()
    assert len(calls) == 1


# Rows that are not there


def test_deleted_rows_do_not_appear(photos: Connection) -> None:
    query = vectors.to_blob(MATRIX[0])
    gone = best(MATRIX[0], 80)
    photos.connection.execute(f"delete from photos where id in ({', '.join(map(str, gone))})")
    assert rowids(search(photos, query)) == best(MATRIX[0], 10, tuple(gone))
    photos.connection.execute("delete from photos")
    assert search(photos, query) == []


def test_rows_with_errors_and_broken_embeddings(photos: Connection, fake_vision: Vision) -> None:
    search(photos, "x")
    broken: list[object] = [
        None,
        b"",
        b"123",
        b"1234" * 9,
        np.full(8, np.nan, np.float32).tobytes(),
        bytes(32),
        "text",
        5,
    ]
    for key, value in enumerate(broken, start=1):
        photos.connection.execute("update _vision_photos set embedding = ?, error = 'no' where id = ?", [value, key])
    everything = sorted(rowids(search(photos, "x", 100)))
    assert everything == list(range(len(broken) + 1, 101))
    fresh = Connection(fake_vision)
    photos.connection.commit()
    photos.connection.backup(fresh.connection)
    assert sorted(rowids(search(fresh, "x", 100))) == everything
    fresh.connection.close()


# Keys


@pytest.mark.parametrize(
    ("create", "key", "keys", "rowid"),
    [
        ("(id integer primary key)", ("id",), [(5,), (9,), (-3,)], True),
        ("(x)", ("rowid",), [(1,), (2,), (3,)], True),
        ("(name text primary key)", ("name",), [("a",), ("é",), ("",)], True),
        ("(name text primary key) without rowid", ("name",), [("a",), ("b",), ("c",)], False),
        ("(a, b, primary key (b, a))", ("b", "a"), [(1, "x"), (1, "y"), (2, "x")], True),
        ("(a, b, primary key (b, a)) without rowid", ("b", "a"), [(1, "x"), (1, "y"), (2, "x")], False),
        ("(digest blob primary key)", ("digest",), [(b"\x00\xff",), (b"a",), (b"b",)], True),
        ("(model text primary key, source_model)", ("model",), [("T",), ("A",), ("B",)], True),
        ("(rowid text, image)", ("oid",), [(1,), (2,), (3,)], True),
        ("(rowid text primary key, image)", ("rowid",), [("a",), ("b",), ("c",)], True),
        ("(id integer primary key, oid, rowid)", ("id",), [(1,), (2,), (3,)], True),
    ],
)
def test_keys_of_every_kind(
    fake_db: Connection, create: str, key: tuple[str, ...], keys: list[tuple[object, ...]], rowid: bool
) -> None:
    connection = fake_db.connection
    connection.execute(f"create table photos {create}")
    columns = ", ".join(map(quote, key))
    for values in keys:
        connection.execute(f"insert into photos ({columns}) values ({', '.join('?' * len(key))})", values)
    embed(connection, SideTable("photos", key), keys, MATRIX[:3])
    found = search(fake_db, vectors.to_blob(MATRIX[1]))
    shown = [tuple(value.hex().upper() if isinstance(value, bytes) else value for value in values) for values in keys]
    assert len(found) == 3
    for hit in found:
        if rowid:
            name = "_rowid_" if "oid, rowid" in create else "oid" if "rowid text" in create else "rowid"
            row = connection.execute(f"select {columns} from photos where {name} = ?", [hit["rowid"]]).fetchone()
            assert row in keys
        if isinstance(keys[0][0], int) and len(key) == 1:
            assert set(hit) == {"rowid", "similarity"}
        else:
            assert set(hit) == ({"rowid", "key", "similarity"} if rowid else {"key", "similarity"})
            assert tuple(hit["key"]) == key
            assert tuple(hit["key"].values()) in shown
    top = found[0]
    expected = dict(zip(key, shown[1], strict=True))
    assert top.get("key", {key[0]: top.get("rowid")}) == expected


@pytest.mark.parametrize(
    "view",
    [
        "select id, name from photos where id % 2 = 0",
        "select id, name from photos where id % 2 = 0 union all select 1000, 'none'",
        "select max(id) as id, name from photos where id % 2 = 0 group by name",
        "select id, name from photos where id % 2 = 0 limit 1000",
    ],
)
def test_views(photos: Connection, view: str) -> None:
    photos.connection.execute(f"create view even as {view}")
    embed(photos.connection, SideTable("even", ("id",)), [(n,) for n in range(1, 101)], MATRIX)
    found = search(photos, vectors.to_blob(MATRIX[0]), table="even")
    assert [hit["key"] for hit in found] == [{"id": n} for n in best(MATRIX[0], 10, tuple(range(1, 101, 2)))]


@pytest.mark.parametrize("name", ['a"b', "a'b", "é", "select", "a.b", "main.photos", "_vision_x", "x y"])
def test_names_of_any_kind(photos: Connection, name: str) -> None:
    photos.connection.execute(f"create table {quote(name)} (id integer primary key)")
    photos.connection.execute(f"insert into {quote(name)} values (7)")
    embed(photos.connection, SideTable(name, ("id",)), [(7,)], MATRIX[:1])
    assert rowids(search(photos, "x", table=name)) == [7]
    assert rowids(search(photos, "x", table=f"main.{name}")) == [7]


def test_the_case_of_names_does_not_matter(photos: Connection) -> None:
    assert search(photos, "x", table="MAIN.Photos") == search(photos, "x")


def test_an_attached_database(photos: Connection, fake_vision: Vision, tmp_path: Path) -> None:
    other = Connection(fake_vision, tmp_path / "other.db")
    other.connection.execute("create table photos (id integer primary key)")
    other.connection.execute("create table only_here (id integer primary key)")
    for table in ("photos", "only_here"):
        other.connection.execute(f"insert into {table} values (7)")
        embed(other.connection, SideTable(table, ("id",)), [(7,)], MATRIX[:1])
    other.connection.close()
    photos.connection.execute("attach ? as 'the other'", [str(tmp_path / "other.db")])
    assert rowids(search(photos, "x", table="the other.photos")) == [7]
    assert rowids(search(photos, "x", table="only_here")) == [7]
    assert len(search(photos, "x", table="photos")) == 10


# Models and columns


def test_the_default_model_is_chosen(photos: Connection) -> None:
    embed(photos.connection, PHOTOS, [(1,), (2,)], directions(2, 12), "fake-wide")
    assert len(search(photos, "x")) == 10
    assert len(search(photos, "x", 10, "fake")) == 10
    assert len(search(photos, "x", 10, "")) == 10
    assert sorted(rowids(search(photos, "x", 10, "fake-wide"))) == [1, 2]


def test_the_only_model_is_chosen(photos: Connection) -> None:
    photos.connection.execute("delete from _vision_photos")
    embed(photos.connection, PHOTOS, [(1,), (2,)], directions(2, 12), "fake-wide")
    assert sorted(rowids(search(photos, "x"))) == [1, 2]


def test_one_of_several_models_has_to_be_chosen(photos: Connection) -> None:
    photos.connection.execute("delete from _vision_photos")
    for model in ("fake-wide", "elsewhere"):
        embed(photos.connection, PHOTOS, [(1,)], directions(1, 12), model)
    assert photos.error("vision_search('photos', 'x')") == (
        "vision_search(): photos has embeddings by more than one model or of more than one column,"
        " name which to search: elsewhere (image), fake-wide (image)"
    )


def test_embeddings_of_a_model_that_is_not_installed(photos: Connection) -> None:
    matrix = directions(3, 5)
    photos.connection.execute("delete from _vision_photos")
    embed(photos.connection, PHOTOS, [(1,), (2,), (3,)], matrix, "elsewhere")
    assert rowids(search(photos, vectors.to_blob(matrix[1])))[0] == 2
    assert "no model 'elsewhere' is installed" in photos.error("vision_search('photos', 'x')")


def test_columns(photos: Connection) -> None:
    embed(photos.connection, PHOTOS, [(7,)], MATRIX[:1], column="back")
    assert photos.error("vision_search('photos', 'x')") == (
        "vision_search(): photos has embeddings by more than one model or of more than one column,"
        " name which to search: fake (back, image)"
    )
    assert rowids(search(photos, "x", 10, "", "back")) == [7]
    assert rowids(search(photos, vectors.to_blob(MATRIX[41]), 10, "fake", "image")) == best(MATRIX[41])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'nothing', 'x'", "there is no table or view 'nothing'; embedded are: photos"),
        (f"'{'t' * 64}', 'x'", f"there is no table or view '{'t' * 64}'; embedded are: photos"),
        (f"'{'t' * 65}', 'x'", f"there is no table or view '{'t' * 64}…'; embedded are: photos"),
        ("'plain', 'x'", "plain has no embeddings yet: make them with `datasette vision embed {file} plain`"),
        ("'photos', 'x', 10, 'clip'", "photos has no embeddings by 'clip'; embedded by: fake (image)"),
        ("'photos', 'x', 10, '', 'y'", "photos has no embeddings of 'y'; embedded by: fake (image)"),
        ("'photos', 'x', 0", "expected k to be a whole number of at least 1, found 0"),
        ("'photos', 'x', 1.5", "expected k to be a whole number of at least 1, found 1.5"),
        ("'photos', 'x', 100001", "expected k to be a whole number from 1 to 100,000, found 100,001"),
        ("'photos', 5", "expected TEXT, an image BLOB or an embedding, found an INTEGER"),
        ("5, 'x'", "expected the name of a table as TEXT, found an INTEGER"),
        ("'photos', 'x', 1, 5", "expected the name of a model as TEXT, found an INTEGER"),
        ("'photos', 'x', 1, '', 5", "expected the name of a column as TEXT, found an INTEGER"),
        (
            "'photos', vision_from_json('[1, 0, 0]')",
            "expected an embedding of 8 floats, found one of 3",
        ),
    ],
)
def test_mistakes(photos: Connection, arguments: str, message: str) -> None:
    photos.connection.execute("create table plain (id integer primary key)")
    path = photos.connection.execute("pragma database_list").fetchone()[2]
    file = Path(path).name if path else "DATABASE"
    assert photos.error(f"vision_search({arguments})") == "vision_search(): " + message.format(file=file)


def test_what_is_no_query_finds_nothing(photos: Connection) -> None:
    for value in (b"", b"not an image", b"\x89PNG\r\n\x1a\n", bytes(32)):
        assert photos.one("vision_search('photos', ?)", value) is None
    assert photos.messages == []


def test_an_empty_side_table(photos: Connection) -> None:
    photos.connection.execute("delete from _vision_photos")
    assert photos.error("vision_search('photos', 'x')") == (
        "vision_search(): photos has no embeddings yet: its side table is empty"
    )


def test_a_model_that_has_changed_its_dimensions(photos: Connection) -> None:
    photos.connection.execute("delete from _vision_photos")
    embed(photos.connection, PHOTOS, [(1,)], directions(1, 5))
    assert photos.error("vision_search('photos', 'x')") == (
        "vision_search(): the embeddings of photos by 'fake' have 5 floats, and that model makes 8 now:"
        " embed the table again with --force"
    )


# Connections


def test_functions_do_not_keep_connections(fake_vision: Vision, tmp_path: Path) -> None:
    """A connection that nobody holds is closed, though functions that use it are registered on it."""
    registration = sql.Registration(lambda: fake_vision)
    seen = set()
    for _ in range(20):
        connection = sqlite3.connect(tmp_path / "photos.db")
        registration.register(connection)
        seen.add(id(connection))
        with pytest.raises(sqlite3.OperationalError):
            connection.execute("select vision_search('photos', 'x')")
        with pytest.warns(ResourceWarning) if hasattr(sqlite3.Connection, "getconfig") else _nothing():
            del connection
            gc.collect()
    assert len(registration._bound) == len(seen)


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_each_connection_searches_its_own_database(fake_vision: Vision, tmp_path: Path) -> None:
    registration = sql.Registration(lambda: fake_vision)
    connections = []
    for number in range(4):
        connection = sqlite3.connect(tmp_path / f"{number}.db" if number % 2 else ":memory:")
        registration.register(connection)
        connection.execute("create table photos (id integer primary key)")
        connection.execute("insert into photos values (?)", [number])
        embed(connection, PHOTOS, [(number,)], MATRIX[:1])
        connections.append(connection)
    for _ in range(2):
        for number, connection in enumerate(connections):
            (answer,) = connection.execute("select vision_search('photos', 'x')").fetchone()
            assert rowids(json.loads(answer)) == [number]
    for connection in connections:
        connection.close()


def test_reading_the_whole_table_finds_the_same(photos: Connection, fake_vision: Vision) -> None:
    searcher = Searcher(fake_vision)
    source = searcher.source(photos.connection, "photos")
    wanted = searcher.choose(photos.connection, source)
    for k in (1, 10, 100, 1000):
        expected = searcher.search(photos.connection, "photos", vectors.to_blob(MATRIX[3]), k)
        assert from_table(photos.connection, wanted, MATRIX[3], k) == expected


def test_similarities_are_from_minus_one_to_one(photos: Connection, fake_vision: Vision) -> None:
    """Of embeddings that are the same, float32 would say a little more than 1."""
    searcher = Searcher(fake_vision)
    wanted = searcher.choose(photos.connection, searcher.source(photos.connection, "photos"))
    for row in MATRIX[:20]:
        similarities = [hit.similarity for hit in from_table(photos.connection, wanted, row, 100)]
        assert similarities[0] == pytest.approx(1)
        assert -1 <= min(similarities) <= max(similarities) <= 1
