"""Memory does not grow with the number of callers: what decoding takes is reserved, in bytes, before it begins."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import Busy, DeadlineExceeded, InvalidImage
from datasette_vision.images import budget as budgets
from datasette_vision.images.budget import DecodeBudget
from datasette_vision.images.decode import ImageLimits
from datasette_vision.images.decoder import Decoder
from datasette_vision.util.caller import Caller, acting
from tests import pictures

ENOUGH = 10_000_000  # for any small picture
MEGABYTE = 1_000_000


class Recorded(DecodeBudget):
    """A budget that keeps what was taken of it, and whether it was there at once."""

    def __init__(self, total: int = 1 << 40) -> None:
        super().__init__(total)
        self.taken: list[int] = []

    def take(self, size: int, *, wait: bool) -> bool:
        taken = super().take(size, wait=wait)
        if taken:
            self.taken.append(size)
        return taken


def decoder(budget: DecodeBudget) -> Decoder:
    return Decoder(ImageLimits(), budget)


def test_never_more_than_the_budget_is_held() -> None:
    budget = DecodeBudget(10)
    lock = threading.Lock()
    now = most = 0

    def hold(size: int) -> None:
        nonlocal now, most
        for _ in range(50):
            with budget.holding() as reservation:
                reservation.take(size, "this", wait=True)
                with lock:
                    now += size
                    most = max(most, now)
                with lock:
                    now -= size

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, [1, 2, 3, 4, 5, 6, 9, 10]))
    assert now == 0
    assert 0 < most <= 10
    assert budget.held == 0


def in_turn(budget: DecodeBudget, size: int, entered: list[int]) -> threading.Thread:
    """A thread that waits for bytes by now, and notes that it has had them."""

    def run() -> None:
        with budget.holding() as reservation:
            reservation.take(size, "this", wait=True)
            entered.append(size)

    waiting = budget.waiting
    thread = threading.Thread(target=run)
    thread.start()
    while budget.waiting == waiting and size not in entered:
        time.sleep(0.001)
    return thread


def test_who_comes_later_waits_his_turn_even_where_there_is_room_for_less() -> None:
    budget, entered = DecodeBudget(10), []
    with budget.holding() as first:
        first.take(5, "this", wait=True)
        threads = [in_turn(budget, 6, entered), in_turn(budget, 1, entered)]
        assert not entered  # or a large one would wait for ever beside many small ones
        with budget.holding() as other:
            assert not other.take(1, "this", wait=False)
    for thread in threads:
        thread.join(10)
    assert sorted(entered) == [1, 6]
    assert budget.held == 0


def test_an_image_above_the_whole_budget_is_refused_before_anything_is_decoded() -> None:
    # The pixels are missing: whoever looked for them would say so.
    truncated = pictures.png(4000, 1000)[:-100]
    with pytest.raises(InvalidImage) as caught:
        decoder(DecodeBudget(ENOUGH)).decode(truncated, lambda picture: picture)
    assert str(caught.value) == (
        "this PNG image of 4000x1000 pixels takes 20 MB of memory to decode, more than the 10 MB that are allowed"
        " (image_memory_mb)"
    )


def test_waiting_ends() -> None:
    budget = DecodeBudget(10, wait_s=0.05)
    with budget.holding() as first, budget.holding() as second:
        first.take(6, "this", wait=True)
        with pytest.raises(Busy) as caught:
            second.take(6, "this", wait=True)
        assert not isinstance(caught.value, DeadlineExceeded)
    with budget.holding() as reservation:
        reservation.take(10, "this", wait=True)
    assert budget.held == 0


def test_waiting_ends_with_the_callers_time() -> None:
    budget = DecodeBudget(10)
    with budget.holding() as first, budget.holding() as second:
        first.take(6, "this", wait=True)
        with acting(Caller(deadline=time.monotonic() + 0.05)), pytest.raises(DeadlineExceeded):
            second.take(6, "this", wait=True)
    assert budget.held == 0


def test_what_fails_gives_back() -> None:
    budget = DecodeBudget(ENOUGH)
    for _ in range(10):
        with pytest.raises(InvalidImage):
            decoder(budget).decode(pictures.png()[:-40], lambda picture: picture)
    assert budget.held == 0


def test_an_image_that_had_to_wait_is_decoded_as_any_other() -> None:
    budget = Recorded(ENOUGH)
    data = pictures.png()
    at_once = decoder(budget).decode(data, lambda picture: picture.tobytes())
    with ThreadPoolExecutor(1) as thread:
        with budget.holding() as reservation:
            reservation.take(ENOUGH, "this", wait=True)
            late = thread.submit(decoder(budget).decode, data, lambda picture: picture.tobytes())
            while not budget.waiting:
                time.sleep(0.001)
        assert late.result(60) == at_once
    assert budget.taken[0] == budget.taken[-1]
    assert budget.held == 0


@pytest.mark.parametrize("way", ["decode", "thumbnail", "error"])
def test_every_way_reserves(way: str) -> None:
    budget = Recorded()
    held: list[int] = []
    data = pictures.png(2000, 1000)
    if way == "decode":
        decoder(budget).decode(data, lambda picture: held.append(budget.held))
        assert held == budget.taken  # while the picture is used, too
    elif way == "thumbnail":
        decoder(budget).thumbnail(data, 64)
    else:
        assert decoder(budget).error(data) is None
    assert len(budget.taken) == 1
    assert 4 * 2000 * 1000 < budget.taken[0] < 12 * 2000 * 1000
    assert budget.held == 0


def test_the_budget_is_a_share_of_what_the_process_may_hold() -> None:
    assert budgets.default_bytes(512 << 20) == int(0.32 * (512 << 20))
    assert budgets.default_bytes(1 << 40) == 2_000_000_000
    assert budgets.default_bytes(None) == 500_000_000
    assert Vision(Config(image_memory_mb=7)).decoder.budget.total == 7_000_000
