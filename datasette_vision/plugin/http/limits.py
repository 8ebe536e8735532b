"""Limits on the requests that a server processes at a time, so that memory stays bounded and every client gets a turn.

What is held here belongs to requests: the bytes of their bodies and answers, and the inputs that they wait for.
How many inputs are made ready and computed at a time is the batcher's affair.

Used from the event loop alone, so without locks, but for the rate, which SQL threads charge too.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from datasette_vision.config.settings import Config, RateLimits
from datasette_vision.errors import Busy
from datasette_vision.plugin.http.responses import too_large, too_many
from datasette_vision.plugin.http.transfer_rate import PATIENCE_S

# The memory for bodies, in multiples of the largest request, and the share that one client may hold.
LARGEST_REQUESTS = 2.0
CLIENT_LARGEST_REQUESTS = 1.5
# Bodies up to this size have separate memory, so that large ones never block them.
SMALL_BODY_BYTES = 262_144
LEAST_SMALL_ROOM = 16 * SMALL_BODY_BYTES
CLIENTS_OF_SMALL_ROOM = 4
# Small requests have separate places too: a word is not refused because of another client's 300 texts. Small means at
# most this many inputs, or this part of max_queue. One client leaves some of the places to others.
FEW_INPUTS, FEW_PART = 16, 16
CLIENT_FEW_PLACES = 0.75
# The memory that a request takes besides its body. It limits the number of unfinished requests.
REQUEST_BYTES = 4096
# The number of clients whose use is remembered, and the buckets that new clients share above that.
MAX_CLIENTS = 10_000
SHARED_PLACES = 256
# Tolerance for rounding: times are added up as floats.
ROUNDING = 0.001


class Limits:
    """The limits of one server, and their current use."""

    def __init__(
        self, config: Config, clock: Callable[[], float] = time.monotonic, patience_s: float = PATIENCE_S
    ) -> None:
        self.max_request_bytes = int(config.max_request_mb * 1_000_000)
        self.max_inputs = min(config.max_inputs, config.max_queue)
        self.many = Room(config.max_queue, config.max_queue)
        self.few = Room(config.max_queue, max(1, int(CLIENT_FEW_PLACES * config.max_queue)))
        self.few_inputs = max(1, min(FEW_INPUTS, config.max_queue // FEW_PART))
        largest = self.max_request_bytes
        self.max_held_bytes = int(CLIENT_LARGEST_REQUESTS * largest)
        self.large = Room(int(LARGEST_REQUESTS * largest), self.max_held_bytes)
        small = max(LEAST_SMALL_ROOM, largest // 2)
        self.small = Room(small, small // CLIENTS_OF_SMALL_ROOM)
        self._answers = Room(int(LARGEST_REQUESTS * largest), largest)
        self.parsing = asyncio.Lock()
        self.patience_s = patience_s
        self.clock = clock
        self._rate = RateLimit(config.rate_limit, clock) if config.rate_limit is not None else None

    @property
    def inputs(self) -> int:
        """The number of inputs of requests in progress."""
        return self.many.held + self.few.held

    @property
    def bytes(self) -> int:
        """The bytes that requests hold."""
        return self.small.held + self.large.held

    @contextmanager
    def share(self, client: str) -> Iterator[Share]:
        """Reserve a client's share of the server while its request is processed."""
        share = Share(self, client)
        try:
            yield share
        finally:
            share.release()

    @contextmanager
    def answer(self, client: str) -> Iterator[Callable[[int], None]]:
        """Give a function that counts the bytes of a large response to a client, once, until the block ends and it is
        sent.

        It raises a 413 if the response is too large, and Busy if too many responses are waiting to be read.
        """
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            if count > self._answers.each:
                raise too_large(
                    f"expected a request whose response has at most {self._answers.each:,} bytes"
                    f" (max_request_mb), found"
                    f" {count:,}: send fewer inputs at a time"
                )
            self._answers.move(client, 0, count)
            held = count

        try:
            yield hold
        finally:
            self._answers.move(client, held, 0)

    def charge(self, client: str, texts: int = 0, images: int = 0) -> None:
        """Count inputs against a client's rate. Raises a 429 if it is used up. Thread-safe."""
        if self._rate is not None:
            self._rate.charge(client, texts, images)


class Room:
    """Limits bytes, or places, that are held at a time: in total, and by each client."""

    def __init__(self, total: int, each: int) -> None:
        self.total = total
        self.each = each
        self.held = 0
        self._clients: dict[str, int] = {}

    def move(self, client: str, before: int, after: int) -> None:
        """Hold `after` bytes for a client instead of `before`. Raises Busy, without any change."""
        own = self._clients.get(client, 0) - before + after
        if after > before:
            if own > self.each:
                raise Busy("your other requests are still in progress: try again in a moment")
            if self.held - before + after > self.total:
                raise Busy("other requests use all the memory for requests: try again in a moment")
        self.held += after - before
        if own:
            self._clients[client] = own
        else:
            self._clients.pop(client, None)

    def move_to(self, room: Room, client: str, before: int, after: int) -> None:
        """Hold `after` in another room, or in this one, instead of `before` here. Raises as move() does."""
        if room is self:
            self.move(client, before, after)
            return
        room.move(client, 0, after)
        self.move(client, before, 0)


class Share:
    """The resources that one request holds."""

    def __init__(self, limits: Limits, client: str) -> None:
        self._limits = limits
        self._client = client
        self._room = limits.small
        self._places = limits.few
        self.inputs = 0
        self.bytes = 0

    @property
    def max_held_bytes(self) -> int:
        """The maximum bytes that a request may hold for its body, raw or parsed."""
        return self._limits.max_held_bytes

    @property
    def parsing(self) -> asyncio.Lock:
        """Held while a large body is parsed."""
        return self._limits.parsing

    @property
    def patience_s(self) -> float:
        """Seconds that a client may be behind with its body."""
        return self._limits.patience_s

    @property
    def clock(self) -> Callable[[], float]:
        """The clock of these limits, in seconds."""
        return self._limits.clock

    def expect_bytes(self, count: int) -> None:
        """Raise a 413 if a request announces a larger body than allowed."""
        if count > self._limits.max_request_bytes:
            raise too_large(
                f"expected a request of at most {self._limits.max_request_bytes:,} bytes (max_request_mb),"
                " found a larger one"
            )

    def hold(self, total: int) -> None:
        """Hold this many bytes of memory instead of those held before. Raises Busy, without any change.

        Up to SMALL_BODY_BYTES come from the memory for small requests.
        """
        room = self._limits.small if total <= SMALL_BODY_BYTES else self._limits.large
        self._room.move_to(room, self._client, self.bytes, total)
        self._room, self.bytes = room, total

    def take_inputs(self, *, texts: int = 0, images: int = 0) -> None:
        """Reserve a place for each input. Raises a 413, a 429, or Busy if all places are taken.

        Embeddings count as texts.
        """
        count = texts + images
        if count > self._limits.max_inputs:
            raise too_large(
                f"expected at most {self._limits.max_inputs:,} inputs in a request (max_inputs), found {count:,}"
            )
        places = self._limits.few if self.inputs + count <= self._limits.few_inputs else self._limits.many
        try:
            self._places.move_to(places, self._client, self.inputs, self.inputs + count)
        except Busy:
            raise Busy(f"{places.held:,} inputs are waiting already (max_queue): try again in a moment") from None
        self._places = places
        self.inputs += count
        self.charge(texts=texts, images=images)

    def release(self) -> None:
        """Release everything."""
        self._places.move(self._client, self.inputs, 0)
        self.inputs = 0
        self.hold(0)

    def charge(self, *, texts: int = 0, images: int = 0) -> None:
        """Count work against the client's rate. Raises a 429."""
        self._limits.charge(self._client, texts, images)


class RateLimit:
    """A rate of inputs per minute for each client, or of images and texts, which can be saved up for a while.
    Thread-safe.

    A request passes while anything is left, whatever its size. The client then waits until the excess is made up. So a
    limit below the size of a request makes such requests rare, but not impossible.
    """

    def __init__(
        self, limit: int | RateLimits, clock: Callable[[], float] = time.monotonic, max_clients: int = MAX_CLIENTS
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        rates = {"inputs": limit} if isinstance(limit, int) else {"images": limit.images, "texts": limit.texts}
        burst_s = 60.0 if isinstance(limit, int) else limit.burst_seconds
        self._buckets = {
            kind: Buckets(per_minute, burst_s, max_clients) for kind, per_minute in rates.items() if per_minute
        }

    def charge(self, client: str, texts: int, images: int) -> None:
        """Subtract inputs from a client's allowance. Raises a 429 with the time to wait if none is left, and subtracts
        nothing.
        """
        counts = {"inputs": texts + images, "texts": texts, "images": images}
        with self._lock:
            now = self._clock()
            asked = [(kind, buckets) for kind, buckets in self._buckets.items() if counts[kind]]
            for kind, buckets in asked:
                left = buckets.left(client, now)
                if left < 1 - ROUNDING:
                    raise too_many(
                        f"expected at most {buckets.per_minute:,} {kind} a minute (rate_limit): try again later",
                        (1 - left) * 60 / buckets.per_minute,
                    )
            for kind, buckets in asked:
                buckets.take(client, counts[kind], now)


class Buckets:
    """The allowance of each client for one kind of input.

    Stores the time at which a client's bucket will be full again, and only for buckets that are not full: forgetting a
    full one changes nothing. So a client cannot make the server forget an empty bucket by sending from many addresses.
    If there are too many clients, new ones share a few buckets.
    """

    def __init__(self, per_minute: int, burst_s: float, max_clients: int) -> None:
        self.per_minute = per_minute
        self._second = per_minute / 60
        self._most = max(1.0, burst_s * self._second)
        self._max_clients = max_clients
        self._full_at: dict[str | int, float] = {}
        self._swept_at = -math.inf

    def __len__(self) -> int:
        return len(self._full_at)

    def left(self, client: str, now: float) -> float:
        """Return the inputs that a client has left. Below 0, it is over its limit."""
        return self._most - max(0.0, self._full_at.get(self._place(client, now), now) - now) * self._second

    def take(self, client: str, count: int, now: float) -> None:
        """Subtract inputs from a client's allowance."""
        place = self._place(client, now)
        self._full_at[place] = max(now, self._full_at.get(place, now)) + count / self._second

    def _place(self, client: str, now: float) -> str | int:
        if client in self._full_at or len(self._full_at) < self._max_clients:
            return client
        if now >= self._swept_at + 1:  # not at every request
            self._swept_at = now
            self._full_at = {place: full_at for place, full_at in self._full_at.items() if full_at > now}
            if len(self._full_at) < self._max_clients:
                return client
        # Python salts the hash of a str, so nobody can choose which bucket to share.
        return hash(client) % SHARED_PLACES
