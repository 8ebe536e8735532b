"""intake.py: futures that are always answered, bounded threads and bounded pixels."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datasette_vision.config import Config
from datasette_vision.errors import Busy, InvalidImage, InvalidText, UnknownModel, WrongTask
from datasette_vision.intake import Intake, outcome_of
from datasette_vision.models.store import ModelStore
from datasette_vision.vision import Vision
from tests import fakes, pictures


@pytest.fixture
def intake(fake_vision: Vision) -> Iterator[Intake]:
    intake = Intake(fake_vision)
    yield intake
    intake.close()


def test_the_same_as_embedding_one_by_one(intake: Intake, fake_vision: Vision) -> None:
    texts = ["a cat", "", "a dog", "a cat"]
    for text, future in zip(texts, intake.embed_texts(texts), strict=True):
        assert np.array_equal(future.result(30), fake_vision.embed_text(text, normalised=False))
    picture = pictures.png()
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    expected = fake_vision.embed_image(picture, normalised=False)
    assert np.array_equal(intake.embed_image(picture).result(30), expected)
    assert np.array_equal(intake.embed_image(uri).result(30), expected)
    assert np.array_equal(intake.embed_texts(["x"], "fake-wide")[0].result(30).shape, (12,))


def test_what_was_computed_is_kept(intake: Intake, counting: fakes.CountingLoads) -> None:
    picture = pictures.png()
    for _ in range(3):
        intake.embed_image(picture).result(30)
        intake.embed_texts(["a cat"])[0].result(30)
    assert counting.batches == [1, 1]


def test_classifiers_and_dual_encoders_label(intake: Intake, fake_vision: Vision) -> None:
    picture = pictures.png()
    for model in ("fake-classifier", "fake-labels"):
        output = intake.classify_image(picture, model).result(30)
        assert fake_vision.label(output, model, 2) == fake_vision.classify(picture, model, 2)


def test_errors_come_out_of_the_future(intake: Intake) -> None:
    assert isinstance(outcome_of_done(intake.embed_image(b"nonsense")), InvalidImage)
    assert isinstance(outcome_of_done(intake.embed_image("nonsense")), InvalidImage)
    assert isinstance(outcome_of_done(intake.embed_texts(["x" * 100_001])[0]), InvalidText)
    assert isinstance(outcome_of_done(intake.embed_texts(["x"], "nope")[0]), UnknownModel)
    assert isinstance(outcome_of_done(intake.embed_image(pictures.png(), "fake-classifier")), WrongTask)
    good, bad, last = intake.embed_texts(["x", "x" * 100_001, "y"])
    assert good.result(30) is not None
    assert last.result(30) is not None
    assert isinstance(outcome_of_done(bad), InvalidText)


def outcome_of_done(future: object) -> object:
    future.exception(30)  # type: ignore[attr-defined]
    return outcome_of(future)  # type: ignore[arg-type]


def test_what_nobody_foresaw_is_raised(intake: Intake) -> None:
    future = intake.call(lambda: 1 / 0)
    future.exception(30)
    with pytest.raises(ZeroDivisionError):
        outcome_of(future)


def test_only_two_batches_are_kept_decoded(
    fake_models: Path, counting: fakes.CountingLoads, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = Vision(
        Config(default_model="fake", max_batch_size=2, cache_mb=0), store=ModelStore(fake_models), load=counting
    )
    intake = Intake(vision)
    go, decoded, lock = threading.Event(), [], threading.Lock()
    counting.before_run = lambda _: go.wait(30)  # type: ignore[assignment,return-value]
    original = vision.pixels

    def counted(*arguments: object) -> object:
        with lock:
            decoded.append(1)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(vision, "pixels", counted)
    futures = [intake.embed_image(pictures.png(seed=n)) for n in range(20)]
    text = intake.embed_texts(["a text is not kept waiting by pictures"])[0]
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
    assert all(intake._room.acquire(blocking=False) for _ in range(4))
    vision.close()
    intake.close()


def test_a_place_is_given_back_when_decoding_fails(fake_models: Path, counting: fakes.CountingLoads) -> None:
    vision = Vision(Config(default_model="fake", max_batch_size=1), store=ModelStore(fake_models), load=counting)
    intake = Intake(vision)
    for future in [intake.embed_image(b"nonsense %d" % n) for n in range(10)]:
        assert isinstance(outcome_of_done(future), InvalidImage)
    assert intake.embed_image(pictures.png()).result(30) is not None
    vision.close()
    assert isinstance(outcome_of_done(intake.embed_image(pictures.png(seed=5))), Busy)
    intake.close()
    with pytest.raises(Busy, match="nothing can be taken on now"):
        intake.embed_texts(["x"])


def test_what_waits_is_refused_at_the_end(fake_models: Path, counting: fakes.CountingLoads) -> None:
    vision = Vision(Config(default_model="fake", max_batch_size=1), store=ModelStore(fake_models), load=counting)
    intake = Intake(vision)
    go = threading.Event()
    counting.before_run = lambda _: go.wait(30)  # type: ignore[assignment,return-value]
    futures = [intake.embed_image(pictures.png(seed=n)) for n in range(8)]
    while vision.services.dual_encoder("fake").images.waiting < 1:
        threading.Event().wait(0.01)
    intake.close()
    go.set()
    results = [outcome_of_done(future) for future in futures]
    refused = [result for result in results if isinstance(result, Busy)]
    assert 1 <= len(refused) < 8
    assert all("shutting down" in str(error) for error in refused)
    vision.close()
