"""Tracks work in progress: requests, and background work. While there is any, the server does not go to sleep.

After a burst of requests, the memory that they left behind is given back to the system.

datasette-scale-to-zero notes the time at the start of each request and ends the process `duration` later, whatever is
running. Here it is asked to end nothing while there is work, and the silence counts from the end of the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from datasette_vision.util import memory

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger(__name__)

# An ASGI application: scope, receive, send.
Application = Callable[[Any, Any, Any], Awaitable[None]]

SCALE_TO_ZERO = "datasette_scale_to_zero"
LAST_REQUEST = "_scale_to_zero_last_asgi"
# After so many requests, once none has been under way for so long, freed memory is given back to the system.
BURST_REQUESTS = 32
BURST_OVER_S = 1.0


class Activity:
    """Counts the work in progress in one server. Thread-safe."""

    def __init__(
        self,
        on_silence: Callable[[], None] = lambda: None,
        trim: Callable[[], object] = memory.trim,
        burst_over_s: float = BURST_OVER_S,
    ) -> None:
        """`on_silence` is called when the last work has ended, on the thread that ended it."""
        self._on_silence = on_silence
        self._trim = trim
        self._burst_over_s = burst_over_s
        self._requests = 0
        self._untrimmed = 0  # requests since memory was given back
        self._running: Counter[str] = Counter()
        self._changed = threading.Condition()
        self.stopping = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether any work is in progress."""
        return bool(self._running)

    def running(self) -> dict[str, int]:
        """Return how many of each kind of work are in progress."""
        with self._changed:
            return dict(self._running)

    @contextlib.contextmanager
    def keep_awake(self, what: str) -> Iterator[threading.Event]:
        """Keep the server awake while the block runs, on any thread. `what` names the work in the log.

        Gives an event that is set when the server is stopped. Long work checks it between two steps, and stops where it
        can continue the next time.
        """
        with self._changed:
            self._running[what] += 1
        try:
            yield self.stopping
        finally:
            with self._changed:
                self._running[what] -= 1
                if not self._running[what]:
                    del self._running[what]
                silent = not self._running
                if silent:
                    self._changed.notify_all()
            if silent:
                self._on_silence()

    def wait(self, timeout_s: float) -> bool:
        """Wait until no work is in progress, for at most `timeout_s` seconds. Return whether there is none."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout_s)

    def watch(self, application: Application) -> Application:
        """Wrap an ASGI application so that each request counts until its response is complete."""

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":  # lasts as long as the server
                await application(scope, receive, send)
                return
            self._requests += 1
            self._untrimmed += 1
            try:
                with self.keep_awake("requests"):
                    await application(scope, receive, send)
            finally:
                if self._untrimmed >= BURST_REQUESTS and not self.busy:
                    loop = asyncio.get_running_loop()
                    loop.call_later(self._burst_over_s, self._end_burst, loop, self._requests)

        return watched

    def _end_burst(self, loop: asyncio.AbstractEventLoop, requests: int) -> None:
        """Give memory back, unless there was another request since there were so many."""
        if requests == self._requests:
            self._untrimmed = 0
            loop.run_in_executor(None, self._trim)


def silence_begins(datasette: Datasette) -> None:
    """Tell datasette-scale-to-zero, if it is running, that the silence starts now."""
    if hasattr(datasette, LAST_REQUEST):
        setattr(datasette, LAST_REQUEST, time.monotonic())


def guard_exit(activity_of: Callable[[Datasette], Activity]) -> None:
    """Keep datasette-scale-to-zero, if it is installed, from ending a process that is at work.

    It calls do_exit() every second once the time has come, so skipping a call delays the exit. Does nothing the second
    time.
    """
    module = sys.modules.get(SCALE_TO_ZERO)
    original = getattr(module, "do_exit", None)
    if original is None or hasattr(original, "spares_work"):
        return

    def do_exit(datasette: Datasette) -> None:
        # Disabled before each call, so that an exit leaves no traceback, while other errors are still reported.
        logging.getLogger("uvicorn.error").disabled = False
        if activity_of(datasette).busy:
            return
        print("datasette-scale-to-zero: no requests for a while, exiting", file=sys.stderr)  # noqa: T201
        logging.getLogger("uvicorn.error").disabled = True
        original(datasette)

    do_exit.spares_work = True  # type: ignore[attr-defined]
    module.do_exit = do_exit  # type: ignore[union-attr]
