"""The memory of queries: of SQLite, of one value, and of all rows of an answer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3

from datasette_vision.plugin.queries import sqlite_limits
from datasette_vision.plugin.queries.query_rules import rules_of
from datasette_vision.plugin.queries.row_memory import PAGE_COST, STEP_BYTES, WRITTEN_COST, Counted, RowMemory

MB = 1_000_000


@pytest.fixture
def connection() -> Any:
    connection = sqlite3.connect(":memory:")
    yield connection
    connection.close()


def rows_of(connection: Any, answers: RowMemory, sql: str, path: str = "/x", client: str = "a") -> int:
    held = answers.hold(client, path)
    return len(Counted(connection, held).cursor().execute(sql).fetchmany(1000))


def numbers(count: int) -> str:
    return f"with recursive n(i) as (select 1 union all select i + 1 from n where i < {count}) "


def test_an_answer_is_counted_by_what_its_values_cost(connection: Any) -> None:
    answers = RowMemory(100 * MB, 100 * MB)
    held = answers.hold("a", "/page")
    cursor = Counted(connection, held).cursor()
    assert len(cursor.execute(numbers(10) + "select zeroblob(1000000), 1, null, 'x' from n").fetchall()) == 10
    assert answers._clients["a"] == pytest.approx(PAGE_COST * 10 * MB, rel=0.1)
    held.release()
    assert answers._held == 0
    assert not answers._clients


def test_small_answers_cost_nothing(connection: Any) -> None:
    answers = RowMemory(0, 0)
    assert rows_of(connection, answers, f"select zeroblob({STEP_BYTES})") == 1


def test_an_answer_that_takes_too_much_fails_as_a_query_does(connection: Any) -> None:
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select zeroblob(1000000) from n"
    with pytest.raises(sqlite3.OperationalError, match="more memory than a client may use"):
        rows_of(connection, RowMemory(100 * MB, 40 * MB), endless)
    with pytest.raises(sqlite3.OperationalError, match="the server has no memory left"):
        rows_of(connection, RowMemory(40 * MB, 100 * MB), endless)


def test_what_is_written_out_costs_more_than_a_page(connection: Any) -> None:
    sql = numbers(10) + "select zeroblob(1000000) from n"
    limit = (PAGE_COST + WRITTEN_COST) // 2 * 10 * MB
    assert rows_of(connection, RowMemory(limit, limit), sql, "/gallery/photos") == 10
    with pytest.raises(sqlite3.OperationalError):
        rows_of(connection, RowMemory(limit, limit), sql, "/gallery/photos.json")


def test_one_client_leaves_memory_for_others(connection: Any) -> None:
    answers = RowMemory(50 * MB, 30 * MB)
    sql = numbers(10) + "select zeroblob(1000000) from n"
    assert rows_of(connection, answers, sql, client="a") == 10
    with pytest.raises(sqlite3.OperationalError, match="than a client may use"):
        rows_of(connection, answers, sql, client="a")
    assert rows_of(connection, answers, sql, client="b") == 10


def test_rows_stay_what_they_are(connection: Any) -> None:
    connection.row_factory = sqlite3.Row
    held = RowMemory(MB, MB).hold("a", "/")
    row = Counted(connection, held).cursor().execute("select 1 as a, 'x' as b").fetchone()
    assert isinstance(row, sqlite3.Row)
    assert dict(row) == {"a": 1, "b": "x"}
    assert connection.cursor().row_factory is sqlite3.Row


@pytest.mark.asyncio
async def test_a_request_holds_memory_until_it_is_answered() -> None:
    datasette = Datasette([], memory=True)
    answers = rules_of(datasette).row_memory
    taken: list[int] = []
    take = answers.take
    answers.take = lambda client, count: taken.append(count) or take(client, count)  # type: ignore[method-assign]
    sql = numbers(5) + "select zeroblob(1000000) as x from n"
    response = await datasette.client.get("/_memory.json", params={"sql": sql}, follow_redirects=True)
    assert response.status_code == 200
    assert sum(taken) == pytest.approx(WRITTEN_COST * 5 * MB, rel=0.1)
    assert answers._held == 0


@pytest.mark.asyncio
async def test_an_answer_beyond_all_memory_is_an_error_and_not_the_end() -> None:
    datasette = Datasette([], memory=True)
    rules = rules_of(datasette)
    object.__setattr__(rules, "row_memory", RowMemory(20 * MB, 20 * MB))
    sql = numbers(500) + "select zeroblob(1000000) as x from n"
    response = await datasette.client.get("/_memory.json", params={"sql": sql}, follow_redirects=True)
    assert response.status_code == 400
    assert "more memory than a client may use" in response.json()["error"]
    assert (await datasette.client.get("/_memory.json", params={"sql": "select 1"}, follow_redirects=True)).is_success


# SQLite's own limits: the whole process has them, so each test has a process of its own

SCRIPT = """
from datasette.utils.sqlite import sqlite3
from datasette_vision.plugin.queries import sql_errors, sqlite_limits
connection = sqlite3.connect(":memory:")
sqlite_limits.limit(connection, 512 << 20)
assert connection.execute("pragma hard_heap_limit").fetchone() == (128 << 20,)
assert connection.execute("pragma soft_heap_limit").fetchone() == (96 << 20,)
connection.execute("pragma soft_heap_limit = 50000000").fetchall()
sqlite_limits.limit(connection, 512 << 20)
assert connection.execute("pragma soft_heap_limit").fetchone() == (50000000,)
for sql in ("select length(hex(zeroblob(300000000)))", "select zeroblob(900000000)", "select count(*) from (select "
    "zeroblob(9000000) as x from (select 1 union all select 2) a, (select 1 union all select 2) b group by x || 'y')"):
    for _ in range(2):
        try:
            print(len(sql_errors.explained(lambda c: c.execute(sql).fetchall())(connection)))
        except sqlite3.Error as error:
            print(type(error).__name__, error)
print(connection.execute("select length(zeroblob(10000000))").fetchone()[0])
"""


def test_sqlite_takes_no_more_than_its_part() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert all("memory" in line or "too big" in line for line in lines[:4]), lines
    assert lines[4:7] == ["1", "1", "10000000"]


def test_limits_follow_the_memory_that_there_is() -> None:
    assert sqlite_limits.heap_bytes(512 << 20) == 128 << 20
    assert sqlite_limits.value_bytes(512 << 20) == 32 << 20
    assert sqlite_limits.heap_bytes(1 << 20) == sqlite_limits.LEAST_HEAP_BYTES
    assert sqlite_limits.value_bytes(1 << 20) == sqlite_limits.LEAST_VALUE_BYTES
    assert sqlite_limits.value_bytes(1 << 40) == sqlite_limits.VALUE_BYTES
