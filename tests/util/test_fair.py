"""util/fair_queues.py: who comes next, who has to make room, and threads that work in turns."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from datasette_vision.errors import Busy
from datasette_vision.util.caller import NOBODY, Caller, acting, current
from datasette_vision.util.fair_queues import FairPool, Turns

ANN, ANN_TOO, BOB = Caller("ann"), Caller("ann"), Caller("bob")


def filled(*entries: tuple[Caller, str]) -> Turns[str]:
    turns: Turns[str] = Turns()
    for caller, names in entries:
        for name in names.split():
            turns.add(name, caller)
    return turns


def order(turns: Turns[str]) -> str:
    return " ".join(iter(turns.pop, None))  # type: ignore[arg-type]


def test_one_caller_is_served_first_come_first_served() -> None:
    assert order(filled((ANN, "a b c d"))) == "a b c d"


def test_clients_take_turns_and_so_do_the_callers_of_one() -> None:
    assert order(filled((ANN, "a1 a2 a3 a4"), (BOB, "b1 b2"))) == "a1 b1 a2 b2 a3 a4"
    assert order(filled((ANN, "a1 a2 a3"), (ANN_TOO, "A1 A2"), (BOB, "b1 b2 b3"))) == "a1 b1 A1 b2 a2 b3 A2 a3"
    assert order(filled((NOBODY, "n1 n2"), (BOB, "b1 b2 b3"))) == "n1 b1 n2 b2 b3"


def test_who_comes_back_waits_for_the_others() -> None:
    turns = filled((ANN, "a1 a2"), (BOB, "b1"))
    assert turns.pop() == "a1"
    assert turns.pop() == "b1"
    turns.add("b2", BOB)
    assert order(turns) == "a2 b2"


def test_an_entry_leaves_from_anywhere() -> None:
    turns = filled((ANN, "a1 a2 a3"), (BOB, "b1"))
    assert turns.remove("a2", ANN)
    assert not turns.remove("a2", ANN)
    assert not turns.remove("b1", ANN)
    assert not turns.remove("x", Caller("carl"))
    assert (len(turns), turns.count("ann"), turns.count("bob"), turns.count("carl")) == (3, 2, 1, 0)
    assert turns.remove("b1", BOB)
    assert order(turns) == "a1 a3"
    assert (len(turns), turns.first(), turns.pop()) == (0, None, None)


def test_the_newest_of_the_heaviest_makes_room_unless_that_changes_nothing() -> None:
    turns = filled((ANN, "a1 a2 a3"), (ANN_TOO, "A1"), (BOB, "b1"))
    assert turns.crowd_out("bob") == "a3"  # 4 and 1
    assert turns.crowd_out("bob") == "a2"  # 3 and 1
    assert turns.crowd_out("bob") is None  # 2 and 1: the other way round afterwards
    assert turns.crowd_out("carl") in ("a1", "A1")
    assert turns.crowd_out("carl") is None
    assert turns.crowd_out("ann") is None


def test_nobody_s_work_is_never_crowded_out() -> None:
    turns = filled((NOBODY, "n1 n2 n3 n4"), (BOB, "b1 b2"))
    assert turns.crowd_out("ann") == "b2"
    assert turns.crowd_out("ann") is None
    assert filled((NOBODY, "n1 n2 n3 n4")).crowd_out("ann") is None


@pytest.fixture
def pool() -> Iterator[FairPool]:
    pool = FairPool(1, "test-fair")
    yield pool
    pool.close()


def hold(pool: FairPool) -> threading.Event:
    """Keep the one thread busy until the event is set."""
    entered, go = threading.Event(), threading.Event()

    def stay() -> None:
        entered.set()
        assert go.wait(60)

    pool.submit(stay)
    assert entered.wait(60)
    return go


def test_a_pool_runs_in_turns_for_the_caller_that_submitted(pool: FairPool) -> None:
    go, ran = hold(pool), []

    def note(name: str) -> None:
        ran.append((name, current()))

    futures = []
    for caller, names in ((ANN, ("a1", "a2", "a3")), (BOB, ("b1",))):
        with acting(caller):
            futures += [pool.submit(note, name) for name in names]
    go.set()
    for future in futures:
        assert future.result(60) is None
    assert ran == [("a1", ANN), ("b1", BOB), ("a2", ANN), ("a3", ANN)]


def test_what_is_cancelled_in_a_pool_is_not_run(pool: FairPool) -> None:
    go, ran = hold(pool), []
    first, second, third = (pool.submit(ran.append, number) for number in (1, 2, 3))
    assert second.cancel()
    go.set()
    assert third.result(60) is first.result(60) is None
    assert ran == [1, 3]


def test_errors_come_out_of_the_future_and_a_closed_pool_is_busy(pool: FairPool) -> None:
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(60)
    go = hold(pool)
    waiting = pool.submit(current)
    pool.close()
    with pytest.raises(Busy, match="no more work can be accepted now"):
        pool.submit(current)
    go.set()
    assert waiting.result(60) is NOBODY
