"""Where the time of a start goes: one line, when all is ready."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import pytest

from datasette_vision.plugin.server.startup_timeline import Timeline, process_began
from tests.servers import serve


def test_the_line_comes_when_all_parts_are_over(caplog: pytest.LogCaptureFixture) -> None:
    timeline = Timeline("models", "server")
    with caplog.at_level(logging.INFO, "uvicorn.error"):
        timeline.mark("a text")
        timeline.over("models")
        assert caplog.messages == []
        timeline.mark("server started")
        timeline.over("server")
        timeline.over("server")
    (line,) = caplog.messages
    assert re.fullmatch(r"start, in seconds: a text \d+\.\d\d, server started \d+\.\d\d", line)


def test_a_mark_stays_where_it_was_first() -> None:
    timeline = Timeline("models")
    timeline.mark("x")
    before = str(timeline)
    time.sleep(0.02)
    timeline.mark("x")
    assert str(timeline) == before


def test_the_process_began_before_this_test_and_after_the_machine() -> None:
    assert 0 < process_began() <= time.monotonic()
    assert abs(process_began() - process_began()) < 1  # the same moment, told twice


def test_a_server_tells_where_its_start_went(tmp_path: Path) -> None:
    with serve(tmp_path, config={"datasette-vision": {"preload": ["tiny-emoji"]}}) as server:
        for _ in range(600):
            if "start, in seconds" in server.log:
                break
            time.sleep(0.05)
        line = next(line for line in server.log.splitlines() if "start, in seconds" in line)
    for name in ("Datasette imported", "server started", "tiny-emoji text", "tiny-emoji image"):
        assert re.search(rf"{name} \d+\.\d\d", line), line
