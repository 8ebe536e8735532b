"""Bulk commands, killed at random moments and run again. benchmarks/kills.py kills each of them thirty times."""

from __future__ import annotations

import dataclasses
import sqlite3
import sys
from pathlib import Path

import pytest

from tests import kills
from tests.kills import SCENARIOS, Scenario

KILLS = 2


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_end_is_that_of_a_run_in_one_go(scenario: Scenario, tmp_path: Path) -> None:
    report = kills.killed(dataclasses.replace(scenario, size=scenario.size // 2), tmp_path, KILLS, seed=2)
    assert report.problems == []
    assert len(report.moments) == KILLS
    assert report.ends >= 1


def test_what_is_lost_is_noticed(tmp_path: Path) -> None:
    kills.make_embedded(tmp_path, 50)
    expected = kills.database_end(tmp_path)
    assert kills.differences(expected, kills.database_end(tmp_path)) == []
    for sql, key in (
        ("update _vision_photos set embedding = zeroblob(1024) where id = 7", "rows of _vision_photos"),
        ("delete from photos where id = 3", "rows of photos"),
        ("create table left_behind (a)", "schema"),
    ):
        with sqlite3.connect(tmp_path / kills.DATABASE) as connection:
            connection.execute(sql)
        connection.close()
        problems = kills.differences(expected, kills.database_end(tmp_path))
        assert any(problem.startswith(f"{key}: ") for problem in problems), problems
    (tmp_path / ".part").touch()
    assert any(problem.startswith("files: ") for problem in kills.differences(expected, kills.database_end(tmp_path)))
