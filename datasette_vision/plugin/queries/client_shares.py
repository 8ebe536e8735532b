"""Limits each client's share of the SQL threads, and of the work on the event loop.

A client that uses up its share waits for itself, and never holds everything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from datasette_vision.errors import Busy

# How long a query waits for others of its client, and how many of them may wait. A page sends about 30 at a time.
SHARE_TIMEOUT_S = 30.0
MAX_WAITING = 200


@dataclass
class _Client:
    """The state of one client: how much is running, and what is waiting, first in line first."""

    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Shares:
    """Limits how many queries, or other work, each client runs at a time. For one event loop."""

    def __init__(self, each: int, max_waiting: int = MAX_WAITING, what: str = "queries") -> None:
        self._each = each
        self._max_waiting = max_waiting
        self._what = what
        self._clients: dict[str, _Client] = {}

    @contextlib.asynccontextmanager
    async def hold(self, client: str, first: bool = False, timeout_s: float = SHARE_TIMEOUT_S) -> AsyncIterator[None]:
        """Hold one of a client's places while the block runs, ahead of its others with `first`.

        Raises Busy if too many of the client's own are waiting, or if none of them ends in time.
        """
        own = self._clients.setdefault(client, _Client())
        if own.running < self._each:
            own.running += 1
        else:
            await self._wait(client, own, first, timeout_s)
        try:
            yield
        finally:
            self._pass_on(client, own)

    async def _wait(self, client: str, own: _Client, first: bool, timeout_s: float) -> None:
        if len(own.waiting) >= self._max_waiting:
            raise Busy(f"too many of your {self._what} are waiting: try again in a moment")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (own.waiting.appendleft if first else own.waiting.append)(turn)
        try:
            await asyncio.wait([turn], timeout=timeout_s)
        except BaseException:
            if turn.done():
                self._pass_on(client, own)  # it was granted as this query gave up
            else:
                own.waiting.remove(turn)
            raise
        if not turn.done():
            own.waiting.remove(turn)
            raise Busy(f"your other {self._what} are still running: try again in a moment")

    def _pass_on(self, client: str, own: _Client) -> None:
        if own.waiting:
            own.waiting.popleft().set_result(None)
            return
        own.running -= 1
        if not own.running:
            del self._clients[client]
