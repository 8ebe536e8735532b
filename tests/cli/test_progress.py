"""cli/progress.py: what a terminal and a pipe are shown of work that goes on."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time

import pytest

from datasette_vision.bulk.tally import Summary
from datasette_vision.cli import progress
from datasette_vision.cli.progress import ProgressBar, progress_bars
from datasette_vision.util.progress import Progress


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    counts = Summary(total=5000)
    with ProgressBar("Embedding photos") as shown:
        for second in range(61):
            now = 1000.0 + second
            counts.embedded = 40 * second
            counts.failed = second // 30
            shown(counts)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Embedding photos  600 of 5,000 (12 %)  40.0/s  1:50 left"
    assert lines[-1] == "Embedding photos  2,402 of 5,000 (48 %)  40.0/s  1:05 left  2 failed"
    assert len(lines) == 60 / progress.LINE_EVERY_S


def test_the_rate_is_known_only_when_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    shown = ProgressBar("Embedding photos", quiet=True)
    shown(Summary(total=100, embedded=10))
    shown(Summary(total=100, embedded=20))  # at the same moment
    assert shown.rate() == 0
    now += 2
    shown(Summary(total=100, embedded=20))
    assert shown.rate() == 5


@pytest.mark.parametrize("columns", [40, 50, 51, 52, 60, 80])
def test_the_bar_gets_what_the_words_leave(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
    shown = ProgressBar("Embedding photos")
    now += 1
    shown(Summary(total=5000, embedded=2500))
    line = capsys.readouterr().err
    words = "2,500 of 5,000 (50 %)"
    assert line.startswith("\rEmbedding photos  ")
    assert line.rstrip().endswith(words)
    assert len(line) == columns  # and the cursor stays on the line
    room = columns - 1 - len("Embedding photos") - len(words) - 6
    assert line.count("#") + line.count("-") == max(0, min(progress.BAR_WIDTH, room))


def test_each_step_gets_a_bar_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with progress_bars() as on_progress:
            for done in (1, 2, 4):
                on_progress(Progress("reading", done, 4))
            on_progress(Progress("building the graph", 5, 10))
        shown = capsys.readouterr().err
        if not terminal:
            assert shown == ""
    reading, _, building = shown.partition("Building the graph")
    assert "Reading" in reading
    assert list(dict.fromkeys(re.findall(r"(\d+)/4", reading))) == ["0", "1", "2", "4"]
    assert "5/10" in building
