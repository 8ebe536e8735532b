"""Limits the memory for decoding: callers wait, so that memory does not grow with their number."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator

from datasette_vision.errors import Busy, InvalidImage
from datasette_vision.util import caller

# The share of the process's memory for decoding. A CLIP server uses 270 MiB: on the smallest machine that we support,
# with 512 MB, this leaves a third for images, and a sixth for requests and batches.
MEMORY_SHARE = 0.32
# 100 megapixels fit in any format. Decoding more at a time does not make a server faster.
MOST_BYTES = 2_000_000_000
# If the available memory is unknown.
UNKNOWN_BYTES = 500_000_000
WAIT_S = 120.0


def default_bytes(available: int | None) -> int:
    """Return the memory for decoding, out of the bytes that the process may use (None: unknown)."""
    return UNKNOWN_BYTES if available is None else min(int(MEMORY_SHARE * available), MOST_BYTES)


class DecodeBudget:
    """Lets images be decoded while they take at most `total` bytes together. Thread-safe.

    First come, first served, so that a large image does not wait forever for many small ones. A caller that waits
    longer than `wait_s` seconds, or past its deadline, gets Busy.
    """

    def __init__(self, total: int, wait_s: float = WAIT_S) -> None:
        self.total = total
        self.wait_s = wait_s
        self._free = total
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def held(self) -> int:
        """The number of reserved bytes."""
        return self.total - self._free

    @property
    def waiting(self) -> int:
        """How many callers are waiting for bytes."""
        return len(self._waiting)

    @contextlib.contextmanager
    def holding(self) -> Iterator[Reservation]:
        """Give an empty reservation. Its bytes are free again when the block ends."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.release(reservation.held)

    def take(self, size: int, *, wait: bool) -> bool:
        """Take bytes once all earlier callers have theirs. Returns whether they were taken, always True with `wait`.

        Raises Busy or DeadlineExceeded on a timeout.
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
                        raise Busy("there is not enough memory to decode this image now: try again later")
                self._free -= size
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        return True

    def release(self, size: int) -> None:
        """Return bytes."""
        with self._changed:
            self._free += size
            self._changed.notify_all()


class Reservation:
    """One caller's part of a budget: empty until it knows how much it needs."""

    def __init__(self, budget: DecodeBudget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, size: int, what: str, *, wait: bool) -> bool:
        """Take bytes to decode `what`. Returns whether they were free, always True with `wait`.

        Raises InvalidImage for more than the whole budget, Busy if the bytes do not become free in time.
        """
        total = self._budget.total
        if size > total:
            raise InvalidImage(
                f"{what} takes {size / 1e6:.0f} MB of memory to decode, more than the {total / 1e6:.0f} MB that are"
                " allowed (image_memory_mb)"
            )
        if not self._budget.take(size, wait=wait):
            return False
        self.held += size
        return True
