"""util/garbage.py: what a SQL function waits for never frees what only its own thread may free."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator

import pytest

from datasette_vision.errors import Busy
from datasette_vision.sql.table import FUNCTIONS
from datasette_vision.util.garbage import CollectElsewhere
from tests.paths import ROOT

LEFT_BEHIND = """
import gc, os, sqlite3, sys, threading
from datasette_vision.engine.encoder import load_on
from datasette_vision.sql.registration import register
from datasette_vision.engine.vision import Vision


def collect_as_any_allocation_may():
    thresholds = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    hold = [[n] for n in range(10_000)]
    gc.set_threshold(*thresholds)


class Node:
    pass


def leave_a_cursor(connection):
    node = Node()
    node.cursor = connection.execute("select 1 union all select 2")
    node.cursor.fetchone()
    node.itself = node


def ask(connection, sql):
    answers = []
    query = threading.Thread(target=lambda: answers.append(connection.execute(sql).fetchall()), daemon=True)
    query.start()
    query.join(60)
    return answers


gc.set_threshold(1_000_000)
"""
WHILE_IT_WAITS = """
def make_loader(threads, providers=()):
    inner = load_on(threads, providers)

    def load(path, inputs, output):
        collect_as_any_allocation_may()
        return inner(path, inputs, output)

    return load


vision = Vision(load=make_loader)
connection = sqlite3.connect(":memory:", check_same_thread=False)
register(connection, lambda: vision)
leave_a_cursor(connection)
answers = ask(connection, "select length(vision_embed('cat'))")
"""
BETWEEN_TWO_ROWS = """
vision = Vision()
connection = sqlite3.connect(":memory:", check_same_thread=False)
register(connection, lambda: vision)
vision.embed_text("b")
connection.execute("select vision_embed('warm')").fetchone()
between, over = threading.Event(), threading.Event()


def pause():
    between.set()
    return over.wait(60)


def work():
    between.wait()
    threading.Timer(2, over.set).start()
    while not over.wait(0.05):
        with vision.cache._lock:  # which the next call needs
            collect_as_any_allocation_may()


connection.create_function("pause", 0, pause)
leave_a_cursor(connection)
threading.Thread(target=work, daemon=True).start()
answers = ask(connection, "select vision_embed('a') is not null, pause(), vision_embed('b') is not null")
"""


@pytest.mark.parametrize("scene", [WHILE_IT_WAITS, BETWEEN_TWO_ROWS])
def test_no_deadlock_when_a_cursor_is_freed_by_the_collector(scene: str) -> None:
    script = LEFT_BEHIND + scene + "os._exit(0 if answers else 3)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=110)
    assert result.returncode == 0, result.stderr.decode() or "the query waits for ever"


def test_a_collection_that_waits_for_this_query_is_an_error_and_not_a_deadlock() -> None:
    """One that began before the query called a function of ours: nothing can stop it but the end of the query."""
    script = LEFT_BEHIND + textwrap.dedent("""
        import time
        vision = Vision()
        errors = []
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        register(connection, lambda: vision, on_error=errors.append)
        vision.embed_text("cat")
        in_step, collecting = threading.Event(), threading.Event()
        gc.callbacks.append(lambda phase, info: collecting.set())

        def work():
            in_step.wait()
            with vision.cache._lock:
                gc.collect()

        def wait():
            in_step.set()
            return collecting.wait(60)

        connection.create_function("wait", 0, wait)
        leave_a_cursor(connection)
        threading.Thread(target=work, daemon=True).start()
        failed = []
        def query():
            try:
                connection.execute("select wait(), vision_embed('cat')").fetchall()
            except sqlite3.Error as error:
                failed.append(error)
        thread = threading.Thread(target=query, daemon=True)
        thread.start()
        thread.join(60)
        print(errors)
        assert failed, "deadlock"
        ends = time.monotonic() + 30
        while True:  # the collection goes on now; until it has ended, the answer is to try again in a moment
            try:
                assert connection.execute("select vision_embed('cat') is not null").fetchone() == (1,)
                break
            except sqlite3.Error:
                assert time.monotonic() < ends, errors
        sys.stdout.flush()
        os._exit(0)
    """)
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=110, text=True)
    assert result.returncode == 0, result.stderr
    assert "vision_embed(): Python is freeing the memory of an earlier query: try again in a moment" in result.stdout


@pytest.fixture
def elsewhere() -> Iterator[CollectElsewhere]:
    assert gc.isenabled() or not_by_us()
    block = CollectElsewhere(linger_s=0.0)
    yield block
    until(lambda: not block._took_over)


def not_by_us() -> bool:
    """Let what SQL functions of other tests turned off be turned on again."""
    until(gc.isenabled)
    return True


def until(reached: Callable[[], bool]) -> None:
    for _ in range(6000):
        if reached():
            return
        threading.Event().wait(0.01)
    pytest.fail("not within a minute")


class Cycle:
    def __init__(self, freed: list[str]) -> None:
        self.itself = self
        self.freed = freed

    def __del__(self) -> None:
        self.freed.append(threading.current_thread().name)


def test_what_becomes_garbage_in_a_long_wait_is_collected_on_a_thread_of_its_own(elsewhere: CollectElsewhere) -> None:
    freed: list[str] = []
    with elsewhere:
        for _ in range(100_000):
            Cycle(freed)
        until(lambda: len(freed) > 50_000)
    assert set(freed) == {"datasette-vision-garbage"}


def test_all_garbage_is_looked_for_again_and_again_in_a_long_wait(
    elsewhere: CollectElsewhere, request: pytest.FixtureRequest
) -> None:
    full: list[str] = []

    def collected(phase: str, about: dict[str, int]) -> None:
        if phase == "stop" and about["generation"] == 2:
            full.append(threading.current_thread().name)

    gc.callbacks.append(collected)
    request.addfinalizer(lambda: gc.callbacks.remove(collected))
    request.addfinalizer(functools.partial(gc.set_threshold, *gc.get_threshold()))
    gc.set_threshold(10, 1, 1)
    gc.collect()
    gc.freeze()  # what this process has made so far, or each takes long, and the next comes long after
    request.addfinalizer(gc.unfreeze)
    full.clear()
    with elsewhere:
        until(lambda: bool([Cycle([]) for _ in range(100)]) and len(full) >= 3)
    assert set(full) == {"datasette-vision-garbage"}


def test_collection_is_off_while_any_thread_is_inside_and_on_again_afterwards(elsewhere: CollectElsewhere) -> None:
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with elsewhere, elsewhere:
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    with elsewhere:
        thread.start()
        assert entered.wait(60)
        assert not gc.isenabled()
    threading.Event().wait(0.3)  # long enough for it to be turned on, if one of two were the last
    assert not gc.isenabled()
    leave.set()
    thread.join()
    until(gc.isenabled)


def test_what_was_off_before_stays_off(elsewhere: CollectElsewhere) -> None:
    gc.disable()
    try:
        with elsewhere:
            pass
        threading.Event().wait(0.3)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_block_that_cannot_be_entered_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    not_by_us()
    block = CollectElsewhere()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Busy, match="no thread left"), block:
            pass
    assert gc.isenabled()
    assert not block._depths


def test_only_functions_that_compute_from_their_arguments_alone_are_instant() -> None:
    instant = {function.name for function in FUNCTIONS if function.instant}
    assert instant == {
        "vision_similarity",
        "vision_average",
        "vision_combine",
        "vision_to_json",
        "vision_from_json",
        "vision_from_base64",
        "vision_info",
        "llm_embed_cosine",
        "llm_embed_decode",
        "llm_embed_average",
    }
