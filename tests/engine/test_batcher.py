"""The batcher: no waiting for company, batches of what queued up, and nobody left hanging."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from datasette_vision.engine import batcher as batching
from datasette_vision.engine.batcher import Batcher
from datasette_vision.errors import Busy, DeadlineExceeded, EngineFailure, InvalidText, ModelCorrupt, VisionError
from datasette_vision.util.caller import Caller, acting
from tests.paths import ROOT


class Doubler:
    """Doubles numbers; records its batches, waits at a gate when told to, fails on what it is told to fail on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failures: dict[int, BaseException] = {}

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.entered.set()
        assert self.gate.wait(30)
        for item in items:
            if item in self.failures:
                raise self.failures[item]
        return [2 * item for item in items]


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


@pytest.fixture
def batcher(doubler: Doubler) -> Iterator[Batcher[int, int]]:
    batcher: Batcher[int, int] = Batcher(doubler, max_batch_size=4, max_queue=8)
    yield batcher
    doubler.gate.set()
    batcher.close()


def occupy(doubler: Doubler, batcher: Batcher[int, int], item: int = 0) -> Future[int]:
    """Make the worker hold one item at the gate, so that what comes next queues up."""
    doubler.gate.clear()
    doubler.entered.clear()
    future = batcher.submit(item)
    assert doubler.entered.wait(30)
    return future


def test_an_idle_batcher_runs_a_lone_item_at_once(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    assert batcher(21) == 42
    assert doubler.batches == [[21]]


def test_what_queued_up_meanwhile_is_one_batch_up_to_the_limit(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    first = occupy(doubler, batcher)
    waiting = [batcher.submit(item) for item in range(1, 7)]
    doubler.gate.set()
    assert first.result(30) == 0
    assert [future.result(30) for future in waiting] == [2, 4, 6, 8, 10, 12]
    assert doubler.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert (batcher.batches, batcher.items) == (3, 7)


def test_a_full_queue_refuses_at_once_and_serves_again_afterwards(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    occupy(doubler, batcher)
    waiting = [batcher.submit(item) for item in range(8)]
    with pytest.raises(Busy, match=r"^8 inputs are waiting already: try again in a moment$"):
        batcher.submit(99)
    doubler.gate.set()
    assert [future.result(30) for future in waiting] == [2 * item for item in range(8)]
    assert batcher(5) == 10


def test_a_bad_item_fails_alone(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    doubler.failures[2] = InvalidText("no twos")
    occupy(doubler, batcher)
    waiting = [batcher.submit(item) for item in (1, 2, 3)]
    doubler.gate.set()
    assert waiting[0].result(30) == 2
    with pytest.raises(InvalidText, match=r"^no twos$"):
        waiting[1].result(30)
    assert waiting[2].result(30) == 6


def test_foreign_errors_are_logged_and_not_shown(
    doubler: Doubler, batcher: Batcher[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    doubler.failures[2] = RuntimeError("secret path /etc/passwd")
    with pytest.raises(EngineFailure) as failure:
        batcher(2)
    assert "secret" not in str(failure.value)
    assert "secret path /etc/passwd" in caplog.text


def test_a_model_that_cannot_be_loaded_fails_the_batch_without_trying_each_item(
    doubler: Doubler, batcher: Batcher[int, int]
) -> None:
    occupy(doubler, batcher)
    doubler.failures[1] = ModelCorrupt("image.onnx: gone")
    waiting = [batcher.submit(item) for item in (1, 2, 3)]
    doubler.gate.set()
    for future in waiting:
        with pytest.raises(ModelCorrupt):
            future.result(30)
    assert doubler.batches == [[0], [1, 2, 3]]


def test_a_run_that_returns_too_few_results_is_an_error_not_a_hang() -> None:
    batcher: Batcher[int, int] = Batcher(lambda items: [])
    with pytest.raises(EngineFailure, match="expected 1 results of a batch, found 0"):
        batcher(1)
    batcher.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_fails_its_callers_and_is_replaced(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    first = occupy(doubler, batcher)
    doubler.failures[1] = SystemExit("died")
    doomed = [batcher.submit(item) for item in (1, 2, 3, 4)]
    spared = batcher.submit(5)
    doubler.gate.set()
    assert first.result(30) == 0
    for future in doomed:
        with pytest.raises(EngineFailure, match=r"an inference worker died \(SystemExit\) and is being replaced"):
            future.result(30)
    assert spared.result(30) == 10
    assert batcher(6) == 12


def test_a_caller_that_gave_up_is_skipped(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    occupy(doubler, batcher)
    abandoned, kept = batcher.submit(1), batcher.submit(2)
    assert abandoned.cancel()
    doubler.gate.set()
    assert kept.result(30) == 4
    assert [1] not in doubler.batches
    assert doubler.batches[-1] == [2]


def test_an_answer_that_does_not_come_in_time_is_busy(doubler: Doubler) -> None:
    batcher: Batcher[int, int] = Batcher(doubler, answer_timeout_s=0.01)
    doubler.gate.clear()
    with pytest.raises(Busy, match="no answer within"):
        batcher(1)
    doubler.gate.set()
    batcher.close()


def test_memory_is_given_back_when_a_burst_is_over(doubler: Doubler) -> None:
    given_back = threading.Semaphore(0)
    batcher: Batcher[int, int] = Batcher(doubler, burst_over_s=0.1, trim=given_back.release)
    for number in range(batching.BURST_ITEMS - 1):
        batcher(number)
    assert not given_back.acquire(timeout=0.3)  # too few to be worth it
    assert batcher(1) == 2
    assert given_back.acquire(timeout=30)
    assert not given_back.acquire(timeout=0.3)  # once
    assert batcher(2) == 4
    batcher.close()


def test_memory_is_given_back_once_by_several_workers_and_not_while_one_is_at_work(doubler: Doubler) -> None:
    given_back = threading.Semaphore(0)
    batcher: Batcher[int, int] = Batcher(
        doubler, max_batch_size=1, workers=4, burst_over_s=0.1, trim=given_back.release
    )
    doubler.gate.clear()
    futures = [batcher.submit(number) for number in range(batching.BURST_ITEMS)]
    doubler.gate.set()
    assert [future.result(30) for future in futures] == [2 * number for number in range(batching.BURST_ITEMS)]
    assert given_back.acquire(timeout=30)
    assert not given_back.acquire(timeout=0.5)
    for number in range(batching.BURST_ITEMS - 1):
        assert batcher(number) == 2 * number
    doubler.gate.clear()
    long = batcher.submit(1)  # with which it is a burst
    assert not given_back.acquire(timeout=0.5)  # three are idle, one is not
    doubler.gate.set()
    assert long.result(30) == 2
    assert given_back.acquire(timeout=30)
    batcher.close()


def test_memory_is_not_given_back_while_there_is_work(doubler: Doubler) -> None:
    times: list[float] = []
    batcher: Batcher[int, int] = Batcher(
        doubler,
        max_batch_size=4,
        max_queue=8,
        burst_over_s=5.0,  # a busy machine may let one wait
        trim=lambda: times.append(time.monotonic()),
    )
    assert list(batcher.map(range(10 * batching.BURST_ITEMS))) == [2 * number for number in range(160)]
    assert times == []
    batcher.close()


def test_map_keeps_the_order_and_reports_bad_items_in_place(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    doubler.failures[7] = InvalidText("no sevens")
    outcomes = list(batcher.map(range(50)))
    assert [outcome for outcome in outcomes if not isinstance(outcome, VisionError)] == [
        2 * item for item in range(50) if item != 7
    ]
    assert str(outcomes[7]) == "no sevens"


@pytest.mark.parametrize(
    ("settings", "ahead"),
    [
        ({"max_batch_size": 4}, 8),
        ({"max_batch_size": 4, "workers": 3}, 16),
        ({"max_batch_size": 4, "workers": 3, "max_queue": 15}, 15),
        ({"max_batch_size": 1, "max_queue": 1}, 1),
    ],
)
def test_how_many_items_are_made_ready_ahead(doubler: Doubler, settings: dict[str, int], ahead: int) -> None:
    batcher: Batcher[int, int] = Batcher(doubler, **settings)  # type: ignore[arg-type]
    assert batcher.ahead == ahead
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(3 * ahead):
            taken.append(item)
            yield item

    mapped = batcher.map(items())
    for position, outcome in enumerate(mapped):
        assert outcome == 2 * position
        assert len(taken) <= position + ahead + 1
    assert [batcher.room.acquire(blocking=False) for _ in range(ahead + 1)] == [True] * ahead + [False]
    batcher.close()


def test_map_gives_way_when_others_fill_the_queue(doubler: Doubler) -> None:
    batcher: Batcher[int, int] = Batcher(doubler, max_batch_size=4, max_queue=3)
    others = occupy(doubler, batcher), *(batcher.submit(item) for item in (1, 2, 3))
    found: list[object] = []
    mapper = threading.Thread(target=lambda: found.extend(batcher.map(range(20))))
    mapper.start()
    doubler.gate.set()
    mapper.join(30)
    assert found == [2 * item for item in range(20)]
    assert [future.result(30) for future in others] == [0, 2, 4, 6]
    batcher.close()


def test_a_map_that_is_given_up_cancels_what_it_queued(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    occupy(doubler, batcher)
    mapped = batcher.map(range(1, 100))
    doubler.gate.set()
    assert next(mapped) == 2
    doubler.entered.clear()
    doubler.gate.clear()
    mapped.close()  # type: ignore[attr-defined]
    doubler.gate.set()
    assert batcher(500) == 1000
    assert batcher.items < 20


def test_a_thread_that_cannot_be_started_is_busy_and_the_next_call_works(
    batcher: Batcher[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Busy, match="no thread left"):
            batcher(1)
    assert batcher(2) == 4


def test_drop_refuses_what_waits_and_finishes_what_runs(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    running = occupy(doubler, batcher)
    waiting = batcher.submit(1)
    batcher.drop()
    with pytest.raises(Busy, match="shutting down"):
        waiting.result(30)
    doubler.gate.set()
    assert running.result(30) == 0


def test_a_process_that_ends_amid_work_ends_in_order(tmp_path: Path) -> None:
    """Real inference on a daemon thread while the interpreter goes down: without care it aborts."""
    script = """
    import threading
    from datasette_vision.engine.vision import Vision
    from tests import pictures
    vision = Vision()
    outcomes = vision.embed_images(pictures.png(seed=number % 5) for number in range(100_000))
    for _ in range(40):
        next(outcomes)
    threading.Thread(target=lambda: [vision.embed_text(str(n)) for n in range(100_000)], daemon=True).start()
    raise SystemExit(3)
    """
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True)
        assert result.returncode == 3, result.stderr.decode()


def test_many_callers_on_several_workers_all_get_their_own_answer(doubler: Doubler) -> None:
    batcher: Batcher[int, int] = Batcher(doubler, max_batch_size=4, max_queue=1000, workers=3)
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(batcher, range(500))) == [2 * item for item in range(500)]
    batcher.close()
    assert batcher.items == 500


def test_close_answers_what_waits_then_refuses(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    first = occupy(doubler, batcher)
    waiting = [batcher.submit(item) for item in (1, 2)]
    closer = threading.Thread(target=batcher.close)
    closer.start()
    doubler.gate.set()
    closer.join(30)
    assert not closer.is_alive()
    assert [future.result(0) for future in (first, *waiting)] == [0, 2, 4]
    with pytest.raises(Busy, match="shutting down"):
        batcher.submit(3)


# Fairness


ANN, BOB = Caller("ann"), Caller("bob")


def submit_for(batcher: Batcher[int, int], caller: Caller, *items: int) -> list[Future[int]]:
    with acting(caller):
        return [batcher.submit(item) for item in items]


def test_one_word_is_in_the_next_batch_however_much_another_client_has_queued(doubler: Doubler) -> None:
    batcher: Batcher[int, int] = Batcher(doubler, max_batch_size=4, max_queue=1000)
    occupy(doubler, batcher)
    many = submit_for(batcher, ANN, *range(1, 301))
    (one,) = submit_for(batcher, BOB, 1000)
    doubler.gate.set()
    assert one.result(30) == 2000
    assert [future.result(30) for future in many] == [2 * item for item in range(1, 301)]
    assert doubler.batches[1] == [1, 1000, 2, 3]
    batcher.close()


def test_bulk_work_takes_turns_with_a_client(doubler: Doubler) -> None:
    batcher: Batcher[int, int] = Batcher(doubler, max_batch_size=2, max_queue=1000)
    occupy(doubler, batcher)
    found: list[object] = []
    bulk = threading.Thread(target=lambda: found.extend(batcher.map(range(100, 104))))
    bulk.start()
    while batcher.waiting < 4:
        threading.Event().wait(0.01)
    futures = submit_for(batcher, ANN, 1, 2, 3, 4)
    doubler.gate.set()
    bulk.join(30)
    assert [future.result(30) for future in futures] == [2, 4, 6, 8]
    assert found == [200, 202, 204, 206]
    assert [sorted(batch) for batch in doubler.batches[1:]] == [[1, 100], [2, 101], [3, 102], [4, 103]]
    batcher.close()


def test_a_client_that_fills_the_queue_makes_room_for_another(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    occupy(doubler, batcher)
    many = submit_for(batcher, ANN, *range(1, 9))
    with pytest.raises(Busy, match=r"^8 inputs are waiting already"):
        submit_for(batcher, ANN, 9)
    few = submit_for(batcher, BOB, 20, 21, 22, 23)
    for future in many[4:]:
        with pytest.raises(Busy, match="most of the waiting inputs are yours"):
            future.result(0)
    with pytest.raises(Busy, match=r"^8 inputs are waiting already"):
        submit_for(batcher, BOB, 24)  # they have as many as each other
    assert batcher.waiting == 8
    doubler.gate.set()
    assert [future.result(30) for future in (*many[:4], *few)] == [2, 4, 6, 8, 40, 42, 44, 46]


def test_a_place_is_free_as_soon_as_its_item_is_given_up(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    occupy(doubler, batcher)
    futures = [batcher.submit(item) for item in range(8)]
    assert futures[3].cancel()
    assert batcher.waiting == 7
    assert futures[3].cancel()  # again: nothing more happens
    last = batcher.submit(8)
    assert batcher.waiting == 8
    doubler.gate.set()
    assert last.result(30) == 16
    assert doubler.batches == [[0], [0, 1, 2, 4], [5, 6, 7, 8]]


def test_the_time_of_a_batch_is_bounded(doubler: Doubler) -> None:
    now = [0.0]

    def run(items: list[int]) -> list[int]:
        results = doubler(items)
        now[0] += 0.01 * len(items) * max(items)  # padded to the largest
        return results

    batcher: Batcher[int, int] = Batcher(
        run, max_batch_size=32, batch_s=0.255, size=lambda item: item, clock=lambda: now[0]
    )
    occupy(doubler, batcher, 1)
    futures = [batcher.submit(item) for item in (5, 5, 5, 5, 5, 5, 10, 2, 50, 1, 1)]
    doubler.gate.set()
    for future in futures:
        future.result(30)
    # One that takes longer is alone.
    assert doubler.batches == [[1], [5, 5, 5, 5, 5], [5, 10], [2], [50], [1, 1]]
    batcher.close()


def test_how_long_a_batch_takes_is_not_known_before_the_first(doubler: Doubler) -> None:
    batcher: Batcher[int, int] = Batcher(doubler, max_batch_size=4, batch_s=1000.0)
    occupy(doubler, batcher)
    futures = [batcher.submit(item) for item in range(1, 8)]
    doubler.gate.set()
    for future in futures:
        future.result(30)
    assert [len(batch) for batch in doubler.batches] == [1, 4, 3]
    batcher.close()


# Deadlines


def test_an_answer_that_comes_too_late_is_not_waited_for_but_kept(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    doubler.gate.clear()
    kept: list[int] = []
    stored = threading.Event()

    def keep(result: int) -> None:
        kept.append(result)
        stored.set()

    with acting(Caller(deadline=time.monotonic() + 0.2)), pytest.raises(DeadlineExceeded):
        batcher(1, keep)
    doubler.gate.set()
    assert stored.wait(30)
    assert kept == [2]


def test_what_waits_for_nobody_is_not_computed(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    occupy(doubler, batcher)
    with acting(Caller(deadline=time.monotonic() + 0.2)), pytest.raises(DeadlineExceeded):
        batcher(1)
    assert batcher.waiting == 0
    late = Caller(deadline=time.monotonic() + 0.2)
    (unattended,) = submit_for(batcher, late, 2)  # a future that nobody waits for yet
    while time.monotonic() < (late.deadline or 0):
        threading.Event().wait(0.01)
    doubler.gate.set()
    with pytest.raises(DeadlineExceeded, match="before its turn came"):
        unattended.result(30)
    assert batcher(3) == 6
    assert doubler.batches == [[0], [3]]


def test_a_map_ends_at_the_deadline_and_keeps_what_it_got(doubler: Doubler, batcher: Batcher[int, int]) -> None:
    def run(items: list[int]) -> list[int]:
        if max(items) > 6:
            doubler.gate.clear()
        return doubler(items)

    batcher._run = run
    kept: dict[int, int] = {}
    with acting(Caller(deadline=time.monotonic() + 1)), pytest.raises(DeadlineExceeded):
        list(batcher.map(range(1, 100), kept.__setitem__))
    assert batcher.waiting == 0
    done = dict(kept)
    assert len(done) >= 3
    assert done.items() <= {position: 2 * (position + 1) for position in range(99)}.items()


def test_a_map_that_gives_way_ends_at_the_deadline(doubler: Doubler) -> None:
    batcher: Batcher[int, int] = Batcher(doubler, max_queue=1)
    occupy(doubler, batcher)
    submit_for(batcher, ANN, 1)
    with acting(Caller(deadline=time.monotonic() + 0.2)), pytest.raises(DeadlineExceeded):
        list(batcher.map([2]))
    doubler.gate.set()
    batcher.close()
    assert doubler.batches == [[0], [1]]
