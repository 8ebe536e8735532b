"""Threads for SQL are shared among clients."""

from __future__ import annotations

import asyncio

import pytest
from datasette.app import Datasette

from datasette_vision.errors import Busy
from datasette_vision.plugin.queries.client_shares import Shares
from tests.plugin.queries.test_execution import ask_from

ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"


async def held(shares: Shares, client: str, release: asyncio.Event, log: list[str], name: str = "") -> None:
    async with shares.hold(client, first=name.startswith("first"), timeout_s=10):
        log.append(name or client)
        await release.wait()


@pytest.mark.asyncio
async def test_a_client_waits_behind_itself_and_nobody_else() -> None:
    shares, release, log = Shares(2), asyncio.Event(), list[str]()
    tasks = [asyncio.ensure_future(held(shares, client, release, log)) for client in ("a", "a", "a", "a", "b")]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log == ["a", "a", "b"]
    release.set()
    await asyncio.gather(*tasks)
    assert log == ["a", "a", "b", "a", "a"]
    assert not shares._clients


@pytest.mark.asyncio
async def test_who_was_paused_goes_on_before_the_others() -> None:
    shares, release, log = Shares(1), asyncio.Event(), list[str]()
    tasks = [asyncio.ensure_future(held(shares, "a", release, log, name)) for name in ("one", "two", "first of all")]
    await asyncio.sleep(0.01)
    release.set()
    await asyncio.gather(*tasks)
    assert log == ["one", "first of all", "two"]


@pytest.mark.asyncio
async def test_too_many_that_wait_are_refused_and_so_is_who_waits_too_long() -> None:
    shares, release, log = Shares(1, max_waiting=1), asyncio.Event(), list[str]()
    running = asyncio.ensure_future(held(shares, "a", release, log))
    await asyncio.sleep(0)

    async def impatient() -> None:
        async with shares.hold("a", timeout_s=0.05):
            raise AssertionError("it has a thread that there is not")

    waiting = asyncio.ensure_future(impatient())
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="too many"):
        await impatient()
    with pytest.raises(Busy, match="are still running"):
        await waiting
    release.set()
    await running
    assert not shares._clients


@pytest.mark.asyncio
@pytest.mark.parametrize("late", [False, True])
async def test_who_gives_up_loses_no_thread(late: bool) -> None:
    shares, release, log = Shares(1), asyncio.Event(), list[str]()
    running = asyncio.ensure_future(held(shares, "a", release, log))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(held(shares, "a", asyncio.Event(), log))
    await asyncio.sleep(0.01)
    if late:  # as its turn comes
        release.set()
        await asyncio.sleep(0)
    waiting.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await running
    assert not shares._clients
    async with shares.hold("a", timeout_s=1):
        pass


@pytest.mark.asyncio
async def test_the_endless_queries_of_one_client_leave_a_thread_to_the_others() -> None:
    datasette = Datasette([], memory=True, settings={"num_sql_threads": 2, "sql_time_limit_ms": 10_000})
    await datasette.invoke_startup()

    async def ask(client: str, sql: str) -> int:
        return (await ask_from(client, datasette, sql))[0]

    endless = [asyncio.ensure_future(ask("10.0.0.1", ENDLESS)) for _ in range(5)]
    await asyncio.sleep(0.5)
    assert await ask("10.0.0.2", "select 1") == 200
    assert not any(task.done() for task in endless[1:])
    for task in endless:
        task.cancel()
    await asyncio.gather(*endless, return_exceptions=True)
