"""plugin/http/limits.py: what one request holds is given back, and who asks for too much is told so."""

from __future__ import annotations

import contextlib
import random
import threading
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from datasette_vision.config.settings import Config, RateLimits
from datasette_vision.errors import Busy
from datasette_vision.plugin.http.limits import SHARED_PLACES, SMALL_BODY_BYTES, Limits, RateLimit
from datasette_vision.plugin.http.responses import RequestError


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
        with pytest.raises(Busy, match="other requests use all the memory"):
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
            held.enter_context(all_of_them.share("c")).hold(SMALL_BODY_BYTES + 1)
        held.enter_context(all_of_them.share("c")).hold(SMALL_BODY_BYTES)
        # One client takes a quarter of it at most, however small its requests are.
        shares = [held.enter_context(all_of_them.share("d")) for _ in range(16)]
        for share in shares[:15]:
            share.hold(SMALL_BODY_BYTES)
        with pytest.raises(Busy, match="your other requests"):
            shares[15].hold(SMALL_BODY_BYTES)
        held.enter_context(all_of_them.share("e")).hold(SMALL_BODY_BYTES)
    assert all_of_them.bytes == 0


def test_a_request_that_grows_moves_out_of_the_room_for_small_ones() -> None:
    all_of_them = limits()
    with all_of_them.share("a") as share:
        share.hold(SMALL_BODY_BYTES)
        assert (all_of_them.small.held, all_of_them.large.held) == (SMALL_BODY_BYTES, 0)
        share.hold(SMALL_BODY_BYTES + 1)
        assert (all_of_them.small.held, all_of_them.large.held) == (0, SMALL_BODY_BYTES + 1)
        share.hold(5)
        assert (all_of_them.small.held, all_of_them.large.held) == (5, 0)


def test_answers_that_are_held() -> None:
    all_of_them = limits(max_request_mb=1)
    with all_of_them.answer("a") as one, all_of_them.answer("a") as other, all_of_them.answer("b") as of_another:
        with pytest.raises(RequestError, match="whose response has at most 1,000,000 bytes") as refusal:
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
                chance.choice(shares).hold(
                    chance.choice([0, 1, SMALL_BODY_BYTES, SMALL_BODY_BYTES + 1, 700_000, 1_500_000])
                )
            assert all_of_them.bytes == sum(share.bytes for share in shares)
            assert all_of_them.large.held <= 2_000_000
    assert all_of_them.bytes == 0
    assert not all_of_them.large._clients
    assert not all_of_them.small._clients


def test_inputs_in_hand() -> None:
    all_of_them = limits(max_queue=10, max_inputs=8)
    with all_of_them.share("a") as one, all_of_them.share("b") as other:
        with pytest.raises(RequestError, match=r"at most 8 inputs in a request \(max_inputs\), found 9") as refusal:
            one.take_inputs(texts=9)
        assert refusal.value.status == 413
        one.take_inputs(texts=5, images=3)
        other.take_inputs(images=2)
        with pytest.raises(Busy, match=r"10 inputs are waiting already \(max_queue\)"):
            other.take_inputs(texts=1)
    assert all_of_them.inputs == 0


def test_a_word_is_not_refused_for_somebody_elses_many_texts() -> None:
    all_of_them = limits(max_queue=256, max_inputs=256)
    with all_of_them.share("many") as many, all_of_them.share("word") as word:
        many.take_inputs(texts=256)
        word.take_inputs(texts=1)
        assert all_of_them.inputs == 257
        with pytest.raises(Busy, match=r"256 inputs are waiting already"):
            word.take_inputs(texts=16)
        assert all_of_them.inputs == 257
    assert all_of_them.inputs == 0


def test_a_client_of_many_words_leaves_places_for_others() -> None:
    all_of_them = limits(max_queue=32)
    with contextlib.ExitStack() as stack:
        for _ in range(24):
            stack.enter_context(all_of_them.share("flood")).take_inputs(texts=1)
        with pytest.raises(Busy, match=r"24 inputs are waiting already"):
            stack.enter_context(all_of_them.share("flood")).take_inputs(images=1)
        for client in range(8):
            stack.enter_context(all_of_them.share(str(client))).take_inputs(images=1)
        with pytest.raises(Busy, match=r"32 inputs are waiting already"):
            stack.enter_context(all_of_them.share("ninth")).take_inputs(images=1)
    assert all_of_them.inputs == 0


def test_a_request_that_grows_moves_to_the_other_places() -> None:
    all_of_them = limits(max_queue=256)
    with all_of_them.share("one") as one:
        one.take_inputs(texts=16)
        one.take_inputs(images=1)
        assert (all_of_them.few.held, all_of_them.many.held) == (0, 17)
    assert all_of_them.inputs == 0


def test_everything_is_given_back_when_a_request_fails() -> None:
    all_of_them = limits()

    def fail() -> None:
        with all_of_them.share("a") as share:
            share.take_inputs(texts=3)
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
    for kind in range(60):
        rate.charge("a", kind % 2, 1 - kind % 2)
    with pytest.raises(RequestError, match=r"at most 60 inputs a minute \(rate_limit\)") as refusal:
        rate.charge("a", 1, 0)
    assert refusal.value.status == 429
    assert refusal.value.headers == {"retry-after": "1"}
    rate.charge("b", 1, 0)  # another client has its own
    clock.now = 1.0
    rate.charge("a", 1, 0)
    clock.now = 1000.0
    for _ in range(60):  # no more than a minute's worth is saved up
        rate.charge("a", 1, 0)
    with pytest.raises(RequestError):
        rate.charge("a", 1, 0)


def test_images_and_texts_are_counted_apart() -> None:
    clock = Clock()
    rate = RateLimit(RateLimits(images=60, texts=600, burst_seconds=10), clock)
    rate.charge("a", 0, 10)
    with pytest.raises(RequestError, match=r"at most 60 images a minute \(rate_limit\)"):
        rate.charge("a", 1, 1)
    rate.charge("a", 100, 0)  # what was refused has taken nothing
    with pytest.raises(RequestError, match=r"at most 600 texts a minute \(rate_limit\)") as refusal:
        rate.charge("a", 1, 0)
    assert refusal.value.headers == {"retry-after": "1"}
    clock.now = 0.1
    rate.charge("a", 1, 0)
    with pytest.raises(RequestError):
        rate.charge("a", 0, 1)


def test_what_has_no_rate_is_unlimited() -> None:
    rate = RateLimit(RateLimits(images=1), Clock())
    for _ in range(100):
        rate.charge("a", 1000, 0)
    rate.charge("a", 0, 1)
    with pytest.raises(RequestError):
        rate.charge("a", 0, 1)


def test_a_slow_rate_lets_one_through_at_a_time() -> None:
    clock = Clock()
    rate = RateLimit(RateLimits(images=1, burst_seconds=1), clock)
    rate.charge("a", 0, 1)
    with pytest.raises(RequestError):
        rate.charge("a", 0, 1)
    clock.now = 60
    rate.charge("a", 0, 1)


def test_a_request_above_the_rate_passes_and_is_paid_for_afterwards() -> None:
    clock = Clock()
    rate = RateLimit(60, clock)
    rate.charge("a", 100, 0)
    with pytest.raises(RequestError) as refusal:
        rate.charge("a", 1, 0)
    assert refusal.value.headers == {"retry-after": "41"}
    clock.now = 40.5
    with pytest.raises(RequestError):
        rate.charge("a", 1, 0)
    clock.now = 41.0
    rate.charge("a", 1, 0)


def test_so_many_clients_are_remembered_and_no_more() -> None:
    """Coming from many addresses makes nobody be forgotten, and costs no memory."""
    clock = Clock()
    rate = RateLimit(60, clock, max_clients=1000)
    rate.charge("a", 60, 0)
    refused = 0
    for number in range(50_000):
        try:
            rate.charge(f"address {number}", 60, 0)
        except RequestError:
            refused += 1
    assert refused == 50_000 - 999 - SHARED_PLACES
    assert len(rate._buckets["inputs"]) == 1000 + SHARED_PLACES
    with pytest.raises(RequestError):
        rate.charge("a", 1, 0)
    clock.now = 60
    for number in range(50_000, 50_999):  # who has all again is forgotten
        rate.charge(f"address {number}", 60, 0)
    assert len(rate._buckets["inputs"]) <= 1000


def test_many_threads_charge_one_client() -> None:
    rate = RateLimit(10_000, Clock())
    passed = []

    def charge() -> None:
        with suppress(RequestError):
            for _ in range(2000):
                rate.charge("a", 1, 0)
                passed.append(1)

    threads = [threading.Thread(target=charge) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passed) == 10_000


def test_no_rate_by_default() -> None:
    with limits().share("a") as share:
        for _ in range(10_000):
            share.charge(texts=1000, images=1000)
