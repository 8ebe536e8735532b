"""Who a computation is for, and its deadline. Queues use this to be fair, and to stop work that nobody waits for.

A server has many clients at once. Work for one of them runs under `acting(Caller(…))`, on any thread, and the models'
queues call `current()`. Without a caller, as in a script or a bulk job, the caller is NOBODY: its work has no deadline
and is always admitted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from datasette_vision.errors import DeadlineExceeded


class Admit(Protocol):
    """Lets work be done for a caller, or raises."""

    def __call__(self, *, texts: int = 0, images: int = 0, load: Callable[[], object] | None = None) -> None:
        """Admit this many texts and images to a model. With neither, the work is costly but needs no model.

        `load` loads the model for the work; None if it is already in memory.
        """


def _always(*, texts: int = 0, images: int = 0, load: Callable[[], object] | None = None) -> None:
    """Admit everything. The queues load the models."""


@dataclass(frozen=True, eq=False)
class Caller:
    """One request, query or job. Two callers are never equal, so each has its own key in a queue.

    `client` is the client of the request: queues take turns among clients first, then among a client's callers.
    `deadline` is in seconds of time.monotonic(). `admit` is called once before computing inputs that are not in a
    cache, and before decoding images for other purposes. It raises if this is not allowed now.
    """

    client: str = ""
    deadline: float | None = None
    admit: Admit = _always

    def seconds_left(self, at_most: float) -> float:
        """Return how long this caller may still wait, at most `at_most`. Raises DeadlineExceeded if its time is up."""
        if self.deadline is None:
            return at_most
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the time for this query or request is up")
        return min(left, at_most)


NOBODY = Caller()
_current: ContextVar[Caller] = ContextVar("datasette_vision_caller", default=NOBODY)


def current() -> Caller:
    """Return the caller for which this thread or task computes."""
    return _current.get()


@contextlib.contextmanager
def acting(caller: Caller) -> Iterator[None]:
    """Compute for `caller` while the block runs, on this thread or in this task."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
