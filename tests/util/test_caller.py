"""Who a computation is for."""

from __future__ import annotations

import threading
import time

import pytest

from datasette_vision.errors import DeadlineExceeded
from datasette_vision.util.caller import NOBODY, Caller, acting, current


def test_the_caller_is_that_of_the_innermost_block() -> None:
    outer, inner = Caller("a"), Caller("b")
    assert current() is NOBODY
    with acting(outer):
        with acting(inner):
            assert current() is inner
        assert current() is outer
    assert current() is NOBODY


def test_a_caller_is_that_of_its_own_thread() -> None:
    seen = []
    with acting(Caller("a")):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == [NOBODY]


def test_callers_of_one_client_are_different_callers() -> None:
    assert Caller("a") != Caller("a")


def test_without_a_deadline_there_is_all_the_time_that_is_asked_for() -> None:
    assert Caller().seconds_left(120) == 120


def test_a_deadline_shortens_what_is_left() -> None:
    assert 0 < Caller(deadline=time.monotonic() + 5).seconds_left(120) <= 5
    assert Caller(deadline=time.monotonic() + 500).seconds_left(120) == 120


def test_a_deadline_that_has_passed_is_an_error() -> None:
    with pytest.raises(DeadlineExceeded):
        Caller(deadline=time.monotonic() - 1).seconds_left(120)
