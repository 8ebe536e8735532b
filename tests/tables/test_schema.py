"""tables/schema.py: the side table, whatever the table and its key are called."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

import pytest

from datasette_vision.tables.schema import OWN_COLUMNS, SideTable, SideTableRow, content_hash, quote

HASH = content_hash(b"x")


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    yield connection
    connection.close()


def columns(connection: sqlite3.Connection, table: str) -> list[tuple[str, str, int, int]]:
    """(name, type, not null, place in the primary key) of each column."""
    return [
        (name, kind, not_null, place)
        for _, name, kind, not_null, _, place in connection.execute(f"pragma table_info({quote(table)})")
    ]


def test_the_table(connection: sqlite3.Connection) -> None:
    side = SideTable("photos", ("id",))
    assert side.name == "_vision_photos"
    side.create(connection)
    assert columns(connection, "_vision_photos") == [
        ("id", "", 1, 1),
        ("source_column", "TEXT", 1, 2),
        ("model", "TEXT", 1, 3),
        ("content_hash", "TEXT", 1, 0),
        ("embedding", "BLOB", 0, 0),
        ("error", "TEXT", 0, 0),
        ("embedded_at", "TEXT", 1, 0),
    ]


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ("integer", "INTEGER"),
        ("bigint", "INTEGER"),
        ("text", "TEXT"),
        ("varchar(20)", "TEXT"),
        ("double precision", "REAL"),
        ("decimal(9, 2)", "NUMERIC"),
        ("boolean", "NUMERIC"),
        ("blob", ""),
        ("", ""),
    ],
)
def test_keys_have_the_affinity_they_have_in_the_table(
    connection: sqlite3.Connection, declared: str, kind: str
) -> None:
    """Else SQLite uses no index for a join, and reads the whole side table for each row."""
    connection.execute(f"create table Photos (K {declared}, m text, primary key (k, m)) without rowid")
    side = SideTable("photos", ("k", "m"))
    values = ["007", "1.0", "x", 7, 2.0, 2.5, b"7", -(2**60), "1e3"]
    connection.executemany("insert or ignore into photos values (?, 'x')", ((value,) for value in values))
    side.create(connection)
    assert [column[1].upper() for column in columns(connection, "_vision_photos")][:2] == [kind, "TEXT"]
    keys = connection.execute("select k, m from photos").fetchall()
    side.write(connection, [SideTableRow(key, "image", "clip", HASH, b"1234") for key in keys])
    assert connection.execute("select k, typeof(k), m from _vision_photos order by k").fetchall() == (
        connection.execute("select k, typeof(k), m from photos order by k").fetchall()
    )
    join = "select embedding from photos left join _vision_photos using (k, m)"
    assert connection.execute(f"select count(*) from ({join} where embedding is not null)").fetchone() == (len(keys),)
    plan = [row[3] for row in connection.execute(f"explain query plan {join}")]
    assert "sqlite_autoindex__vision_photos_1 (k=? AND m=?)" in plan[-1], plan


def test_the_row_number_as_a_key(connection: sqlite3.Connection) -> None:
    connection.execute("create table photos (image blob)")
    connection.execute("create view v as select '007' as k")
    SideTable("photos", ("rowid",)).create(connection)
    SideTable("v", ("k",)).create(connection)
    assert columns(connection, "_vision_photos")[0] == ("rowid", "INTEGER", 1, 1)
    assert columns(connection, "_vision_v")[0] == ("k", "", 1, 1)


def test_creating_again_keeps_what_is_there(connection: sqlite3.Connection) -> None:
    side = SideTable("photos", ("id",))
    side.create(connection)
    side.write(connection, [SideTableRow((1,), "image", "clip", HASH, b"1234")])
    side.create(connection)
    assert connection.execute("select count(*) from _vision_photos").fetchone() == (1,)


def test_rows(connection: sqlite3.Connection) -> None:
    side = SideTable("photos", ("id",))
    side.create(connection)
    side.write(
        connection,
        iter(
            [
                SideTableRow((1,), "image", "clip", HASH, b"1234"),
                SideTableRow((2,), "image", "clip", HASH, None, "not an image"),
            ]
        ),
    )
    rows = connection.execute("select * from _vision_photos order by id").fetchall()
    assert [row[:-1] for row in rows] == [
        (1, "image", "clip", HASH, b"1234", None),
        (2, "image", "clip", HASH, None, "not an image"),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row[-1]) for row in rows)


def test_one_row_for_each_key_column_and_model(connection: sqlite3.Connection) -> None:
    side = SideTable("photos", ("id",))
    side.create(connection)
    side.write(
        connection,
        [SideTableRow((1,), "image", "clip", HASH, b"1234"), SideTableRow((1,), "image", "siglip", HASH, b"1234")],
    )
    side.write(
        connection,
        [SideTableRow((1,), "thumbnail", "clip", HASH, b"1234"), SideTableRow((2,), "image", "clip", HASH, b"1234")],
    )
    assert connection.execute("select count(*) from _vision_photos").fetchone() == (4,)
    side.write(connection, [SideTableRow((1,), "image", "clip", "new", None, "gone")])
    found = connection.execute(
        "select content_hash, embedding, error from _vision_photos where (id, source_column, model) = (1, ?, ?)",
        ("image", "clip"),
    ).fetchall()
    assert found == [("new", None, "gone")]
    assert connection.execute("select count(*) from _vision_photos").fetchone() == (4,)


@pytest.mark.parametrize("key", [(1, "a"), ("1", b"\x00"), (1.5, "é")])
def test_a_key_of_several_columns_keeps_its_types(connection: sqlite3.Connection, key: tuple[object, object]) -> None:
    side = SideTable("photos", ("album", "number"))
    side.create(connection)
    side.write(connection, [SideTableRow(key, "image", "clip", HASH, None)])
    found = connection.execute("select album, number, typeof(album), typeof(number) from _vision_photos").fetchone()
    kinds = {int: "integer", str: "text", float: "real", bytes: "blob"}
    assert found == (*key, *(kinds[type(part)] for part in key))
    assert [name for name, _, _, place in columns(connection, "_vision_photos") if place] == [
        "album", "number", "source_column", "model",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ['a"b', "a b", "select", "é", "a'b", "[x]", "x;drop table y", "%s", "", "a.b", "`"])
def test_names_of_any_kind(connection: sqlite3.Connection, name: str) -> None:
    connection.execute(f"create table {quote(name)} ({quote(name)} primary key)")
    side = SideTable(name, (name,))
    side.create(connection)
    side.write(connection, [SideTableRow((7,), name, "clip", HASH, None)])
    assert [row[1] for row in connection.execute(f"select * from {quote('_vision_' + name)}")] == [name]
    assert columns(connection, "_vision_" + name)[0][0] == name


@pytest.mark.parametrize("column", [*OWN_COLUMNS, "MODEL", "Error"])
def test_a_key_that_is_called_as_one_of_our_columns(connection: sqlite3.Connection, column: str) -> None:
    """A table of cars may well have the key "model"."""
    side = SideTable("cars", (column, "year"))
    assert side.key_columns == (f"source_{column}", "year")
    side.create(connection)
    side.write(connection, [SideTableRow(("T", 1908), "photo", "clip", HASH, b"1234", "no")])
    assert connection.execute(
        f"select source_{column}, year, source_column, model, content_hash, embedding, error from _vision_cars"
    ).fetchone() == ("T", 1908, "photo", "clip", HASH, b"1234", "no")


def test_such_a_key_beside_another(connection: sqlite3.Connection) -> None:
    side = SideTable("cars", ("source_model", "model", "SOURCE_SOURCE_MODEL"))
    assert side.key_columns == ("source_model", "source_source_source_model", "SOURCE_SOURCE_MODEL")
    side.create(connection)
    side.write(connection, [SideTableRow((1, 2, 3), "photo", "clip", HASH, None)])
    assert connection.execute("select * from _vision_cars").fetchone()[:5] == (1, 2, 3, "photo", "clip")


def test_a_key_of_another_name_is_kept_as_it_is() -> None:
    assert SideTable("emoji", ("hexcode",)).key_columns == ("hexcode",)


def test_content_hash_is_sha256() -> None:
    assert content_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_quote() -> None:
    assert quote("a") == '"a"'
    assert quote('a"b""') == '"a""b"""""'
