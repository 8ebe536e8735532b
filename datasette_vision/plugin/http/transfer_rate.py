"""How fast a client must send a body and read a response, so that slow clients do not hold memory.

Memory is held while a body arrives and a response is sent. A client that sends a byte every few seconds, or never
reads, could hold it forever. So every transfer has a `Pace`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

# Bytes per second that a client must send or read. A poor mobile network is faster.
LEAST_RATE = 32_000
# Seconds that a client may be behind that rate, pauses included.
PATIENCE_S = 10.0


class TooSlow(Exception):
    """A client is slower than the minimum rate."""


class Pace:
    """The patience with one transfer: ten seconds at first, used up by waiting, regained by every byte."""

    def __init__(self, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._left_s = patience_s
        self._clock = clock

    async def wait(self, step: Awaitable[T]) -> T:
        """Wait for one step of a transfer. Raises TooSlow if patience runs out first.

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
        """Count the bytes of a step. Raises TooSlow if they came too late."""
        self._left_s = min(self._patience_s, self._left_s + count / LEAST_RATE)
        if self._left_s <= 0:
            raise TooSlow
