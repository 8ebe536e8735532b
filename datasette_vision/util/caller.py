"""Who a computation is for, and until when: what the queues need to be fair, and what ends work nobody waits for.

A server answers many clients at once. Whatever runs on behalf of one of them runs under `acting(Caller(…))`, on
whichever thread that is; the models' queues ask `current()`. Without one, as in a script or a bulk job, work is
NOBODY's: it has no deadline and is always admitted.
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
        """Admit so many texts and images to a model. With none of either, the work is costly but needs no model.

        `load` loads the model that the work needs; None when it is in memory already.
        """


def _always(*, texts: int = 0, images: int = 0, load: Callable[[], object] | None = None) -> None:
    """Admit whatever comes; the queues load what they need."""


@dataclass(frozen=True, eq=False)
class Caller:
    """One request, query or job. Two callers are never equal, so each is a key of its own in a queue.

    `client` names whom the request comes from: queues take turns among clients first, then among a client's callers.
    `deadline` is in seconds of time.monotonic(). `admit` is called once before inputs are computed that no cache holds,
    and before images are decoded for other ends; it raises when that must not be done now.
    """

    client: str = ""
    deadline: float | None = None
    admit: Admit = _always

    def seconds_left(self, at_most: float) -> float:
        """Return how long this caller may still wait, at most `at_most`. Raises DeadlineExceeded when time is up."""
        if self.deadline is None:
            return at_most
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the time that this query or request has is up")
        return min(left, at_most)


NOBODY = Caller()
_current: ContextVar[Caller] = ContextVar("datasette_vision_caller", default=NOBODY)


def current() -> Caller:
    """Return whom this thread or task computes for."""
    return _current.get()


@contextlib.contextmanager
def acting(caller: Caller) -> Iterator[None]:
    """Compute for `caller` while the block runs, on this thread or in this task."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
