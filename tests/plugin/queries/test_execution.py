"""Queries of requests: who may compute, how many at a time, for how long, and what happens when they have to wait."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import pm

from datasette_vision.errors import Busy, DeadlineExceeded
from datasette_vision.plugin.queries import execution, sql_errors
from datasette_vision.plugin.queries.execution import QuerySlots
from datasette_vision.plugin.queries.query_rules import rules_of
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.util.caller import NOBODY, current


class Computing:
    """A plugin with SQL functions that compute as ours do, and what happened in them."""

    __name__ = "computing"

    def __init__(self) -> None:
        self.work: Callable[[], object] = lambda: None
        self.load: Callable[[], object] | None = None
        self.computed: list[object] = []
        self.callers: list[Any] = []

    @hookimpl
    def prepare_connection(self, conn: sqlite3.Connection) -> None:
        conn.create_function("compute", 1, self._compute, deterministic=True)
        conn.create_function("decode", 1, self._decode)
        conn.create_function("swallowed", 0, self._swallowed)

    def _compute(self, value: object) -> object:
        return self._guarded(value, texts=1, load=self.load)

    def _decode(self, value: object) -> object:
        return self._guarded(value)

    def _guarded(self, value: object, **inputs: Any) -> object:
        self.callers.append(current())
        try:
            current().admit(**inputs)
            current().seconds_left(1)
            self.work()
        except DeadlineExceeded as error:
            if execution.stop(error):
                return None
            raise
        except Exception as error:
            sql_errors.remember(str(error))
            raise
        self.computed.append(value)
        return value

    def _swallowed(self) -> str:
        execution.stop(DeadlineExceeded("time is up"))
        return "not noticed"


@pytest.fixture
def computing() -> Iterator[Computing]:
    plugin = Computing()
    pm.register(plugin, name="computing")
    yield plugin
    pm.unregister(name="computing")


def datasette(threads: int = 3, limit_ms: int = 20_000, **config: Any) -> Datasette:
    plugins = {"config" if IS_1_0 else "metadata": {"plugins": {"datasette-vision": config}}}
    settings = {"num_sql_threads": threads, "sql_time_limit_ms": limit_ms}
    return Datasette([], memory=True, settings=settings, **plugins)


async def ask(ds: Datasette, sql: str) -> tuple[int, Any]:
    response = await ds.client.get("/_memory.json", params={"sql": sql, "_shape": "array"}, follow_redirects=True)
    return response.status_code, response.json()


async def ask_from(address: str, ds: Datasette, sql: str) -> tuple[int, Any]:
    """Ask as ask() does, from another address."""
    transport = httpx.ASGITransport(app=ds.app(), client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", follow_redirects=True) as client:
        response = await client.get("/_memory.json", params={"sql": sql, "_shape": "array"})
    return response.status_code, response.json()


# Permission


@pytest.mark.asyncio
async def test_who_may_compute_gets_an_answer(computing: Computing) -> None:
    assert await ask(datasette(), "select compute('a') as value") == (200, [{"value": "a"}])
    assert computing.computed == ["a"]


@pytest.mark.asyncio
async def test_several_functions_of_one_query_may_each_need_something(computing: Computing) -> None:
    def load() -> None:
        computing.load = None

    computing.load = load
    sql = "select compute('a') as a, decode('b') as b, compute('c') as c"
    assert await ask(datasette(), sql) == (200, [{"a": "a", "b": "b", "c": "c"}])


@pytest.mark.asyncio
async def test_who_may_not_is_told_so(computing: Computing) -> None:
    status, answer = await ask(datasette(allow=False), "select compute('a') as value")
    assert status == 400
    assert "vision-infer" in answer["error"]
    assert computing.computed == []


@pytest.mark.asyncio
async def test_decoding_needs_no_permission(computing: Computing) -> None:
    assert await ask(datasette(allow=False), "select decode('a') as value") == (200, [{"value": "a"}])


@pytest.mark.asyncio
async def test_a_write_is_asked_for_before_it_runs(computing: Computing) -> None:
    """By a request: what the server itself writes asks nobody."""
    closed, open_ = datasette(allow=False), datasette()

    async def write(ds: Datasette) -> Any:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            execution.note_request(type("Request", (), {"actor": None, "scope": {"client": ("::1", 1)}})())
            scope["answer"] = await ds.get_database("_memory").execute_write_fn(
                lambda connection: connection.execute("select compute('a')").fetchone()[0]
            )

        scope = {"type": "http"}
        await execution.track_requests(application)(scope, None, None)
        return scope["answer"]

    await closed.invoke_startup()
    await open_.invoke_startup()
    assert await write(open_) == "a"
    with pytest.raises(Exception, match="vision-infer"):
        await write(closed)
    assert (
        await closed.get_database("_memory").execute_write_fn(
            lambda connection: connection.execute("select compute('b')").fetchone()[0]
        )
        == "b"
    )


# Callers


@pytest.mark.asyncio
async def test_a_query_of_a_request_has_a_caller_with_the_time_that_is_left(computing: Computing) -> None:
    await ask(datasette(limit_ms=7000), "select compute('a')")
    caller = computing.callers[-1]
    assert caller.client.startswith("address")
    assert caller.deadline is not None
    assert time.monotonic() < caller.deadline <= time.monotonic() + 7


@pytest.mark.asyncio
async def test_a_query_of_nobody_has_no_deadline(computing: Computing) -> None:
    ds = datasette()
    await ds.invoke_startup()
    rows = await ds.get_database("_memory").execute("select compute('a')")
    assert rows.rows[0][0] == "a"
    assert computing.callers == [NOBODY]


@pytest.mark.asyncio
async def test_a_query_that_is_out_of_time_ends_as_datasettes_own_limit_ends_it(computing: Computing) -> None:
    ds = datasette(limit_ms=200)
    computing.work = lambda: (time.sleep(0.3), current().seconds_left(1))
    status, answer = await ask(ds, "select compute('a')")
    assert status == 400
    assert "took too long" in str(answer) or "interrupted" in str(answer).lower()
    assert computing.computed == []
    computing.work = lambda: None
    assert (await ask(ds, "select compute('b') as value"))[1] == [{"value": "b"}]


@pytest.mark.asyncio
async def test_a_custom_limit_counts(computing: Computing) -> None:
    ds = datasette()
    await ds.invoke_startup()
    state = execution.RequestState(type("Request", (), {"actor": None, "scope": {}})(), may_infer=True)
    token = execution._request.set(state)
    try:
        await ds.get_database("_memory").execute("select compute('a')", custom_time_limit=500)
    finally:
        execution._request.reset(token)
    assert computing.callers[-1].deadline <= time.monotonic() + 0.5


@pytest.mark.asyncio
async def test_an_interruption_that_nobody_notices_still_ends_the_query(computing: Computing) -> None:
    ds = datasette()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        execution.note_request(type("Request", (), {"actor": None, "scope": {}})())

        def first_row_alone(connection: sqlite3.Connection) -> object:
            try:
                return connection.execute("select swallowed()").fetchone()
            except Exception:
                return "as if nothing had happened"

        await ds.get_database("_memory").execute_fn(first_row_alone)

    await ds.invoke_startup()
    with pytest.raises(Exception, match="interrupted"):
        await execution.track_requests(application)({"type": "http"}, None, None)


# Places


@pytest.mark.asyncio
async def test_queries_that_compute_never_take_all_threads(computing: Computing) -> None:
    ds = datasette(threads=3)
    begun, go_on = threading.Semaphore(0), threading.Event()

    def work() -> None:
        begun.release()
        assert go_on.wait(60)

    computing.work = work
    slow = [asyncio.ensure_future(ask(ds, f"select compute({number}) as value")) for number in range(6)]
    try:
        for _ in range(2):
            assert await asyncio.to_thread(begun.acquire, True, 60)
        # As many as there may be are at work, and another client's page is answered.
        assert await asyncio.wait_for(ask_from("127.0.0.2", ds, "select 1 as one"), 60) == (200, [{"one": 1}])
        assert not begun.acquire(blocking=False)
    finally:
        go_on.set()
    assert [answer for _, answer in await asyncio.gather(*slow)] == [[{"value": number}] for number in range(6)]


@pytest.mark.asyncio
async def test_a_place_goes_to_the_client_whose_turn_it_is() -> None:
    places = QuerySlots(1)
    order: list[str] = []

    async def hold(client: str) -> None:
        async with places.hold(client):
            order.append(client)
            await asyncio.sleep(0)

    async with places.hold("first"):
        waiting = [asyncio.ensure_future(hold(client)) for client in ("a", "a", "a", "b", "c")]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "c", "a", "a"]


@pytest.mark.asyncio
async def test_a_place_that_does_not_come_is_busy_and_not_lost() -> None:
    places = QuerySlots(1)
    async with places.hold("a"):
        with pytest.raises(Busy):
            async with places.hold("b", timeout_s=0.01):
                pass
    async with places.hold("c", timeout_s=0.01):
        pass


@pytest.mark.asyncio
async def test_too_many_may_not_wait() -> None:
    places = QuerySlots(1, max_waiting=1)
    async with places.hold("a"):
        waiting = asyncio.ensure_future(places.hold("b").__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            async with places.hold("c"):
                pass
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with places.hold("c", timeout_s=0.01):
        pass


@pytest.mark.asyncio
async def test_who_gives_up_as_a_place_comes_hands_it_on() -> None:
    places = QuerySlots(1)
    holder = places.hold("a")
    await holder.__aenter__()
    gives_up = asyncio.ensure_future(places.hold("b").__aenter__())
    await asyncio.sleep(0)
    await holder.__aexit__(None, None, None)  # the place is b's now, who has not heard of it yet
    gives_up.cancel()
    await asyncio.gather(gives_up, return_exceptions=True)
    async with places.hold("c", timeout_s=1):
        pass


# Loading


@pytest.mark.asyncio
async def test_a_model_is_loaded_while_the_thread_is_free(computing: Computing) -> None:
    ds = datasette(threads=1)
    loading, go_on = threading.Event(), threading.Event()

    def load() -> None:
        loading.set()
        assert go_on.wait(60)
        computing.load = None

    computing.load = load
    query = asyncio.ensure_future(ask(ds, "select compute('a') as value"))
    try:
        assert await asyncio.to_thread(loading.wait, 60)
        assert await asyncio.wait_for(ask(ds, "select 1 as one"), 60) == (200, [{"one": 1}])
    finally:
        go_on.set()
    assert await query == (200, [{"value": "a"}])
    assert computing.computed == ["a"]


@pytest.mark.asyncio
async def test_loading_takes_none_of_the_querys_time(computing: Computing) -> None:
    ds = datasette(limit_ms=300)

    def load() -> None:
        time.sleep(0.5)
        computing.load = None

    computing.load = load
    assert await ask(ds, "select compute('a') as value") == (200, [{"value": "a"}])


@pytest.mark.asyncio
async def test_who_may_not_compute_loads_nothing(computing: Computing) -> None:
    loads: list[str] = []
    computing.load = lambda: loads.append("loaded")
    status, _ = await ask(datasette(allow=False), "select compute('a')")
    assert status == 400
    assert loads == []


@pytest.mark.asyncio
async def test_a_model_that_never_stays_is_an_error(computing: Computing) -> None:
    computing.load = lambda: None  # and is not in memory afterwards
    status, answer = await ask(datasette(), "select compute('a')")
    assert status == 400
    assert "unloaded again and again" in answer["error"]


@pytest.mark.asyncio
async def test_the_rate_counts_what_sql_computes(computing: Computing) -> None:
    ds = datasette(rate_limit=2)
    answers = [await ask(ds, f"select compute({number})") for number in range(4)]
    assert [status for status, _ in answers[:2]] == [200, 200]
    assert answers[-1][0] == 400
    assert "rate_limit" in answers[-1][1]["error"]


# What is left behind


@pytest.mark.asyncio
async def test_a_failing_query_leaves_no_cursor_behind(computing: Computing) -> None:
    ds = datasette()
    await ds.invoke_startup()
    cursors: list[weakref.ref[Any]] = []

    def fails(connection: sqlite3.Connection) -> None:
        class Cursor(type(connection.cursor())):  # type: ignore[misc]
            pass

        cursor = connection.cursor(Cursor)
        cursors.append(weakref.ref(cursor))
        cursor.execute("select 1 union all select 2")
        cursor.fetchone()
        raise ValueError("on purpose")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="on purpose") as kept:
            await ds.get_database("_memory").execute_fn(fails)
        assert kept.value is not None
        assert cursors[0]() is None
    finally:
        gc.enable()


def test_the_rules_are_made_once() -> None:
    ds = datasette()
    assert rules_of(ds) is rules_of(ds)
