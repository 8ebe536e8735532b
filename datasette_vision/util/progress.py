"""How long-running work reports its progress: `on_progress`, a callback with one argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

P = TypeVar("P")

# Called with the progress of the work: a line of text, a Progress, or the summary of a job.
OnProgress = Callable[[P], None]


@dataclass(frozen=True)
class Progress:
    """`done` of `total` items, in one step of the work."""

    step: str
    done: int
    total: int


def no_progress(progress: object) -> None:
    """Ignore the report. The default of every `on_progress`."""
