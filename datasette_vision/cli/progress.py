"""The progress of a long command: a bar with rate and time left on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import click

from datasette_vision.util.progress import OnProgress, Progress, no_progress

BAR_WIDTH = 24
REDRAW_S = 0.2
LINE_EVERY_S = 15.0
RATE_OVER_S = 30.0


class Counts(Protocol):
    """The counts to show: all items, finished items, and failed items."""

    total: int
    failed: int

    @property
    def done(self) -> int: ...


class ProgressBar:
    """Shows counts on stderr as they grow. As a context manager, it ends with a line break."""

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label = label
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._shown = time.monotonic()
        self._history: deque[tuple[float, int]] = deque()
        self._drawn = False

    def __call__(self, counts: Counts) -> None:
        """Show the counts, at most a few times a second."""
        now = time.monotonic()
        if not self._history or now - self._history[-1][0] >= REDRAW_S:
            self._history.append((now, counts.done))
            while now - self._history[0][0] > RATE_OVER_S:
                self._history.popleft()
        if self._quiet or now - self._shown < (REDRAW_S if self._terminal else LINE_EVERY_S):
            return
        self._shown = now
        if self._terminal:
            self._drawn = True
            columns = shutil.get_terminal_size().columns or 80  # Python 3.10 returns 0 for a terminal of unknown width
            click.echo(f"\r{self._fitted(counts, columns - 1)}", nl=False, err=True)
        else:
            click.echo("  ".join([self._label, *self._parts(counts)]), err=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            click.echo("", err=True)

    def rate(self) -> float:
        """Return the items per second over the last half minute."""
        if len(self._history) < 2:
            return 0.0
        (began, first), (ended, last) = self._history[0], self._history[-1]
        return (last - first) / (ended - began)

    def _fitted(self, counts: Counts, width: int) -> str:
        """Return a line of exactly this width. The bar fills the space that the text leaves."""
        text = "  ".join(self._parts(counts))
        bar = ""
        room = min(BAR_WIDTH, width - len(self._label) - len(text) - 6)
        if room > 0:
            filled = int(room * min(1.0, _share(counts)))
            bar = f"[{'#' * filled}{'-' * (room - filled)}]  "
        return f"{self._label}  {bar}{text}"[:width].ljust(width)

    def _parts(self, counts: Counts) -> list[str]:
        parts = [f"{counts.done:,} of {counts.total:,} ({100 * _share(counts):.0f} %)"]
        rate = self.rate()
        if rate:
            parts += [f"{rate:,.1f}/s", f"{_duration((counts.total - counts.done) / rate)} left"]
        if counts.failed:
            parts.append(f"{counts.failed:,} failed")
        return parts


@contextlib.contextmanager
def progress_bars() -> Iterator[OnProgress[Progress]]:
    """Show each step with a bar of its own, in a terminal."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    with contextlib.ExitStack() as stack:
        bars: dict[str, Any] = {}

        def on_progress(progress: Progress) -> None:
            step = progress.step
            if step not in bars:
                stack.pop_all().close()
                bars[step] = stack.enter_context(
                    click.progressbar(length=progress.total, label=step.capitalize(), file=sys.stderr, show_pos=True)
                )
            bars[step].update(progress.done - bars[step].pos)

        yield on_progress


def _share(counts: Counts) -> float:
    return counts.done / counts.total if counts.total else 1.0


def _duration(seconds: float) -> str:
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
