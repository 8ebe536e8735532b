"""A value that is made on first use, once, however many threads request it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lazy(Generic[T]):
    """Calls `make` at the first `get()`. If `make` raises, the next `get()` tries again.

    `make` must not return None, which means "not made yet", and must not request the same value.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._value: T | None = None
        self._last_used = 0.0

    @property
    def loaded(self) -> bool:
        """Whether the value is there. Never waits."""
        return self._value is not None

    def get(self) -> T:
        """Return the value, making it first if necessary."""
        self._last_used = time.monotonic()
        value = self._value
        if value is None:
            with self._lock:
                value = self._value
                if value is None:
                    value = self._value = self._make()
                    self._last_used = time.monotonic()  # making it may take long: idle time counts from here
        return value

    def forget(self, idle_s: float = 0.0) -> bool:
        """Drop the value if nobody requested it in the last `idle_s` seconds; return whether it was dropped.

        Existing references stay valid. The next `get()` makes the value again.
        """
        with self._lock:
            if self._value is None or time.monotonic() - self._last_used < idle_s:
                return False
            self._value = None
            return True
