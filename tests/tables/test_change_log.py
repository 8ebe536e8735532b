"""tables/change_log.py: every write to a side table is seen, whoever does it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasette_vision.tables import change_log
from datasette_vision.tables.change_log import State
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.util.sql_names import quote

SIDE = SideTable("photos", ("id",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "photos.db"


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    SIDE.create(connection)
    yield connection
    connection.close()


def row(key: object, model: str = "clip", embedding: bytes | None = b"1234", error: str | None = None) -> SideTableRow:
    return SideTableRow((key,), "image", model, "hash", embedding, error)


def state(connection: sqlite3.Connection, side: SideTable = SIDE) -> State:
    found = change_log.state(connection, "main", side.name)
    assert found is not None
    return found


def changed(connection: sqlite3.Connection, since: State, side: SideTable = SIDE, limit: int = 100) -> list[int] | None:
    found = change_log.changes(connection, "main", side.name, since, limit)
    return None if found is None else [row for _, row in found]


def test_a_new_side_table_has_a_state(connection: sqlite3.Connection) -> None:
    assert state(connection).generation == 1
    assert changed(connection, state(connection)) == []


def test_creating_again_changes_nothing(connection: sqlite3.Connection, path: Path) -> None:
    before = state(connection)
    version = connection.execute("pragma schema_version").fetchone()
    SIDE.create(connection)
    assert state(connection) == before
    assert connection.execute("pragma schema_version").fetchone() == version
    reader = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    SIDE.create(reader)  # nothing to do, so nothing to write
    reader.close()


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        ("insert into _vision_photos values (9, 'image', 'clip', 'hash', x'00', null, '')", [3]),
        ("insert or replace into _vision_photos values (1, 'image', 'clip', 'hash', x'00', null, '')", [1, 3]),
        (
            "insert into _vision_photos values (1, 'image', 'clip', 'hash', x'00', null, '')"
            " on conflict do update set embedding = excluded.embedding",
            [1, 1],
        ),
        ("update _vision_photos set embedding = x'00' where id = 2", [2]),
        ("update _vision_photos set rowid = 7 where id = 2", [2, 7]),
        ("delete from _vision_photos where id = 1", [1]),
        ("delete from _vision_photos", [1, 2]),
    ],
)
def test_each_write_is_noted(connection: sqlite3.Connection, statement: str, rows: list[int]) -> None:
    SIDE.write(connection, [row(1), row(2)])
    before = state(connection)
    connection.execute(statement)
    after = state(connection)
    assert after.generation == before.generation + len(rows)
    assert after.stamp != before.stamp
    assert changed(connection, before) == rows
    assert change_log.changes(connection, "main", SIDE.name, before, 100)[-1][0] == after  # type: ignore[index]


def test_another_process_is_noted(connection: sqlite3.Connection, path: Path) -> None:
    before = state(connection)
    statement = "insert into _vision_photos values (1, 'image', 'clip', 'hash', x'00', null, '')"
    code = f"import sqlite3; c = sqlite3.connect({str(path)!r}); c.execute({statement!r}); c.commit()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert changed(connection, before) == [1]


def test_what_is_rolled_back_has_not_been(connection: sqlite3.Connection) -> None:
    before = state(connection)
    connection.execute("begin")
    SIDE.write(connection, [row(1)])
    assert changed(connection, before) == [1]
    connection.execute("rollback")
    assert state(connection) == before


def test_two_histories_of_the_same_length_differ(connection: sqlite3.Connection, tmp_path: Path) -> None:
    """As when a file is put back from a backup and written to anew."""
    before = state(connection)
    copy = sqlite3.connect(tmp_path / "copy.db", isolation_level=None)
    connection.backup(copy)
    assert state(copy) == before
    SIDE.write(connection, [row(1)])
    SIDE.write(copy, [row(1)])
    assert state(copy).generation == state(connection).generation
    assert state(copy) != state(connection)
    assert changed(copy, state(connection)) is None
    SIDE.write(copy, [row(1)])
    assert changed(copy, state(connection)) is None
    copy.close()


def test_more_than_asked_for_cannot_be_told(connection: sqlite3.Connection) -> None:
    before = state(connection)
    SIDE.write(connection, [row(key) for key in range(5)])
    assert changed(connection, before, limit=5) == [1, 2, 3, 4, 5]
    assert changed(connection, before, limit=4) is None


def test_only_the_last_changes_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_log, "KEPT_CHANGES", 10)
    connection = sqlite3.connect(path, isolation_level=None)
    SIDE.create(connection)
    first = state(connection)
    SIDE.write(connection, [row(key) for key in range(9)])
    assert changed(connection, first) == list(range(1, 10))
    second = state(connection)
    SIDE.write(connection, [row(key) for key in range(9, 12)])
    assert changed(connection, first) is None
    assert changed(connection, second) == [10, 11, 12]
    assert connection.execute("select count(*) from _visionchanges").fetchone() == (10,)
    connection.close()


def test_a_side_table_from_before(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    SIDE.create(connection)
    for name in ("replace", "insert", "update", "delete"):
        connection.execute(f'drop trigger "_vision-{name}-_vision_photos"')
    connection.execute("drop table _visionchanges")
    SIDE.write(connection, [row(1)])
    assert change_log.state(connection, "main", SIDE.name) is None
    SIDE.create(connection)
    before = state(connection)
    SIDE.write(connection, [row(2)])
    assert changed(connection, before) == [2]
    connection.close()


def test_a_missing_trigger_means_that_nothing_is_known(connection: sqlite3.Connection) -> None:
    before = state(connection)
    connection.execute('drop trigger "_vision-delete-_vision_photos"')
    assert change_log.state(connection, "main", SIDE.name) is None
    SIDE.create(connection)
    assert state(connection) != before
    assert changed(connection, before) is None


def test_a_side_table_made_anew_is_another(connection: sqlite3.Connection) -> None:
    SIDE.write(connection, [row(1)])
    before = state(connection)
    connection.execute("drop table _vision_photos")
    assert change_log.state(connection, "main", SIDE.name) is None
    SIDE.create(connection)
    assert state(connection).generation > before.generation
    assert changed(connection, before) is None


def test_tables_do_not_mix(connection: sqlite3.Connection) -> None:
    other = SideTable("changes", ("a", "b"))
    other.create(connection)
    before = state(connection), state(connection, other)
    other.write(connection, [SideTableRow((1, 2), "image", "clip", "hash", b"1234")])
    assert state(connection) == before[0]
    assert changed(connection, before[1], other) == [1]


@pytest.mark.parametrize("name", ['a"b', "a'b", "é", "a b", "", "%s"])
@pytest.mark.parametrize("key", [("rowid",), ("rowid", "oid"), ('x"y',), ("model",)])
def test_names_of_any_kind(name: str, key: tuple[str, ...]) -> None:
    connection = sqlite3.connect(":memory:")
    side = SideTable(name, key)
    side.create(connection)
    before = state(connection, side)
    values = tuple(range(len(key)))
    side.write(connection, [SideTableRow(values, "image", "clip", "hash", b"1234")])
    side.write(connection, [SideTableRow(values, "image", "clip", "hash", None, "gone")])
    assert changed(connection, before, side) == [1, 1, 2]
    connection.close()


def test_a_key_that_takes_every_name_of_the_row_number() -> None:
    connection = sqlite3.connect(":memory:")
    side = SideTable("t", ("rowid", "oid", "_rowid_"))
    side.create(connection)
    before = state(connection, side)
    side.write(connection, [SideTableRow((1, 2, 3), "image", "clip", "hash", b"1234")])
    assert state(connection, side) != before
    assert changed(connection, before, side) is None
    connection.close()


def test_a_name_in_other_case_is_the_same_table(connection: sqlite3.Connection) -> None:
    SideTable("PHOTOS", ("id",)).create(connection)
    before = state(connection)
    SideTable("PHOTOS", ("id",)).write(connection, [row(1)])
    assert changed(connection, before) == [1]


def test_creating_leaves_no_transaction_open(path: Path) -> None:
    connection = sqlite3.connect(path)  # Python's own way: it begins transactions by itself
    SIDE.create(connection)
    assert not connection.in_transaction
    connection.execute("begin")
    SideTable("other", ("id",)).create(connection)
    assert connection.in_transaction
    connection.rollback()
    assert change_log.state(connection, "main", "_vision_other") is None
    connection.close()


def test_an_attached_database(connection: sqlite3.Connection, path: Path) -> None:
    outer = sqlite3.connect(":memory:")
    outer.execute(f"attach {quote(str(path))} as 'other one'")
    assert change_log.state(outer, "other one", SIDE.name) == state(connection)
    assert change_log.state(outer, "main", SIDE.name) is None
    outer.close()
