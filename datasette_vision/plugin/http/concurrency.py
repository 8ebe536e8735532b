"""Limits how many requests of one client run at a time.

Datasette starts every request as it arrives, and continues with those whose client has disconnected: 6,000 requests,
sent in three seconds, kept all other clients waiting for a minute. Here the other requests of that client wait, which
costs nothing, requests of other clients go first, and abandoned requests are not started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from datasette_vision.errors import Busy
from datasette_vision.plugin.http.context import context_of
from datasette_vision.plugin.http.responses import RequestError, error_answer
from datasette_vision.plugin.queries.client_shares import Shares

if TYPE_CHECKING:
    from datasette.app import Datasette

    from datasette_vision.plugin.server.activity import Application

CONCURRENCY_ATTRIBUTE = "_datasette_vision_crowd"
# A browser sends 6 at a time, an untrusted proxy those of all its clients. Requests that run share the event loop with
# those of others, some milliseconds each.
AT_A_TIME = 16
MAX_WAITING_REQUESTS = 256
# Datasette parses the cookies of a request each time it reads one: 60 kB of them take 45 ms, eight times.
MAX_COOKIE_BYTES = 8192
# For each of them Datasette writes the address without it: 500 take half a second, and fail as SQL that is too deep.
MAX_WHERES = 50
TURN_TIMEOUT_S = 60.0

Receive = Callable[[], Awaitable[Any]]

# A request that the server sends itself, while it answers another, must not wait for that one.
_inside: ContextVar[bool] = ContextVar("datasette_vision_inside", default=False)


def concurrency_wrapper(
    datasette: Datasette, at_a_time: int = AT_A_TIME, max_waiting: int = MAX_WAITING_REQUESTS
) -> Callable[[Application], Application]:
    """Return a wrapper for an ASGI application that limits how many requests of each client run at a time."""
    # Datasette's internal client wraps the application again for each of its requests.
    made: dict[tuple[int, int], Shares] = vars(datasette).setdefault(CONCURRENCY_ATTRIBUTE, {})
    shares = made.setdefault((at_a_time, max_waiting), Shares(at_a_time, max_waiting, "requests"))

    def wrap(application: Application) -> Application:
        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or _inside.get():
                await application(scope, receive, send)
                return
            refusal = _too_long_to_read(scope)
            if refusal is not None:
                await error_answer(datasette, refusal).asgi_send(send)
                return
            client = context_of(datasette).clients.address(scope)
            async with AsyncExitStack() as held:
                try:
                    await held.enter_async_context(shares.hold(client, timeout_s=TURN_TIMEOUT_S))
                except Busy as busy:
                    await error_answer(datasette, busy).asgi_send(send)
                    return
                first = _First(receive)
                token = _inside.set(True)
                try:
                    if not await first.is_gone():
                        await application(scope, first.receive, send)
                finally:
                    _inside.reset(token)
                    first.close()

        return watched

    return wrap


def _too_long_to_read(scope: Any) -> RequestError | None:
    """Say what in a request takes Datasette long to read, during which no other request runs."""
    if sum(len(value) for name, value in scope["headers"] if name == b"cookie") > MAX_COOKIE_BYTES:
        return RequestError(431, f"expected cookies of at most {MAX_COOKIE_BYTES:,} bytes, found more")
    query = scope.get("query_string", b"")
    # Names may contain escapes, so they are counted after decoding, as Datasette does.
    wheres = (
        sum(name == b"_where" for name, _ in parse_qsl(query, keep_blank_values=True))
        if query.count(b"&") >= MAX_WHERES
        else 0
    )
    if wheres > MAX_WHERES:
        return RequestError(400, f"expected at most {MAX_WHERES} times _where in an address, found {wheres:,}")
    return None


class _First:
    """The first message of a request: read before the request runs, and then passed on to it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._message: asyncio.Future[Any] | None = None

    async def is_gone(self) -> bool:
        """Say whether the client has disconnected, as far as the server knows. Does not wait."""
        self._message = asyncio.ensure_future(self._receive())
        await asyncio.sleep(0)
        if not self._message.done() or self._message.exception() is not None:
            return False
        return bool(self._message.result()["type"] == "http.disconnect")

    def close(self) -> None:
        """Stop waiting for the message: the response is sent."""
        if self._message is not None and not self._message.cancel():
            self._message.exception()  # so that asyncio does not warn about an exception that was never retrieved

    async def receive(self) -> Any:
        """Return the next message."""
        if self._message is None:
            return await self._receive()
        message, self._message = self._message, None
        return await message
