"""Memory does not grow with the number of callers: large pictures are decoded one after the other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from datasette_vision import images
from datasette_vision.budget import PixelBudget
from datasette_vision.errors import InvalidImage
from tests import pictures


def test_never_more_than_the_budget_is_held() -> None:
    budget = PixelBudget(10)
    lock = threading.Lock()
    now = most = 0

    def hold(pixels: int) -> None:
        nonlocal now, most
        for _ in range(50):
            with budget.holding() as reserve:
                reserve(pixels)
                with lock:
                    now += pixels
                    most = max(most, now)
                with lock:
                    now -= pixels

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, [1, 2, 3, 4, 5, 6, 9, 10]))
    assert now == 0
    assert 0 < most <= 10


def test_who_comes_too_late_waits() -> None:
    budget = PixelBudget(10)
    entered = threading.Event()

    def second() -> None:
        with budget.holding() as reserve:
            reserve(6)
            entered.set()

    thread = threading.Thread(target=second)
    with budget.holding() as reserve:
        reserve(5)
        thread.start()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    thread.join()


def test_one_above_the_whole_budget_is_let_in_alone() -> None:
    budget = PixelBudget(10)
    for _ in range(2):
        with budget.holding() as reserve:
            reserve(1000)


def test_what_fails_gives_back() -> None:
    budget = PixelBudget(10)
    for _ in range(3):
        with pytest.raises(InvalidImage), budget.holding() as reserve:
            images.decode(pictures.png()[:-40], reserve=reserve)
    with budget.holding() as reserve:
        reserve(10)


@pytest.mark.parametrize(("image_format", "pixels"), [("PNG", 1600 * 1600), ("JPEG", 400 * 400)])
def test_a_jpeg_costs_what_is_decoded_of_it(image_format: str, pixels: int) -> None:
    reserved: list[int] = []
    data = pictures.encode(pictures.scene(1600, 1600), image_format)
    images.decode(data, target=200, reserve=reserved.append)
    assert reserved == [pixels]
