"""util/lazy.py: once, however many ask."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from datasette_vision.util.lazy import Lazy


def test_made_when_first_asked_for_and_once() -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    lazy = Lazy(make)
    assert not lazy.loaded
    assert made == []
    assert lazy.get() is lazy.get() is made[0]
    assert lazy.loaded
    assert len(made) == 1


@pytest.mark.parametrize("value", [0, "", [], False])
def test_a_value_that_is_false_is_a_value(value: object) -> None:
    made: list[object] = []

    def make() -> object:
        made.append(value)
        return value

    lazy = Lazy(make)
    assert lazy.get() is lazy.get() is value
    assert lazy.loaded
    assert len(made) == 1


def test_many_threads_make_it_once() -> None:
    made: list[int] = []
    together = threading.Barrier(16)
    first_is_inside = threading.Event()

    def make() -> list[int]:
        made.append(1)
        first_is_inside.set()
        return made

    lazy = Lazy(make)

    def ask(_: int) -> list[int]:
        together.wait(10)
        return lazy.get()

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(16)))
    assert first_is_inside.is_set()
    assert made == [1]
    assert all(value is made for value in found)


def test_loaded_does_not_wait_for_who_is_making() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def make() -> str:
        inside.set()
        assert go_on.wait(10)
        return "made"

    lazy = Lazy(make)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lazy.get)
        assert inside.wait(10)
        assert not lazy.loaded
        go_on.set()
        assert future.result(10) == "made"
    assert lazy.loaded


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_failed_is_tried_again(error: type[BaseException]) -> None:
    failures = [error("once"), error("twice")]

    def make() -> str:
        if failures:
            raise failures.pop(0)
        return "made"

    lazy = Lazy(make)
    for message in ("once", "twice"):
        with pytest.raises(error, match=message):
            lazy.get()
        assert not lazy.loaded
    assert lazy.get() == "made"


def test_a_forgotten_value_is_made_anew_and_its_holders_keep_theirs() -> None:
    made: list[list[int]] = []
    lazy = Lazy(lambda: made.append([len(made)]) or made[-1])
    first = lazy.get()
    assert lazy.forget()
    assert not lazy.loaded
    assert not lazy.forget()
    assert first == [0]
    assert lazy.get() == [1]


def test_what_was_used_lately_is_not_forgotten() -> None:
    lazy = Lazy(lambda: [1])
    lazy.get()
    assert not lazy.forget(idle_s=1000)
    assert lazy.loaded
