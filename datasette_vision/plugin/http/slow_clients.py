"""Sends responses in slices, at the speed at which the client reads them.

Without this, a response of 60 MB to a client that never reads stays in memory as long as the connection is open.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from datasette_vision.errors import Busy
from datasette_vision.plugin.http.context import context_of
from datasette_vision.plugin.http.cross_origin import is_own_path
from datasette_vision.plugin.http.limits import SMALL_BODY_BYTES
from datasette_vision.plugin.http.responses import RequestError, error_body, message_of, status_of
from datasette_vision.plugin.http.transfer_rate import LEAST_RATE, Pace, TooSlow

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger(__name__)

Application = Callable[[Any, Any, Any], Awaitable[None]]

# A response is passed to the server in slices of this many bytes, each once the client has read most of the last.
SLICE_BYTES = 65_536


def slow_clients_wrapper(datasette: Datasette) -> Callable[[Application], Application]:
    """Return the wrapper for asgi_wrapper(), which sends every response in slices, to clients that read them.

    Responses from the plugin's own addresses are counted while they are held. A client that leaves many unread gets a
    503, and no more responses.
    """

    def wrap(application: Application) -> Application:
        async def run(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await application(scope, receive, send)
                return
            context = context_of(datasette)
            limits = context.limits
            sender = _Sender(send, Pace(limits.patience_s))
            if not is_own_path(datasette, scope):
                await application(scope, receive, sender.send)
                return
            with limits.answer(context.clients.address(scope)) as hold:
                sender.hold = hold
                await application(scope, receive, sender.send)

        return run

    return wrap


class _Sender:
    """Sends one response. If the client is too slow, the rest is dropped, as for a client that has disconnected."""

    def __init__(self, send: Callable[[Any], Awaitable[None]], pace: Pace) -> None:
        self._send = send
        self._pace = pace
        self._start: Any = None
        self._dropped = False
        self.hold: Callable[[int], None] | None = None

    async def send(self, message: Any) -> None:
        if self._dropped:
            return
        if message["type"] == "http.response.start" and self.hold is not None:
            self._start = message  # until it is known whether there is memory for the body
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        body = message.get("body", b"")
        if self._start is not None:
            start, self._start = self._start, None
            if self.hold is not None and len(body) > SMALL_BODY_BYTES:
                try:
                    self.hold(len(body))
                except (Busy, RequestError) as error:
                    self._dropped = True
                    await self._refuse(start, error)
                    return
            await self._send(start)
        more = message.get("more_body", False)
        try:
            for begin in range(0, max(1, len(body)), SLICE_BYTES):
                part = body[begin : begin + SLICE_BYTES]
                last = begin + SLICE_BYTES >= len(body)
                sent = self._send({"type": "http.response.body", "body": part, "more_body": more or not last})
                await self._pace.wait(sent)
                self._pace.moved(len(part))
        except TooSlow:
            # The server closes the connection of an incomplete response.
            self._dropped = True
            logger.info("a response was cut short: the client read less than %s bytes a second", LEAST_RATE)

    async def _refuse(self, start: Any, error: Exception) -> None:
        status, headers = status_of(error)
        text = json.dumps(error_body([message_of(error)], status)).encode()
        kept = [pair for pair in start["headers"] if pair[0].lower().startswith(b"access-control-")]
        named = {**headers, "content-type": "application/json; charset=utf-8", "content-length": str(len(text))}
        pairs = [(name.encode(), value.encode()) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": [*kept, *pairs]})
        await self._send({"type": "http.response.body", "body": text, "more_body": False})
