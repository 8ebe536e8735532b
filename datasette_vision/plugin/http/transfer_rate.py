"""How fast a client has to send a body and to take an answer, so that nobody holds memory by being slow.

Memory is held for as long as a body comes in and an answer goes out. A client that sends a byte every few seconds, or
never reads, would hold it for as long as it likes. So every transfer has a `Pace`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

# Bytes a second that a client has to send or take: a mobile network on a bad day has more.
LEAST_RATE = 32_000
# Seconds that a client may be behind that rate, silence included.
PATIENCE_S = 10.0


class TooSlow(Exception):
    """A client sends or takes less than it has to."""


class Pace:
    """The patience with one transfer: ten seconds at first, used up by waiting, earned back by every byte."""

    def __init__(self, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._left_s = patience_s
        self._clock = clock

    async def wait(self, step: Awaitable[T]) -> T:
        """Wait for one step of a transfer. Raises TooSlow when patience ends first.

        Only the time spent here counts, not what the server does between two steps.
        """
        began = self._clock()
        try:
            result = await asyncio.wait_for(step, self._left_s)
        except asyncio.TimeoutError:
            raise TooSlow from None
        self._left_s -= self._clock() - began
        return result

    def moved(self, count: int) -> None:
        """Count the bytes of a step. Raises TooSlow when they came too late."""
        self._left_s = min(self._patience_s, self._left_s + count / LEAST_RATE)
        if self._left_s <= 0:
            raise TooSlow
