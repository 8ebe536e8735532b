"""engine/inference.py: futures that are always answered, bounded threads and bounded pixels."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasette_vision.config.settings import Config, ModelConfig
from datasette_vision.engine.cache import LabelSets
from datasette_vision.engine.inference import CALL_THREADS, TEXT_THREADS, Inference, outcome_of
from datasette_vision.engine.runtime import default_threads
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import (
    Busy,
    DeadlineExceeded,
    InvalidImage,
    InvalidLabels,
    InvalidText,
    UnknownModel,
    WrongTask,
)
from datasette_vision.models.store import ModelStore
from datasette_vision.util.caller import Caller, acting
from tests import fakes, pictures


@pytest.fixture
def inference(fake_vision: Vision) -> Iterator[Inference]:
    inference = Inference(fake_vision)
    yield inference
    inference.close()


def test_the_same_as_embedding_one_by_one(inference: Inference, fake_vision: Vision) -> None:
    texts = ["a cat", "", "a dog", "a cat"]
    for text, future in zip(texts, inference.embed_texts(texts), strict=True):
        assert np.array_equal(future.result(30), fake_vision.embed_text(text, normalised=False))
    picture = pictures.png()
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    expected = fake_vision.embed_image(picture, normalised=False)
    assert np.array_equal(inference.embed_image(picture).result(30), expected)
    assert np.array_equal(inference.embed_image(uri).result(30), expected)
    assert np.array_equal(inference.embed_texts(["x"], "fake-wide")[0].result(30).shape, (12,))


def test_what_was_computed_is_kept(inference: Inference, counting: fakes.CountingLoads) -> None:
    picture = pictures.png()
    for _ in range(3):
        inference.embed_image(picture).result(30)
        inference.embed_texts(["a cat"])[0].result(30)
    assert counting.batches == [1, 1]


def test_classifiers_and_dual_encoders_label(inference: Inference, fake_vision: Vision) -> None:
    picture = pictures.png()
    for model in ("fake-classifier", "fake-labels"):
        output = inference.classify_image(picture, model).result(30)
        assert fake_vision.label(output, model, 2) == fake_vision.classify(picture, model, 2)


def test_errors_come_out_of_the_future(inference: Inference) -> None:
    assert isinstance(outcome_of_done(inference.embed_image(b"nonsense")), InvalidImage)
    assert isinstance(outcome_of_done(inference.embed_image("nonsense")), InvalidImage)
    assert isinstance(outcome_of_done(inference.embed_texts(["x" * 100_001])[0]), InvalidText)
    assert isinstance(outcome_of_done(inference.embed_texts(["x"], "nope")[0]), UnknownModel)
    assert isinstance(outcome_of_done(inference.embed_image(pictures.png(), "fake-classifier")), WrongTask)
    good, bad, last = inference.embed_texts(["x", "x" * 100_001, "y"])
    assert good.result(30) is not None
    assert last.result(30) is not None
    assert isinstance(outcome_of_done(bad), InvalidText)


def outcome_of_done(future: object) -> object:
    future.exception(30)  # type: ignore[attr-defined]
    return outcome_of(future)  # type: ignore[arg-type]


def test_what_nobody_foresaw_is_raised(inference: Inference) -> None:
    future = inference.call(lambda: 1 / 0)
    future.exception(30)
    with pytest.raises(ZeroDivisionError):
        outcome_of(future)


def test_only_what_the_queue_has_room_for_is_kept_decoded(
    fake_models: Path, counting: fakes.CountingLoads, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = Vision(
        Config(default_model="fake", max_batch_size=2, cache_mb=0), store=ModelStore(fake_models), load=counting
    )
    inference = Inference(vision)
    go, decoded, lock = threading.Event(), [], threading.Lock()
    counting.before_run = lambda _: go.wait(30)  # type: ignore[assignment,return-value]
    original = vision.pixels

    def counted(*arguments: object) -> object:
        with lock:
            decoded.append(1)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(vision, "pixels", counted)
    futures = [inference.embed_image(pictures.png(seed=n)) for n in range(20)]
    text = inference.embed_texts(["a text is not kept waiting by pictures"])[0]
    assert not text.done()
    service = vision.services.dual_encoder("fake")
    while len(decoded) < 4:
        threading.Event().wait(0.01)
    threading.Event().wait(0.1)  # long enough for a fifth, if it were let in
    assert len(decoded) == 4
    assert len(service.images._waiting) <= 4
    go.set()
    assert all(future.result(30) is not None for future in futures)
    assert text.result(30) is not None
    assert len(decoded) == 20
    # Every place is free again.
    assert [service.images.room.acquire(blocking=False) for _ in range(5)] == [True] * 4 + [False]
    vision.close()
    inference.close()


def test_one_model_keeps_no_place_of_another(fake_models: Path, counting: fakes.CountingLoads) -> None:
    """The room is that of a model's own queue, by its own settings."""
    models = {"fake": ModelConfig(max_batch_size=1, replicas=2)}
    vision = Vision(
        Config(default_model="fake", max_batch_size=4, models=models, cache_mb=0),
        store=ModelStore(fake_models),
        load=counting,
    )
    inference = Inference(vision)
    own, other = (vision.services.dual_encoder(name).images for name in ("fake", "fake-wide"))
    assert (own.ahead, other.ahead) == (3, 8)
    assert all(other.room.acquire(blocking=False) for _ in range(8))
    assert inference.embed_image(pictures.png()).result(30) is not None
    vision.close()
    inference.close()


def test_a_place_is_given_back_when_decoding_fails(fake_models: Path, counting: fakes.CountingLoads) -> None:
    vision = Vision(Config(default_model="fake", max_batch_size=1), store=ModelStore(fake_models), load=counting)
    inference = Inference(vision)
    for future in [inference.embed_image(b"nonsense %d" % n) for n in range(10)]:
        assert isinstance(outcome_of_done(future), InvalidImage)
    assert inference.embed_image(pictures.png()).result(30) is not None
    vision.close()
    assert isinstance(outcome_of_done(inference.embed_image(pictures.png(seed=5))), Busy)
    inference.close()
    with pytest.raises(Busy, match="no more work can be accepted now"):
        inference.embed_texts(["x"])


def test_what_waits_is_refused_at_the_end(fake_models: Path, counting: fakes.CountingLoads) -> None:
    vision = Vision(Config(default_model="fake", max_batch_size=1), store=ModelStore(fake_models), load=counting)
    inference = Inference(vision)
    go = threading.Event()
    counting.before_run = lambda _: go.wait(30)  # type: ignore[assignment,return-value]
    futures = [inference.embed_image(pictures.png(seed=n)) for n in range(8)]
    while vision.services.dual_encoder("fake").images.waiting < 1:
        threading.Event().wait(0.01)
    inference.close()
    go.set()
    results = [outcome_of_done(future) for future in futures]
    refused = [result for result in results if isinstance(result, Busy)]
    assert 1 <= len(refused) < 8
    assert all("shutting down" in str(error) for error in refused)
    vision.close()


# Fairness


class Gate:
    """Holds back what a model computes until it is opened."""

    def __init__(self, counting: fakes.CountingLoads) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        counting.before_run = self._wait

    def _wait(self, _: object) -> None:
        self.entered.set()
        assert self.open.wait(60)


@pytest.fixture
def gate(counting: fakes.CountingLoads) -> Iterator[Gate]:
    gate = Gate(counting)
    yield gate
    gate.open.set()


ANN, BOB = Caller("ann"), Caller("bob")


def test_one_word_is_not_kept_waiting_by_hundreds_of_long_texts(
    inference: Inference, fake_vision: Vision, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on the threads that tokenise, one text of each client in turn, nor in the queue."""
    service = fake_vision.services.dual_encoder("fake")
    tokenised: list[str] = []
    held, go = threading.Semaphore(0), threading.Event()
    original = service.tokenise

    def tokenise(text: str) -> list[int]:
        tokenised.append(text[:3])
        held.release()
        assert go.wait(60)
        return original(text)

    monkeypatch.setattr(service, "tokenise", tokenise)
    with acting(ANN):
        many = inference.embed_texts([f"{number:03} " + "long " * 19_000 for number in range(300)])
    for _ in range(TEXT_THREADS):
        assert held.acquire(timeout=60)
    with acting(BOB):
        (one,) = inference.embed_texts(["one"])
    go.set()
    gate.open.set()
    assert one.result(60) is not None
    assert tokenised.index("one") <= TEXT_THREADS + 1
    assert all(future.result(60) is not None for future in many)


def test_one_picture_is_not_kept_waiting_by_a_thousand(
    inference: Inference, fake_vision: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    original, threads = fake_vision.pixels, default_threads()

    def pixels(service: Any, image: bytes) -> Any:
        decoded.append(image)
        begun.release()
        assert go_on.acquire(timeout=60)
        return original(service, image)

    monkeypatch.setattr(fake_vision, "pixels", pixels)
    with acting(ANN):
        many = [inference.embed_image(pictures.png(seed=number)) for number in range(40)]
    for _ in range(threads):
        assert begun.acquire(timeout=60)
    mine = pictures.png(seed=1000)
    with acting(BOB):
        one = inference.embed_image(mine)
    go_on.release(threads)
    for _ in range(threads):
        assert begun.acquire(timeout=60)
    assert mine in decoded[: 2 * threads]
    go_on.release(1000)
    assert one.result(60) is not None
    assert all(future.result(60) is not None for future in many)


def test_what_nobody_waits_for_any_more_is_not_computed(
    inference: Inference, fake_vision: Vision, counting: fakes.CountingLoads, gate: Gate
) -> None:
    first = inference.embed_texts(["first"])
    assert gate.entered.wait(60)
    queue = fake_vision.services.dual_encoder("fake").texts
    waiting = inference.embed_texts(["second", "third", "fourth"])
    until(lambda: queue.waiting == 3)
    assert waiting[1].cancel()
    assert queue.waiting == 2
    gate.open.set()
    for future in (*first, waiting[0], waiting[2]):
        assert future.result(60) is not None
    assert sum(counting.batches) == 3


def until(reached: Callable[[], bool]) -> None:
    for _ in range(6000):
        if reached():
            return
        threading.Event().wait(0.01)
    pytest.fail("not within a minute")


def test_what_comes_after_the_deadline_is_not_begun(inference: Inference, counting: fakes.CountingLoads) -> None:
    with acting(Caller("late", deadline=time.monotonic() - 1)):
        futures: list[Any] = [
            *inference.embed_texts(["x", "y"]),
            inference.embed_image(pictures.png()),
            inference.label_set("fake", '["cat"]'),
        ]
    for future in futures:
        assert isinstance(outcome_of_done(future), DeadlineExceeded)
    assert counting.loads == []


def test_only_what_no_cache_holds_is_admitted(inference: Inference) -> None:
    asked: list[tuple[int, int, bool]] = []

    def admit(*, texts: int = 0, images: int = 0, load: Any = None) -> None:
        asked.append((texts, images, load is not None))
        if texts > 2:
            raise Busy("too many")

    with acting(Caller("ann", admit=admit)):
        for future in inference.embed_texts(["a", "b"]):
            future.result(60)
        for future in inference.embed_texts(["a", "b", "c"]):
            future.result(60)
        inference.embed_image(pictures.png()).result(60)
        inference.embed_image(pictures.png()).result(60)
        assert asked == [(2, 0, True), (1, 0, False), (0, 1, True)]
        refused = inference.embed_texts(["d", "a", "e", "f"])
        assert [isinstance(outcome_of_done(future), Busy) for future in refused] == [True, False, True, True]


# Labels


def test_a_label_set_is_what_vision_makes_of_it_and_kept(
    inference: Inference, fake_vision: Vision, counting: fakes.CountingLoads
) -> None:
    text = json.dumps({"labels": [f"label {number}" for number in range(200)], "template": "a {}"})
    labels, prompts = inference.label_set("fake", text).result(60)
    assert sum(counting.batches) == 200
    assert inference.label_set("fake", text).result(60)[1] is prompts
    assert fake_vision.label_set("fake", text)[1] is prompts
    fake_vision.label_sets = LabelSets(1_000_000)
    again = fake_vision.label_set("fake", text)
    assert again[0] == labels
    assert np.array_equal(again[1], prompts)
    assert sum(counting.batches) == 200
    for bad, kind in (("nonsense", InvalidLabels), (json.dumps(["x" * 100_001]), InvalidText)):
        assert isinstance(outcome_of_done(inference.label_set("fake", bad)), kind)
    assert isinstance(outcome_of_done(inference.label_set("nope", '["cat"]')), UnknownModel)


def test_a_label_set_is_longer_than_the_queue(fake_models: Path, counting: fakes.CountingLoads) -> None:
    config = Config(default_model="fake", max_batch_size=4, max_queue=10)
    vision = Vision(config, store=ModelStore(fake_models), load=counting)
    inference = Inference(vision)
    _, prompts = inference.label_set("fake", json.dumps([f"label {number}" for number in range(100)])).result(60)
    assert prompts.shape == (100, 8)
    vision.close()
    inference.close()


def test_label_sets_that_wait_for_a_model_leave_the_threads_to_others(inference: Inference, gate: Gate) -> None:
    waiting = [inference.label_set("fake", json.dumps([f"label {number}"])) for number in range(3 * CALL_THREADS)]
    assert gate.entered.wait(60)
    assert inference.call(lambda: "here").result(60) == "here"
    assert not any(future.done() for future in waiting)
    gate.open.set()
    assert all(future.result(60) for future in waiting)
