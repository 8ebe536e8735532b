"""Asleep when nobody asks, never in the middle of work, with the real datasette-scale-to-zero; and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_vision.plugin.server.activity import BURST_REQUESTS, Activity
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.plugin.server.state import state_of
from tests.servers import Server, serve

# Routes that take their time, and work in the background.
SLOW = '''
import asyncio, sqlite3, threading, time
from datasette import hookimpl
from datasette.utils.asgi import Response, AsgiStream
from datasette_vision.plugin.server.state import state_of

async def slow(datasette, request):
    """Answers after so many seconds, having asked the database, which is still open then."""
    await asyncio.sleep(float(request.args["s"]))
    rows = await datasette.get_database("_memory").execute("select 'done' as x")
    return Response.text(rows.first()["x"])

async def stream(scope, receive, send, request):
    """Sends a line every half second."""
    await send({"type": "http.response.start", "status": 200, "headers": [[b"content-type", b"text/plain"]]})
    for line in range(int(float(request.args["s"]) * 2)):
        await asyncio.sleep(0.5)
        await send({"type": "http.response.body", "body": b"line\\n", "more_body": True})
    await send({"type": "http.response.body", "body": b"done", "more_body": False})

async def job(datasette, request):
    """Starts work on a thread, which writes a file at its end, and answers at once."""
    def work():
        with state_of(datasette).activity.keep_awake("job") as stopping:
            stopped = stopping.wait(float(request.args["s"])) and "mind" in request.args
            if not stopped and stopping.is_set():
                time.sleep(float(request.args["s"]))
            open(request.args["file"], "w").write("stopped" if stopped else "done")
    threading.Thread(target=work, daemon=True).start()
    return Response.text("started")

async def write(datasette, request):
    """Queues writes of which none is waited for."""
    database = next(found for found in datasette.databases.values() if found.path)
    def insert(conn):
        time.sleep(0.1)
        with conn:
            conn.execute("insert into written values (1)")
    for _ in range(int(request.args["n"])):
        await database.execute_write_fn(insert, block=False)
    return Response.text("queued")

@hookimpl
def register_routes():
    return [(r"^/slow$", slow), (r"^/stream$", stream), (r"^/job$", job), (r"^/write$", write)]
'''

# 0.65 takes the Ctrl-C for the normal end of a server, 1.0 for an abort.
SIGINT_CODE = 1 if IS_1_0 else 0
SLEEP_SOON = {"datasette-scale-to-zero": {"duration": "1s"}}


def test_idle_for_the_configured_time_it_exits_with_0(tmp_path: Path) -> None:
    with serve(tmp_path, config=SLEEP_SOON) as server:
        assert server.ended() == 0
        assert "Traceback" not in server.log
        assert "no requests for a while" in server.log


@pytest.mark.parametrize("route", ["slow", "stream"])
def test_a_request_longer_than_the_silence_is_finished(tmp_path: Path, route: str) -> None:
    with serve(tmp_path, plugins=SLOW, config=SLEEP_SOON) as server:
        assert server.get(f"/{route}?s=3").endswith(b"done")
        # The silence begins with the end of that request.
        assert server.get("/-/versions.json")
        assert server.ended() == 0
        assert "Traceback" not in server.log


def test_a_request_that_other_requests_surround_is_finished(tmp_path: Path) -> None:
    with serve(tmp_path, plugins=SLOW, config=SLEEP_SOON) as server, ThreadPoolExecutor(4) as threads:
        slow = [threads.submit(server.get, f"/slow?s={seconds}") for seconds in (4, 0.1, 2)]
        assert [request.result() for request in slow] == [b"done"] * 3
        assert server.ended() == 0


def test_work_in_the_background_keeps_it_awake(tmp_path: Path) -> None:
    with serve(tmp_path, plugins=SLOW, config=SLEEP_SOON) as server:
        assert server.get(f"/job?s=3&file={tmp_path / 'job'}") == b"started"
        assert server.ended() == 0
        assert (tmp_path / "job").read_text() == "done"


def test_a_greatest_age_does_not_cut_work_short_either(tmp_path: Path) -> None:
    with serve(tmp_path, plugins=SLOW, config={"datasette-scale-to-zero": {"max_age": "1s"}}) as server:
        assert server.get("/slow?s=3") == b"done"
        assert server.ended() == 0


def test_started_again_it_answers_the_same(tmp_path: Path) -> None:
    answers = []
    for _ in range(2):
        with serve(tmp_path, config=SLEEP_SOON) as server:
            path = "/_memory.json?_shape=array&sql=select+hex(vision_embed('purple+and+gold'))+as+x"
            answers.append(json.loads(server.get(path)))
            assert server.ended() == 0
    assert answers[0] == answers[1]


def in_background(server: Server, path: str) -> tuple[threading.Thread, list[bytes]]:
    """Ask for a path on a thread, and return it with the list that the answer will be in."""
    answers: list[bytes] = []
    thread = threading.Thread(target=lambda: answers.append(server.get(path)))
    thread.start()
    time.sleep(0.5)  # until it is under way
    return thread, answers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_and_jobs_finish(tmp_path: Path, number: signal.Signals) -> None:
    with serve(tmp_path, plugins=SLOW) as server:
        server.get(f"/job?s=2&file={tmp_path / 'job'}")
        server.get(f"/job?s=60&mind=1&file={tmp_path / 'long'}")  # looks whether it should stop
        thread, answers = in_background(server, "/slow?s=2")
        server.process.send_signal(number)
        thread.join(60)
        code = server.ended()
        assert answers == [b"done"]
        assert code == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: SIGINT_CODE}[number]
        assert (tmp_path / "job").read_text() == "done"
        assert (tmp_path / "long").read_text() == "stopped"
        assert "Application shutdown complete" in server.log
        assert "cut short" not in server.log


@pytest.mark.parametrize("how", ["signal", "silence"])
def test_writes_that_wait_are_written(tmp_path: Path, how: str) -> None:
    path = tmp_path / "data.db"
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode=wal")
    connection.execute("create table written (x)")
    connection.close()
    with serve(tmp_path, str(path), plugins=SLOW, config=SLEEP_SOON if how == "silence" else {}) as server:
        assert server.get("/write?n=30") == b"queued"
        if how == "signal":
            server.process.terminate()
        server.ended()
    connection = sqlite3.connect(path)
    assert connection.execute("select count(*) from written").fetchone() == (30,)
    connection.close()


def test_what_does_not_end_is_cut_short_after_the_time_it_has(tmp_path: Path) -> None:
    with serve(tmp_path, plugins=SLOW, config={"datasette-vision": {"shutdown_seconds": 3}}) as server:
        server.get(f"/job?s=600&file={tmp_path / 'job'}")
        server.process.terminate()
        server.process.wait(60)
        assert server.process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
        assert "'job': 1" in server.log


def test_a_request_that_does_not_end_is_cut_short_too(tmp_path: Path) -> None:
    with serve(tmp_path, plugins=SLOW, config={"datasette-vision": {"shutdown_seconds": 3}}) as server:
        command = [sys.executable, "-c", f"import urllib.request as u; u.urlopen('{server.address}/slow?s=600')"]
        client = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(2)
        server.process.terminate()
        assert server.ended() == 128 + signal.SIGTERM
        assert "cut short: {'requests': 1}" in server.log
        client.wait(30)


# Counting


def test_work_is_counted_by_kind() -> None:
    silences: list[int] = []
    activity = Activity(lambda: silences.append(1))
    assert not activity.busy
    with activity.keep_awake("a"), activity.keep_awake("b"):
        with activity.keep_awake("a"):
            assert activity.running() == {"a": 2, "b": 1}
        assert activity.busy
        assert not activity.wait(0.01)
        assert silences == []
    assert not activity.busy
    assert activity.wait(0)
    assert silences == [1]


def test_work_that_fails_has_ended() -> None:
    activity = Activity()
    with pytest.raises(ZeroDivisionError), activity.keep_awake("a"):
        raise ZeroDivisionError
    assert not activity.busy


def test_many_threads_leave_nothing_behind() -> None:
    activity = Activity()

    def work(_: int) -> None:
        for _ in range(200):
            with activity.keep_awake("a"):
                pass

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(16)))
    assert activity.running() == {}


@pytest.mark.asyncio
async def test_requests_count_and_the_lifespan_does_not() -> None:
    activity = Activity()
    seen: list[tuple[str, bool]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        seen.append((scope["type"], activity.busy))

    watched = activity.watch(application)
    for kind in ("http", "websocket", "lifespan"):
        await watched({"type": kind}, None, None)
    assert seen == [("http", True), ("websocket", True), ("lifespan", False)]
    assert not activity.busy


@pytest.mark.asyncio
@pytest.mark.parametrize("answers", [True, False])
async def test_memory_is_given_back_once_after_a_burst(answers: bool) -> None:
    trimmed: list[int] = []
    activity = Activity(trim=lambda: trimmed.append(1), burst_over_s=0.1)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if not answers:
            raise RuntimeError("not today")

    async def ask(count: int) -> None:
        for _ in range(count):
            with contextlib.suppress(RuntimeError):
                await activity.watch(application)({"type": "http"}, None, None)

    await ask(BURST_REQUESTS - 1)
    await asyncio.sleep(0.3)
    assert trimmed == []
    await ask(1)
    await asyncio.sleep(0.05)
    await ask(1)  # it is not over yet
    await asyncio.sleep(0.07)
    assert trimmed == []
    await asyncio.sleep(0.3)
    assert trimmed == [1]
    await ask(BURST_REQUESTS - 1)
    await asyncio.sleep(0.3)
    assert trimmed == [1]


@pytest.mark.asyncio
async def test_internal_requests_are_counted_down_again() -> None:
    datasette = Datasette(memory=True)
    await datasette.invoke_startup()
    assert (await datasette.client.get("/-/versions.json")).status_code == 200
    assert not state_of(datasette).activity.busy
