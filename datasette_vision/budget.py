"""How many pixels may be decoded at a time: callers wait, so that memory does not grow with their number."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class PixelBudget:
    """Lets pictures be held decoded as long as they are at most `total` pixels together. Thread-safe.

    A limit on the size of a picture bounds what one of them takes; with eight at a time it would have to be an eighth.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Give what reserves pixels, once, and waits until they are free; they are free again when the block ends.

        A picture larger than the whole budget is let in when there is no other.
        """
        held = 0

        def reserve(pixels: int) -> None:
            nonlocal held
            held = min(pixels, self._total)
            with self._changed:
                self._changed.wait_for(lambda: self._free >= held)
                self._free -= held

        try:
            yield reserve
        finally:
            with self._changed:
                self._free += held
                self._changed.notify_all()
