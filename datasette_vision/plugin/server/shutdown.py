"""The orderly end of a server: what is running is finished, what waits to be written is written, all is closed.

A server ends in one of three ways. A signal: the ASGI server stops listening, finishes its requests and sends
lifespan.shutdown. datasette-scale-to-zero: the event loop is torn down and cancels the lifespan task. Or work that does
not end: after `shutdown_seconds` the process closes what it can and goes, before its platform kills it.
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
# Left of shutdown_seconds for closing, once waiting for work has used up the rest.
CLOSING_S = 2.0


class Shutdown:
    """Ends one server, once."""

    def __init__(
        self,
        datasette: Datasette,
        activity: Activity,
        close: Callable[[], None],
        limit_s: Callable[[], float],
        started: Callable[[], None] = lambda: None,
    ) -> None:
        """`close` ends what the plugin itself runs; `limit_s` gives the time from a signal to the process's end.

        It is asked when the server starts: before that, the configuration has not been checked. `started` is called
        when it has.
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
        """Wrap an ASGI application so that its end, however it comes, is orderly."""

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                await application(scope, receive, send)
                return

            async def received() -> Any:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    # Before anyone closes a database: work in the background may still write to it.
                    await asyncio.to_thread(self._finish_work)
                return message

            async def sent(message: Any) -> None:
                if message["type"].startswith("lifespan.shutdown."):
                    # Whoever hears this may end the process at once.
                    await asyncio.to_thread(self.close)
                await send(message)
                if message["type"] == "lifespan.startup.complete":
                    self._started()

            self._limit_s = self._configured_limit()
            self._listen()
            try:
                await application(scope, received, sent)
            finally:
                self.close()  # cancelled: the loop is on its way out, and nothing else runs on it

        return watched

    def close(self) -> None:
        """Stop what the plugin runs, write what waits to be written and close the databases. Once."""
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
            logger.error("ending although these still run: %s", self._activity.running())

    def _listen(self) -> None:
        """Have the signals that end the process start the clock, before whoever handles them now does so."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may, and only it is told
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
        """End the process when it has not ended by itself in the time there is."""
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
