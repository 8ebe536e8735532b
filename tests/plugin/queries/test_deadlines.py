"""Queries end when their time is up, however long one step of them takes."""

from __future__ import annotations

import sqlite3
import threading
import time

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import pm

from datasette_vision.plugin.queries.deadlines import Deadlines


def test_a_block_is_interrupted_once_its_time_is_up() -> None:
    deadlines, interrupted = Deadlines(), threading.Event()
    with deadlines.within(0.05, interrupted.set):
        assert interrupted.wait(60)


def test_a_block_that_has_ended_is_not() -> None:
    deadlines, early, late = Deadlines(), threading.Event(), threading.Event()
    with deadlines.within(0.05, early.set):
        pass
    with deadlines.within(0.3, late.set):
        assert late.wait(60)
    assert not early.is_set()
    assert not deadlines._running


def test_the_soonest_goes_first_whenever_it_came() -> None:
    deadlines, order = Deadlines(), list[str]()
    both = threading.Semaphore(0)

    def interrupt(name: str) -> None:
        order.append(name)
        both.release()

    with deadlines.within(0.6, lambda: interrupt("late")), deadlines.within(0.1, lambda: interrupt("soon")):
        assert both.acquire(timeout=60)
        assert both.acquire(timeout=60)
    assert order == ["soon", "late"]


class Slow:
    """A plugin with a function that takes long, and how often it was called."""

    __name__ = "slow"

    def __init__(self) -> None:
        self.calls = 0

    @hookimpl
    def prepare_connection(self, conn: sqlite3.Connection) -> None:
        conn.create_function("slow", 1, self._slow)

    def _slow(self, value: object) -> object:
        self.calls += 1
        time.sleep(0.05)
        return value


@pytest.mark.asyncio
async def test_a_query_of_long_steps_ends_in_its_time() -> None:
    """Datasette alone looks at the clock once in some 80 of these rows."""
    slow = Slow()
    pm.register(slow, name="slow")
    try:
        datasette = Datasette([], memory=True, settings={"sql_time_limit_ms": 300})
        sql = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(slow(i)) from n"
        response = await datasette.client.get("/_memory.json", params={"sql": sql}, follow_redirects=True)
    finally:
        pm.unregister(name="slow")
    assert response.status_code == 400
    assert 0 < slow.calls < 40
