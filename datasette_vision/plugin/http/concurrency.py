"""How many requests of one client are worked on at a time.

Datasette begins with every request as it comes, and goes on with those whose client has hung up: 6,000 of them, sent in
three seconds, kept everybody else waiting for a minute. Here the rest of a client's requests wait, which costs nothing,
those of others go before them, and those that nobody waits for any more are not begun.
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
# A browser sends 6 at a time, and a proxy whose header is not trusted those of all its clients. What is under way takes
# turns on the event loop with the requests of others, some milliseconds each.
AT_A_TIME = 16
MAX_WAITING_REQUESTS = 256
# Datasette reads the cookies of a request again each time it looks at one: 60 kB of them take 45 ms, eight times over.
MAX_COOKIE_BYTES = 8192
# For each of them Datasette writes the address without it: 500 take half a second, and fail as SQL too deep.
MAX_WHERES = 50
TURN_TIMEOUT_S = 60.0

Receive = Callable[[], Awaitable[Any]]

# A request that the server asks of itself, while it answers another, must not wait for that one.
_inside: ContextVar[bool] = ContextVar("datasette_vision_inside", default=False)


def concurrency_wrapper(
    datasette: Datasette, at_a_time: int = AT_A_TIME, max_waiting: int = MAX_WAITING_REQUESTS
) -> Callable[[Application], Application]:
    """Return what wraps an ASGI application so that each client has so many requests under way."""
    # Datasette's own client makes the application again for each of its requests.
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
    """Say what of a request takes Datasette long to read, while nobody else's is worked on."""
    if sum(len(value) for name, value in scope["headers"] if name == b"cookie") > MAX_COOKIE_BYTES:
        return RequestError(431, f"expected cookies of at most {MAX_COOKIE_BYTES:,} bytes, found more")
    query = scope.get("query_string", b"")
    # Names may be written with escapes, so they are counted as Datasette reads them.
    wheres = (
        sum(name == b"_where" for name, _ in parse_qsl(query, keep_blank_values=True))
        if query.count(b"&") >= MAX_WHERES
        else 0
    )
    if wheres > MAX_WHERES:
        return RequestError(400, f"expected at most {MAX_WHERES} times _where in an address, found {wheres:,}")
    return None


class _First:
    """The first message of a request, looked at before the request is worked on, and given to whoever does that."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._message: asyncio.Future[Any] | None = None

    async def is_gone(self) -> bool:
        """Say whether the client has hung up, as far as the server knows. Waits for nothing."""
        self._message = asyncio.ensure_future(self._receive())
        await asyncio.sleep(0)
        if not self._message.done() or self._message.exception() is not None:
            return False
        return bool(self._message.result()["type"] == "http.disconnect")

    def close(self) -> None:
        """Wait for the message no longer: the answer is given."""
        if self._message is not None and not self._message.cancel():
            self._message.exception()  # so that nobody is told that it was never looked at

    async def receive(self) -> Any:
        """Return the next message."""
        if self._message is None:
            return await self._receive()
        message, self._message = self._message, None
        return await message
