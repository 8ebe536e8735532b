"""Profiles of hypothesis, and the count of what was tried."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz import properties

_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
# A deadline of our own, in processor time, bounds each input: hypothesis's would fail on a busy machine.
settings.register_profile("ci", max_examples=12, deadline=None, print_blob=True, suppress_health_check=_CHECKS)
settings.register_profile("hour", parent=settings.get_profile("ci"), max_examples=1000)
settings.load_profile(os.environ.get("FUZZ_PROFILE", "ci"))

HERE = Path(__file__).parent
# For rounds (see __main__.py): when to start no more properties, and where to add what was tried.
UNTIL = float(os.environ.get("FUZZ_UNTIL", "inf"))
COUNTS = os.environ.get("FUZZ_COUNTS")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the time to properties.py: both use the same timer."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(0))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start no more when the time is up."""
    if HERE in item.path.parents and time.time() > UNTIL:
        pytest.skip("the time is up")


@pytest.fixture(scope="session", autouse=True)
def _stack_on_the_terminal(pytestconfig: pytest.Config) -> None:
    try:
        from _pytest.faulthandler import fault_handler_stderr_fd_key

        properties.stderr = pytestconfig.stash.get(fault_handler_stderr_fd_key, 2)
    except ImportError:
        pass


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many inputs were tried."""
    tried = properties.TRIED
    if not tried:
        return
    if COUNTS:
        with Path(COUNTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(tried) + "\n")
    terminalreporter.section("fuzzing")
    if terminalreporter.config.option.verbose > 0:
        for name, count in sorted(tried.items()):
            terminalreporter.write_line(f"{count:>9,}  {name}")
    terminalreporter.write_line(f"{sum(tried.values()):>9,}  inputs tried, for {len(tried)} properties")


@pytest.fixture(scope="module")
def errors_alone() -> Iterator[None]:
    """Log errors, which come with their traceback, but none of the warnings that thousands of bad inputs deserve."""
    logger = logging.getLogger("datasette_vision")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)
