"""A value that is made when first asked for, once, however many threads ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lazy(Generic[T]):
    """Calls `make` at the first `get()`. When `make` raises, the next `get()` tries again.

    `make` must not return None, which stands for "not made yet", nor ask for this same value.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._value: T | None = None

    @property
    def loaded(self) -> bool:
        """Whether the value is there. Never waits."""
        return self._value is not None

    def get(self) -> T:
        """Return the value, making it first if need be."""
        if self._value is None:
            with self._lock:
                if self._value is None:
                    self._value = self._make()
        return self._value
