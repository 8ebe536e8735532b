"""What a server takes on at a time, so that its memory stays bounded and everybody gets a turn.

Used from the event loop alone, so without locks.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasette_vision.config import Config
from datasette_vision.errors import Busy
from datasette_vision.plugin.responses import too_large, too_many

# Bodies that are held in memory together, in largest requests.
LARGEST_REQUESTS = 2
# Clients whose use is remembered. Who is forgotten begins anew.
MAX_CLIENTS = 10_000


class Limits:
    """The limits of one server, and what is in hand now."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_request_bytes = int(config.max_request_mb * 1_000_000)
        self.max_inputs = min(config.max_inputs, config.max_queue)
        self.max_queue = config.max_queue
        self.inputs = 0
        self.bytes = 0
        self._rate = RateLimit(config.rate_limit, clock) if config.rate_limit is not None else None

    @contextmanager
    def share(self, client: str) -> Iterator[Share]:
        """Hold a client's part of the server while its request is answered."""
        share = Share(self, client)
        try:
            yield share
        finally:
            self.inputs -= share.inputs
            self.bytes -= share.bytes

    def charge(self, client: str, inputs: int) -> None:
        """Count inputs against a client's rate. Raises the 429 of one that has had its share."""
        if self._rate is not None:
            self._rate.charge(client, inputs)


class Share:
    """What one request holds of the limits."""

    def __init__(self, limits: Limits, client: str) -> None:
        self._limits = limits
        self._client = client
        self.inputs = 0
        self.bytes = 0

    def expect_bytes(self, count: int) -> None:
        """Raise a 413 when a request says that it will send more than it may."""
        if count > self._limits.max_request_bytes:
            raise too_large(
                f"expected a request of at most {self._limits.max_request_bytes:,} bytes (max_request_mb),"
                " found a larger one"
            )

    def take_bytes(self, count: int) -> None:
        """Hold bytes of a body as they come in. Raises a 413, or Busy when others hold too many now."""
        self.expect_bytes(self.bytes + count)
        if self._limits.bytes + count > LARGEST_REQUESTS * self._limits.max_request_bytes:
            raise Busy("other large requests are being answered: try again in a moment")
        self.bytes += count
        self._limits.bytes += count

    def take_inputs(self, count: int) -> None:
        """Hold a place for each input. Raises a 413, a 429, or Busy when all places are taken."""
        if count > self._limits.max_inputs:
            raise too_large(
                f"expected at most {self._limits.max_inputs:,} inputs in a request (max_inputs), found {count:,}"
            )
        if self._limits.inputs + count > self._limits.max_queue:
            raise Busy(f"{self._limits.inputs:,} inputs are waiting already (max_queue): try again in a moment")
        self.charge(count)
        self.inputs += count
        self._limits.inputs += count

    def charge(self, count: int) -> None:
        """Count work against the client's rate. Raises a 429."""
        self._limits.charge(self._client, count)


class RateLimit:
    """So many inputs a minute for each client, saved up for a minute at most.

    A request passes while anything is left, whatever its size, and what it takes too much is made up for by waiting: so
    a limit lower than a request's inputs makes it rare and not impossible.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._per_second = per_minute / 60
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (inputs left, when)

    def charge(self, client: str, inputs: int) -> None:
        """Take inputs off what a client has left. Raises a 429 that says when there will be some."""
        now = self._clock()
        left, when = self._left.pop(client, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - when) * self._per_second)
        refused = left < 1
        self._left[client] = (left if refused else left - inputs), now
        if len(self._left) > MAX_CLIENTS:
            self._left.popitem(last=False)
        if refused:
            raise too_many(
                f"expected at most {self._per_minute:,} inputs a minute (rate_limit): try again later",
                (1 - left) / self._per_second,
            )
