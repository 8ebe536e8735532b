"""tables/side_tables.py: what is embedded, found by what stands in the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from datasette_vision.tables import side_tables
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.util.sql_names import quote


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


def embed(connection: sqlite3.Connection, table: str, key: tuple[str, ...]) -> None:
    SideTable(table, key).create(connection)


@pytest.mark.parametrize(
    ("create", "key", "rowid"),
    [
        ("create table t (id integer primary key, image blob)", ("id",), "rowid"),
        ("create table t (image blob)", ("rowid",), "rowid"),
        ("create table t (name text primary key)", ("name",), "rowid"),
        ("create table t (name text primary key) without rowid", ("name",), None),
        ("create table t (b, a, primary key (a, b)) without rowid", ("a", "b"), None),
        ("create table t (rowid text, image blob)", ("oid",), "oid"),
        ("create table t (model text primary key, source_model text)", ("model",), "rowid"),
        ("create view t as select 1 as id, 2 as image", ("id",), None),
        ("create view t as select 1 as model, 2 as image", ("model",), None),
    ],
)
def test_the_key_of_the_source(
    connection: sqlite3.Connection, create: str, key: tuple[str, ...], rowid: str | None
) -> None:
    connection.execute(create)
    assert side_tables.find_source(connection, "t") is None
    embed(connection, "t", key)
    found = side_tables.find_source(connection, "T")
    assert found is not None
    assert (found.table, found.key, found.rowid, found.schema) == ("t", key, rowid, "main")
    assert found.is_view == create.startswith("create view")
    assert side_tables.sources(connection) == [found]


def test_what_is_no_side_table(connection: sqlite3.Connection) -> None:
    connection.execute("create table t (id integer primary key)")
    connection.execute("create table _vision_t (id, embedding)")
    connection.execute("create table u (id integer primary key)")
    embed(connection, "u", ("uuid",))  # of another table u, that was here before
    embed(connection, "gone", ("id",))
    assert side_tables.sources(connection) == []


def test_what_is_embedded(connection: sqlite3.Connection) -> None:
    side = SideTable("t", ("id",))
    connection.execute("create table t (id integer primary key)")
    connection.execute("create view v as select * from t")
    side.create(connection)
    side.write(connection, [SideTableRow((key,), "image", "clip", "hash", b"1234") for key in range(3)])
    side.write(connection, [SideTableRow((3,), "image", "clip", "hash", None, "broken")])
    side.write(connection, [SideTableRow((key,), "back", "clip", "hash", b"1234") for key in range(2)])
    side.write(connection, [SideTableRow((9,), "image", "siglip", "hash", None, "broken")])
    embed(connection, "v", ("id",))
    found = [
        (each.source.table, each.column, each.model, each.embeddings, each.errors)
        for each in side_tables.embedded(connection)
    ]
    assert found == [
        ("t", "back", "clip", 2, 0),
        ("t", "image", "clip", 3, 1),
        ("t", "image", "siglip", 0, 1),
    ]
    assert [source.table for source in side_tables.sources(connection)] == ["t", "v"]


def test_counting_leaves_the_embeddings_alone(connection: sqlite3.Connection) -> None:
    connection.execute("create table t (id integer primary key)")
    embed(connection, "t", ("id",))
    seen: list[str] = []
    connection.set_trace_callback(seen.append)
    source = side_tables.sources(connection)[0]
    side_tables.contents(connection, source)
    side_tables.pairs(connection, source)
    connection.set_trace_callback(None)
    statements = [statement for statement in seen if statement.startswith("select model")]
    assert len(statements) == 2
    for statement in statements:
        (plan,) = connection.execute(f"explain query plan {statement}").fetchall()
        assert "COVERING INDEX _vision-models-_vision_t" in plan[3]


def test_pairs(connection: sqlite3.Connection) -> None:
    """Also where a column of the key has the name of the row number."""
    connection.execute("create table t (image)")
    side = SideTable("t", ("rowid",))
    side.create(connection)
    source = side_tables.sources(connection)[0]
    assert side_tables.pairs(connection, source) == []
    expected = [("a", "x"), ("a", "y"), ("b", "w"), ("b", "x"), ("é", "z")]
    for model, column in reversed(expected):
        side.write(connection, [SideTableRow((key,), column, model, "hash", b"1234") for key in range(3)])
    assert side_tables.pairs(connection, source) == expected
    assert [(each.model, each.column) for each in side_tables.contents(connection, source)] == expected


@pytest.mark.parametrize("name", ['a"b', "a'b", "é", "a b", "", "a.b", "_vision_t"])
def test_names_of_any_kind(connection: sqlite3.Connection, name: str) -> None:
    connection.execute(f"create table {quote(name)} ({quote(name)} primary key)")
    embed(connection, name, (name,))
    assert [source.key for source in side_tables.sources(connection)] == [(name,)]


def test_an_attached_database(connection: sqlite3.Connection) -> None:
    connection.execute("create table t (id integer primary key)")
    embed(connection, "t", ("id",))
    connection.execute("attach ':memory:' as 'other one'")
    assert side_tables.sources(connection, "other one") == []
    assert side_tables.find_source(connection, "t", "other one") is None
