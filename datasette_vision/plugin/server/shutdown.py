"""The orderly shutdown of a server: it finishes running work, writes pending data, and closes everything.

A server ends in one of three ways. On a signal, the ASGI server stops listening, finishes its requests and sends
lifespan.shutdown. With datasette-scale-to-zero, the event loop is torn down and cancels the lifespan task. If work does
not end, the process closes what it can after `shutdown_seconds` and exits, before its platform kills it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasette_vision.plugin.server.activity import Activity, Application
from datasette_vision.plugin.server.compatibility import close_databases

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The part of shutdown_seconds that is left for closing, after waiting for work.
CLOSING_S = 2.0


class Shutdown:
    """Shuts one server down, once."""

    def __init__(
        self,
        datasette: Datasette,
        activity: Activity,
        close: Callable[[], None],
        limit_s: Callable[[], float],
        started: Callable[[], None] = lambda: None,
    ) -> None:
        """`close` stops what the plugin itself runs. `limit_s` returns the time from a signal to the process's end.

        It is called when the server starts: before that, the configuration has not been checked. `started` is called
        after startup.
        """
        self._datasette = datasette
        self._activity = activity
        self._close = close
        self._configured_limit = limit_s
        self._started = started
        self._limit_s = 0.0
        self._deadline: float | None = None
        self._lock = threading.Lock()
        self._closed = False

    def watch(self, application: Application) -> Application:
        """Wrap an ASGI application so that its shutdown, however it comes, is orderly."""

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                await application(scope, receive, send)
                return

            async def received() -> Any:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    # Before anything closes a database: background work may still write to it.
                    await asyncio.to_thread(self._finish_work)
                return message

            async def sent(message: Any) -> None:
                if message["type"].startswith("lifespan.shutdown."):
                    # The receiver of this message may end the process at once.
                    await asyncio.to_thread(self.close)
                await send(message)
                if message["type"] == "lifespan.startup.complete":
                    self._started()

            self._limit_s = self._configured_limit()
            self._listen()
            try:
                await application(scope, received, sent)
            finally:
                self.close()  # cancelled: the loop is about to close, and nothing else runs on it

        return watched

    def close(self) -> None:
        """Stop what the plugin runs, write pending data and close the databases. Once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._activity.stopping.set()
            for step in (self._close, lambda: close_databases(self._datasette, self._left())):
                try:
                    step()
                except Exception:
                    logger.exception("closing failed")

    def _left(self) -> float:
        """Seconds until the end of the process."""
        return self._limit_s if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _finish_work(self) -> None:
        self._activity.stopping.set()
        if not self._activity.wait(max(0.0, self._left() - CLOSING_S)):
            logger.error("shutting down while these still run: %s", self._activity.running())

    def _listen(self) -> None:
        """Start the clock on the signals that end the process, before their current handlers run."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread can set handlers
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, self._before(handler))

    def _before(self, handler: Callable[[int, Any], Any]) -> Callable[[int, Any], None]:
        def handle(number: int, frame: Any) -> None:
            if self._deadline is None:
                self._deadline = time.monotonic() + self._limit_s
                threading.Thread(
                    target=self._end_late, args=(number,), name="datasette-vision-end", daemon=True
                ).start()
            handler(number, frame)

        return handle

    def _end_late(self, number: int) -> None:
        """End the process if it has not ended in time."""
        assert self._deadline is not None
        self._activity.stopping.set()
        time.sleep(max(0.0, self._deadline - CLOSING_S - time.monotonic()))
        running = self._activity.running()
        logger.error("still running %g seconds after the signal, and cut short: %s", self._limit_s - CLOSING_S, running)
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(self._left())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + number)
