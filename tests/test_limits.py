"""limits.py: what one request holds is given back, and who asks for too much is told so."""

from __future__ import annotations

import random
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from datasette_vision.config import Config
from datasette_vision.errors import Busy
from datasette_vision.plugin.limits import MAX_CLIENTS, SMALL_BYTES, Limits, RateLimit
from datasette_vision.plugin.responses import RequestError


def limits(**config: Any) -> Limits:
    return Limits(Config(**config))


def test_a_request_that_is_too_large() -> None:
    with limits(max_request_mb=0.001).share("a") as share:
        share.expect_bytes(1000)
        with pytest.raises(RequestError, match=r"at most 1,000 bytes \(max_request_mb\)") as refusal:
            share.expect_bytes(1001)
        assert refusal.value.status == 413


def test_large_requests_together() -> None:
    all_of_them = limits(max_request_mb=1)
    with all_of_them.share("a") as one, all_of_them.share("b") as other, all_of_them.share("c") as third:
        one.hold(1_000_000)
        other.hold(600_000)
        third.hold(400_000)
        with pytest.raises(Busy, match="other requests hold the memory"):
            third.hold(400_001)
        assert (third.bytes, all_of_them.bytes) == (400_000, 2_000_000)
        one.hold(300_000)
        third.hold(1_100_000)
    assert all_of_them.bytes == 0


def test_one_client_leaves_room_for_others() -> None:
    all_of_them = limits(max_request_mb=1)
    with all_of_them.share("a") as one, all_of_them.share("a") as other, all_of_them.share("b") as of_another:
        one.hold(1_000_000)
        other.hold(500_000)
        with pytest.raises(Busy, match="your other requests"):
            other.hold(500_001)
        of_another.hold(500_000)


def test_small_requests_have_room_of_their_own() -> None:
    all_of_them = limits(max_request_mb=32)
    with ExitStack() as held:
        for client in "ab":
            held.enter_context(all_of_them.share(client)).hold(32_000_000)
        with pytest.raises(Busy):
            held.enter_context(all_of_them.share("c")).hold(SMALL_BYTES + 1)
        held.enter_context(all_of_them.share("c")).hold(SMALL_BYTES)
        # One client takes a quarter of it at most, however small its requests are.
        shares = [held.enter_context(all_of_them.share("d")) for _ in range(16)]
        for share in shares[:15]:
            share.hold(SMALL_BYTES)
        with pytest.raises(Busy, match="your other requests"):
            shares[15].hold(SMALL_BYTES)
        held.enter_context(all_of_them.share("e")).hold(SMALL_BYTES)
    assert all_of_them.bytes == 0


def test_a_request_that_grows_moves_out_of_the_room_for_small_ones() -> None:
    all_of_them = limits()
    with all_of_them.share("a") as share:
        share.hold(SMALL_BYTES)
        assert (all_of_them.small.held, all_of_them.large.held) == (SMALL_BYTES, 0)
        share.hold(SMALL_BYTES + 1)
        assert (all_of_them.small.held, all_of_them.large.held) == (0, SMALL_BYTES + 1)
        share.hold(5)
        assert (all_of_them.small.held, all_of_them.large.held) == (5, 0)


def test_answers_that_are_held() -> None:
    all_of_them = limits(max_request_mb=1)
    with all_of_them.answer("a") as one, all_of_them.answer("a") as other, all_of_them.answer("b") as of_another:
        with pytest.raises(RequestError, match="whose answer has at most 1,000,000 bytes") as refusal:
            one(1_000_001)
        assert refusal.value.status == 413
        one(600_000)
        with pytest.raises(Busy, match="your other requests"):
            other(400_001)
        of_another(1_000_000)
    with all_of_them.answer("a") as one:
        one(1_000_000)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_in_a_room(seed: int) -> None:
    """Whatever is held and refused, in the end all of it is free again."""
    chance = random.Random(seed)
    all_of_them = limits(max_request_mb=1)
    with ExitStack() as held:
        shares = [held.enter_context(all_of_them.share(chance.choice("abc"))) for _ in range(10)]
        for _ in range(500):
            with suppress(Busy):
                chance.choice(shares).hold(chance.choice([0, 1, SMALL_BYTES, SMALL_BYTES + 1, 700_000, 1_500_000]))
            assert all_of_them.bytes == sum(share.bytes for share in shares)
            assert all_of_them.large.held <= 2_000_000
    assert all_of_them.bytes == 0
    assert not all_of_them.large._clients
    assert not all_of_them.small._clients


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
            share.hold(5)
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
