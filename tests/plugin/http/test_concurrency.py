"""One client's many requests wait behind each other, and nobody else behind them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import pm
from datasette.utils.asgi import Response

from datasette_vision.plugin.http import concurrency


class Slow:
    """An application whose answers wait until they may be given."""

    def __init__(self) -> None:
        self.under_way: list[str] = []
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.under_way.append(scope["client"][0] if scope.get("client") else scope["type"])
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def nothing_to_read() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def ask(application: Any, client: str, kind: str = "http") -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await application({"type": kind, "client": (client, 1), "headers": []}, nothing_to_read, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def wrapped(inner: Any, **limits: int) -> Any:
    return concurrency.concurrency_wrapper(Datasette([], memory=True), **limits)(inner)


@pytest.mark.asyncio
async def test_a_client_has_so_many_requests_under_way_and_others_have_theirs() -> None:
    slow = Slow()
    application = wrapped(slow, at_a_time=2)
    tasks = [asyncio.ensure_future(ask(application, client)) for client in ("1.1.1.1",) * 5 + ("2.2.2.2",)]
    await asyncio.sleep(0.05)
    assert slow.under_way == ["1.1.1.1", "1.1.1.1", "2.2.2.2"]
    slow.go_on.set()
    assert [status for status, _, _ in await asyncio.gather(*tasks)] == [200] * 6


@pytest.mark.asyncio
async def test_too_many_are_refused_at_once() -> None:
    slow = Slow()
    application = wrapped(slow, at_a_time=1, max_waiting=1)
    tasks = [asyncio.ensure_future(ask(application, "1.1.1.1")) for _ in range(2)]
    await asyncio.sleep(0.05)
    status, headers, body = await ask(application, "1.1.1.1")
    assert status == 503
    assert {name.lower() for name in headers} >= {b"retry-after"}
    assert json.loads(body)["error"] == "too many of your requests are waiting: try again in a moment"
    slow.go_on.set()
    await asyncio.gather(*tasks)


@pytest.mark.asyncio
async def test_a_request_within_a_request_does_not_wait_for_it() -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        if scope["client"][1] == 1 and scope.pop("outer", True):
            status, _, _ = await asyncio.wait_for(within(), 30)
            await send({"type": "http.response.start", "status": status, "headers": []})
        else:
            await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    application = wrapped(inner, at_a_time=1)

    async def within() -> tuple[int, Any, Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await application({"type": "http", "client": ("1.1.1.1", 1), "headers": [], "outer": False}, None, send)
        return sent[0]["status"], None, None

    assert (await ask(application, "1.1.1.1"))[0] == 204


class Gate:
    """A plugin with a page that waits, and counts how many of it are under way."""

    __name__ = "gate"

    def __init__(self) -> None:
        self.under_way = 0
        self.most = 0
        self.go_on = asyncio.Event()

    @hookimpl
    def register_routes(self) -> Any:
        async def page() -> Response:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await self.go_on.wait()
            self.under_way -= 1
            return Response.text("passed")

        return [("^/-/gate$", page)]


@pytest.mark.asyncio
async def test_a_server_holds_to_it() -> None:
    gate = Gate()
    pm.register(gate, name="gate")
    try:
        datasette = Datasette([], memory=True)
        asked = [asyncio.ensure_future(datasette.client.get("/-/gate")) for _ in range(concurrency.AT_A_TIME + 10)]
        for _ in range(1000):
            await asyncio.sleep(0.05)
            if gate.under_way == concurrency.AT_A_TIME:
                break
        await asyncio.sleep(0.5)  # in which the others would come
        gate.go_on.set()
        answers = await asyncio.gather(*asked)
    finally:
        pm.unregister(name="gate")
    assert {answer.text for answer in answers} == {"passed"}
    assert gate.most == concurrency.AT_A_TIME


@pytest.mark.asyncio
async def test_requests_that_nobody_waits_for_any_more_are_not_begun() -> None:
    slow = Slow()
    application = wrapped(slow, at_a_time=1)

    async def hung_up() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("nobody takes an answer")

    first = asyncio.ensure_future(ask(application, "1.1.1.1"))
    scope = {"type": "http", "client": ("1.1.1.1", 2), "headers": []}
    others = [asyncio.ensure_future(application(scope, hung_up, send)) for _ in range(20)]
    await asyncio.sleep(0.05)
    slow.go_on.set()
    assert (await first)[0] == 200
    await asyncio.gather(*others)
    assert slow.under_way == ["1.1.1.1"]


@pytest.mark.asyncio
async def test_the_message_that_was_looked_at_is_not_lost_and_one_that_never_comes_is_not_waited_for() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while scope["client"][1] == 1:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    application = wrapped(echo)
    parts = [b"one ", b"two ", b"three"]

    async def slowly() -> Any:
        await asyncio.sleep(0.01)
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def never() -> Any:
        await asyncio.Event().wait()

    for port, receive, expected in ((1, slowly, b"one two three"), (2, never, b"")):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        await application({"type": "http", "client": ("1.1.1.1", port), "headers": []}, receive, send)
        assert sent[1]["body"] == expected
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(("size", "expected"), [(8000, 200), (9000, 431)])
async def test_cookies_that_take_long_to_read_are_not_read(size: int, expected: int) -> None:
    datasette = Datasette([], memory=True)
    await datasette.invoke_startup()
    response = await datasette.client.get("/-/versions.json", headers={"cookie": "a=b; " * (size // 5)})
    assert response.status_code == expected


@pytest.mark.asyncio
@pytest.mark.parametrize("argument", ["_where=1", "%5Fwher%65=1", "_where"])
@pytest.mark.parametrize(("count", "expected"), [(50, 200), (51, 400)])
async def test_filters_that_take_long_to_read_are_not_read(count: int, expected: int, argument: str) -> None:
    datasette = Datasette([], memory=True)
    await datasette.invoke_startup()
    response = await datasette.client.get("/-/versions.json?" + "&".join([argument] * count))
    assert response.status_code == expected
