"""tables/keys.py: what the rows of tables of every kind are known by."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from datasette_vision.errors import InvalidArgument
from datasette_vision.tables import side_tables
from datasette_vision.tables.keys import describe, key_of
from datasette_vision.tables.rows import SourceTable
from datasette_vision.tables.schema import SideTable


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


@pytest.mark.parametrize(
    ("create", "key", "rowid"),
    [
        ("create table t (id integer primary key, a)", ("id",), "rowid"),
        ("create table t (a)", ("rowid",), "rowid"),
        ("create table t (rowid text, a)", ("oid",), "oid"),
        ("create table t (ROWID, oid, a)", ("_rowid_",), "_rowid_"),
        ("create table t (a, rowid as (a))", ("oid",), "oid"),  # a generated column takes the name too
        ("create table t (a, b, primary key (b, a))", ("b", "a"), "rowid"),
        ("create table t (a text primary key)", ("a",), "rowid"),
        ("create table t (a text primary key, b unique) without rowid", ("a",), None),
        ("create table t (a, b unique, primary key (b, a)) without rowid", ("b", "a"), None),
        ("create table t (a unique)", ("rowid",), "rowid"),
        ("create virtual table t using fts5(a)", ("rowid",), "rowid"),
        ("create view t as select 1 as a", (), None),
        ("create table t (rowid, oid, _rowid_)", (), None),
    ],
)
def test_tables_that_are_not_embedded(
    connection: sqlite3.Connection, create: str, key: tuple[str, ...], rowid: str | None
) -> None:
    connection.execute(create)
    known = describe(connection, "T")
    assert known is not None
    assert (known.name, known.key, known.own_key, known.rowid, known.side_table) == ("t", key, key, rowid, None)
    assert known.is_view is create.startswith("create view")
    if rowid:
        connection.execute(f"select {rowid} from t")
    if key:
        assert key_of(connection, "t") == SourceTable(connection, "t").key == key
    else:
        with pytest.raises(InvalidArgument, match="t has no key that identifies its rows"):
            key_of(connection, "t")
        with pytest.raises(InvalidArgument, match=r"t (is a view|has no key): name the column"):
            SourceTable(connection, "t")


@pytest.mark.parametrize(
    ("create", "key", "own"),
    [
        ("create table t (id integer primary key, code)", ("code",), ("id",)),
        ("create table t (id integer primary key, code)", ("id",), ("id",)),
        ("create table t (id integer primary key, code, model)", ("code", "model"), ("id",)),
        ("create table t (code, a)", ("rowid",), ("rowid",)),
        ("create table t (model text primary key) without rowid", ("model",), ("model",)),
        ("create view t as select 1 as id, 2 as code", ("code", "id"), ("code", "id")),  # a view has no other
    ],
)
def test_tables_that_are_embedded(
    connection: sqlite3.Connection, create: str, key: tuple[str, ...], own: tuple[str, ...]
) -> None:
    connection.execute(create)
    SideTable("t", key).create(connection)
    known = describe(connection, "t")
    assert known is not None
    assert (known.key, known.own_key, known.side_table) == (key, own, "_vision_t")
    found = side_tables.find_source(connection, "t")
    assert found is not None
    assert found.key == key_of(connection, "t") == SourceTable(connection, "t").key == key


def test_a_side_table_that_does_not_fit_says_nothing(connection: sqlite3.Connection) -> None:
    connection.execute("create table t (id integer primary key)")
    SideTable("t", ("gone",)).create(connection)
    connection.execute("create table u (id integer primary key)")
    connection.execute("create table _vision_u (id, note)")
    for table in ("t", "u"):
        known = describe(connection, table)
        assert known is not None
        assert (known.key, known.side_table) == (("id",), None)
        assert side_tables.find_source(connection, table) is None


def test_what_is_not_there(connection: sqlite3.Connection) -> None:
    assert describe(connection, "nothing") is None
    with pytest.raises(InvalidArgument):
        key_of(connection, "nothing")


def test_a_database_that_is_attached(connection: sqlite3.Connection) -> None:
    connection.execute("attach ':memory:' as other")
    connection.execute("create table main.t (a integer primary key)")
    connection.execute("create table other.t (b text primary key) without rowid")
    known = describe(connection, "t", "other")
    assert known is not None
    assert (known.columns, known.key, known.rowid) == (("b",), ("b",), None)
