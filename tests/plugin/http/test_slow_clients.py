"""plugin/http/slow_clients.py and the pace of transfers, with a client of our own and with sockets at a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from datasette_vision.plugin.http import slow_clients
from datasette_vision.plugin.http.context import context_of
from datasette_vision.plugin.http.limits import SMALL_BODY_BYTES
from tests.plugin.api.test_api import Api
from tests.servers import serve, serving


class Client:
    """What a server hands to an application for sending; it takes the first `slices` of the body, and then no more."""

    def __init__(self, slices: int = 1_000_000) -> None:
        self.messages: list[Any] = []
        self.slices = slices

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            if not self.slices:
                await asyncio.sleep(3600)
            self.slices -= 1
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])


def answering(*chunks: bytes) -> slow_clients.Application:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"access-control-allow-origin", b"*")]})
        for chunk in chunks[:-1]:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": chunks[-1]})

    return application


async def ask(api: Api, application: slow_clients.Application, client: Client, path: str = "/-/vision/embed") -> None:
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "client": ("1.2.3.4", 5)}
    await slow_clients.slow_clients_wrapper(api.datasette)(application)(scope, None, client.send)


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/-/vision/embed", "/data/table.json"])
@pytest.mark.parametrize("chunks", [(b"",), (b"x",), (b"x" * 65_536,), (b"x" * 200_000, b"y", b"")])
async def test_every_answer_arrives_as_it_is(fake_models: Path, path: str, chunks: tuple[bytes, ...]) -> None:
    client = Client()
    await ask(Api(fake_models), answering(*chunks), client, path)
    assert (client.status, client.body) == (200, b"".join(chunks))
    assert max(len(message["body"]) for message in client.messages[1:]) <= slow_clients.SLICE_BYTES
    assert [message["more_body"] for message in client.messages[1:]] == [True] * (len(client.messages) - 2) + [False]


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/-/vision/embed", "/data/table.json"])
async def test_a_client_that_does_not_read(fake_models: Path, path: str) -> None:
    api = Api(fake_models)
    limits = context_of(api.datasette).limits
    limits.patience_s = 0.05
    client = Client(slices=2)
    reached = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await answering(b"x" * 1_000_000, b"y")(scope, receive, send)
        reached.append(limits._answers.held)

    await ask(api, application, client, path)
    # Two slices and no end: the server takes that for a broken answer, and closes.
    assert len(client.body) == 2 * slow_clients.SLICE_BYTES
    assert client.messages[-1]["more_body"]
    assert reached == [1_000_000 if path.startswith("/-/vision") else 0]
    assert limits._answers.held == 0


@pytest.mark.asyncio
async def test_answers_that_nobody_takes_make_room_for_no_more(fake_models: Path) -> None:
    api = Api(fake_models, max_request_mb=1)
    slow = Client(slices=1)
    held = asyncio.create_task(ask(api, answering(b"x" * 900_000), slow))
    while not slow.messages:
        await asyncio.sleep(0)
    client = Client()
    await ask(api, answering(b"x" * 300_000), client)
    assert client.status == 503
    assert (b"retry-after", b"1") in client.messages[0]["headers"]
    assert (b"access-control-allow-origin", b"*") in client.messages[0]["headers"]
    assert json.loads(client.body)["error"].startswith("your other requests are still in progress")
    client = Client()
    await ask(api, answering(b"x" * SMALL_BODY_BYTES), client)
    assert client.status == 200
    held.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await held
    client = Client()
    await ask(api, answering(b"x" * 1_000_001), client)
    assert client.status == 413


def connect(address: str) -> socket.socket:
    host, _, port = address.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return connection


def test_unfinished_bodies_keep_nobody_out(tmp_path: Path) -> None:
    """Two clients hold all that there is for large bodies, a byte now and then: others post, and the two are ended."""
    with serving(tmp_path, max_request_mb=2) as address:
        head = (
            "POST /-/vision/embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 2000000\r\n\r\n"
        )
        slow = [connect(address) for _ in range(3)]
        for connection in slow:
            connection.sendall(head.encode() + b" " * 1_400_000)
        began = time.monotonic()
        request = urllib.request.Request(
            f"{address}/-/vision/embed", b'{"text": "x"}', {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200
        statuses = []
        for connection in slow:
            with contextlib.suppress(OSError):
                while time.monotonic() < began + 60:
                    connection.settimeout(2)
                    try:
                        statuses.append(int(connection.recv(4096).split()[1]))
                        break
                    except TimeoutError:
                        connection.sendall(b" ")
            connection.close()
        # The third finds no room: one client has three quarters at most.
        assert sorted(statuses) == [408, 408, 503]


PLUGIN = """
import asyncio
from datasette import hookimpl
from datasette.utils.asgi import Response

async def large():
    return Response(b"x" * 12_000_000, content_type="text/plain")

@hookimpl
def register_routes():
    return [(r"^/-/large$", large)]
"""


def test_who_reads_nothing_is_hung_up_on(tmp_path: Path) -> None:
    with serve(tmp_path, plugins=PLUGIN) as server, contextlib.closing(connect(server.address)) as connection:
        connection.sendall(b"GET /-/large HTTP/1.1\r\nHost: x\r\n\r\n")
        until = time.monotonic() + 60
        while "without completing response" not in server.log and time.monotonic() < until:
            time.sleep(0.2)
        assert "without completing response" in server.log
        assert "Traceback" not in server.log
        assert len(server.get("/-/large")) == 12_000_000
