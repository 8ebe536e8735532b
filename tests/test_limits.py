"""limits.py: what one request holds is given back, and who asks for too much is told so."""

from __future__ import annotations

from typing import Any

import pytest

from datasette_vision.config import Config
from datasette_vision.errors import Busy
from datasette_vision.plugin.limits import MAX_CLIENTS, Limits, RateLimit
from datasette_vision.plugin.responses import RequestError


def limits(**config: Any) -> Limits:
    return Limits(Config(**config))


def test_a_request_that_is_too_large() -> None:
    with limits(max_request_mb=0.001).share("a") as share:
        share.expect_bytes(1000)
        share.take_bytes(600)
        share.take_bytes(400)
        with pytest.raises(RequestError, match=r"at most 1,000 bytes \(max_request_mb\)") as refusal:
            share.take_bytes(1)
        assert refusal.value.status == 413
        with pytest.raises(RequestError):
            share.expect_bytes(1001)


def test_large_requests_together() -> None:
    all_of_them = limits(max_request_mb=0.001)
    with all_of_them.share("a") as one, all_of_them.share("a") as other, all_of_them.share("a") as third:
        one.take_bytes(1000)
        other.take_bytes(600)
        third.take_bytes(400)
        with pytest.raises(Busy):
            third.take_bytes(1)
    assert all_of_them.bytes == 0
    with all_of_them.share("a") as share:
        share.take_bytes(1000)


def test_inputs_in_hand() -> None:
    all_of_them = limits(max_queue=10, max_inputs=8)
    with all_of_them.share("a") as one, all_of_them.share("b") as other:
        with pytest.raises(RequestError, match=r"at most 8 inputs in a request \(max_inputs\), found 9") as refusal:
            one.take_inputs(9)
        assert refusal.value.status == 413
        one.take_inputs(8)
        other.take_inputs(2)
        with pytest.raises(Busy, match=r"10 inputs are waiting already \(max_queue\)"):
            other.take_inputs(1)
    assert all_of_them.inputs == 0


def test_everything_is_given_back_when_a_request_fails() -> None:
    all_of_them = limits()

    def fail() -> None:
        with all_of_them.share("a") as share:
            share.take_inputs(3)
            share.take_bytes(5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (all_of_them.inputs, all_of_them.bytes) == (0, 0)


def test_a_request_can_never_be_larger_than_the_queue() -> None:
    assert limits(max_queue=10).max_inputs == 10


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rate() -> None:
    clock = Clock()
    rate = RateLimit(60, clock)
    for _ in range(60):
        rate.charge("a", 1)
    with pytest.raises(RequestError, match=r"at most 60 inputs a minute \(rate_limit\)") as refusal:
        rate.charge("a", 1)
    assert refusal.value.status == 429
    assert refusal.value.headers == {"retry-after": "1"}
    rate.charge("b", 1)  # another client has its own
    clock.now = 1.0
    rate.charge("a", 1)
    clock.now = 1000.0
    for _ in range(60):  # no more than a minute's worth is saved up
        rate.charge("a", 1)
    with pytest.raises(RequestError):
        rate.charge("a", 1)


def test_a_request_above_the_rate_passes_and_is_paid_for_afterwards() -> None:
    clock = Clock()
    rate = RateLimit(60, clock)
    rate.charge("a", 100)
    with pytest.raises(RequestError) as refusal:
        rate.charge("a", 1)
    assert refusal.value.headers == {"retry-after": "41"}
    clock.now = 40.5
    with pytest.raises(RequestError):
        rate.charge("a", 1)
    clock.now = 41.0
    rate.charge("a", 1)


def test_so_many_clients_are_remembered_and_no_more() -> None:
    rate = RateLimit(1, Clock())
    for number in range(MAX_CLIENTS + 10):
        rate.charge(str(number), 1)
    assert len(rate._left) == MAX_CLIENTS
    with pytest.raises(RequestError):
        rate.charge(str(MAX_CLIENTS), 1)
    rate.charge("0", 1)  # forgotten


def test_no_rate_by_default() -> None:
    with limits().share("a") as share:
        for _ in range(10_000):
            share.charge(1000)
