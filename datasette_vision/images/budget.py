"""How much memory decoding may take at a time: callers wait, so that memory does not grow with their number."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator

from datasette_vision.errors import Busy, InvalidImage
from datasette_vision.util import caller

# What decoding may take of the memory that the process may hold. A server of CLIP holds 270 MiB: on the smallest
# machine that we ship for, of 512 MB, a third is left for pictures, and a sixth for requests and batches.
MEMORY_SHARE = 0.32
# 100 megapixels fit, whatever the format: no server is better for decoding more at a time.
MOST_BYTES = 2_000_000_000
# Where the system does not tell how much memory there is.
UNKNOWN_BYTES = 500_000_000
WAIT_S = 120.0


def default_bytes(available: int | None) -> int:
    """Return the bytes that decoding may take at a time, of those that the process may hold (None: not known)."""
    return UNKNOWN_BYTES if available is None else min(int(MEMORY_SHARE * available), MOST_BYTES)


class DecodeBudget:
    """Lets images be decoded as long as that takes at most `total` bytes together. Thread-safe.

    First come, first served: a large image does not wait for ever beside many small ones. Whoever waits longer than
    `wait_s` seconds, or than its caller has time, gets Busy.
    """

    def __init__(self, total: int, wait_s: float = WAIT_S) -> None:
        self.total = total
        self.wait_s = wait_s
        self._free = total
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def held(self) -> int:
        """The bytes that are reserved now."""
        return self.total - self._free

    @property
    def waiting(self) -> int:
        """How many wait for bytes."""
        return len(self._waiting)

    @contextlib.contextmanager
    def holding(self) -> Iterator[Reservation]:
        """Give a reservation of nothing yet. What it holds is free again when the block ends."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.release(reservation.held)

    def take(self, size: int, *, wait: bool) -> bool:
        """Take bytes, once all who came before have theirs: whether they are taken, always so when it waits.

        Raises Busy or DeadlineExceeded when that takes too long.
        """
        ticket = object()
        with self._changed:
            if not wait and (self._waiting or self._free < size):
                return False
            self._waiting.append(ticket)
            try:
                end = time.monotonic() + caller.current().seconds_left(self.wait_s)
                while self._waiting[0] is not ticket or self._free < size:
                    if not self._changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                        caller.current().seconds_left(self.wait_s)
                        raise Busy("no memory came free to decode this image: try again later")
                self._free -= size
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        return True

    def release(self, size: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._free += size
            self._changed.notify_all()


class Reservation:
    """What one caller holds of a budget: nothing, until it knows how much it needs."""

    def __init__(self, budget: DecodeBudget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, size: int, what: str, *, wait: bool) -> bool:
        """Take bytes for `what` is decoded: whether they were free, which they are in the end when it waits.

        Raises InvalidImage for more than the whole budget, Busy when the bytes do not come free in time.
        """
        total = self._budget.total
        if size > total:
            raise InvalidImage(
                f"{what} takes {size / 1e6:.0f} MB of memory to decode, more than the {total / 1e6:.0f} MB that there"
                " are for it (image_memory_mb)"
            )
        if not self._budget.take(size, wait=wait):
            return False
        self.held += size
        return True
