"""Vision on the fake models: numbers do not matter here, behaviour does."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasette_vision.config.settings import Config
from datasette_vision.engine.encoder import LoadSession, load_on
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import (
    Busy,
    DeadlineExceeded,
    EngineFailure,
    InvalidImage,
    InvalidLabels,
    InvalidText,
    ModelCorrupt,
    UnknownModel,
    WrongTask,
)
from datasette_vision.models.store import ModelStore
from datasette_vision.util.caller import Caller, acting
from tests import fakes, pictures


def test_an_embedding_has_the_length_one_and_the_raw_one_the_same_direction(fake_vision: Vision) -> None:
    for unit, raw in (
        (fake_vision.embed_text("cat"), fake_vision.embed_text("cat", normalised=False)),
        (fake_vision.embed_image(pictures.png()), fake_vision.embed_image(pictures.png(), normalised=False)),
    ):
        assert unit.shape == raw.shape == (8,)
        assert unit.dtype == raw.dtype == np.float32
        assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)
        assert abs(np.linalg.norm(raw) - 1) > 0.01
        assert np.dot(unit, raw) == pytest.approx(np.linalg.norm(raw), rel=1e-5)


def test_towers_load_at_first_use_and_only_the_one_that_is_needed(
    fake_vision: Vision, counting: fakes.CountingLoads
) -> None:
    assert counting.loads == []
    fake_vision.embed_text("cat")
    assert counting.loads == ["text.onnx"]
    assert fake_vision.services.loaded("fake") == ["text"]
    fake_vision.embed_image(pictures.png())
    assert counting.loads == ["text.onnx", "image.onnx"]


def test_64_threads_at_once_each_get_what_they_would_get_alone(
    fake_vision: Vision, fake_models: Path, counting: fakes.CountingLoads
) -> None:
    texts = [f"text number {number} " + "x" * (number % 7) for number in range(64)]
    images = [pictures.png(width=20 + number % 5, height=30, seed=number) for number in range(64)]
    alone = Vision(Config(default_model="fake", max_batch_size=1), store=ModelStore(fake_models))
    expected = [(alone.embed_text(text), alone.embed_image(image)) for text, image in zip(texts, images, strict=True)]
    barrier = threading.Barrier(64)

    def both(position: int) -> tuple[np.ndarray, np.ndarray]:
        barrier.wait(60)
        return fake_vision.embed_text(texts[position]), fake_vision.embed_image(images[position])

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(both, range(64)))
    for (text, image), (expected_text, expected_image) in zip(found, expected, strict=True):
        np.testing.assert_allclose(text, expected_text, atol=1e-5)
        np.testing.assert_allclose(image, expected_image, atol=1e-5)
    assert sorted(counting.loads) == ["image.onnx", "text.onnx"]
    alone.close()


def test_the_same_input_is_computed_once(fake_vision: Vision, counting: fakes.CountingLoads) -> None:
    first = fake_vision.embed_text("cat")
    again = fake_vision.embed_text("cat")
    np.testing.assert_array_equal(first, again)
    assert counting.batches == [1]
    assert fake_vision.cache.hits == 1


def test_the_cache_tells_models_kinds_and_near_twins_apart(fake_vision: Vision) -> None:
    cat = fake_vision.embed_text("cat")
    assert not np.allclose(cat, fake_vision.embed_text("cab"))
    assert fake_vision.embed_text("cat", "fake-wide").shape == (12,)
    one, other = pictures.png(seed=1), pictures.png(seed=2)
    assert not np.allclose(fake_vision.embed_image(one), fake_vision.embed_image(other))
    np.testing.assert_array_equal(cat, fake_vision.embed_text("cat"))


def test_a_cached_embedding_cannot_be_changed_by_its_user(fake_vision: Vision) -> None:
    vector = fake_vision.embed_text("cat", normalised=False)
    fake_vision.embed_text("cat", normalised=False)
    kept = fake_vision.embed_text("cat", normalised=False)
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 5
    np.testing.assert_array_equal(vector, kept)


def test_embed_texts_is_embed_text_many_times_over(fake_vision: Vision, counting: fakes.CountingLoads) -> None:
    fake_vision.embed_text("b")
    counting.batches.clear()
    texts = ["a", "b", "", "a longer one", "a"] * 20
    matrix = fake_vision.embed_texts(texts)
    for text, row in zip(texts, matrix, strict=True):
        np.testing.assert_allclose(row, fake_vision.embed_text(text), atol=1e-6)
    assert len(counting.batches) < 40  # in batches, not one by one


def test_embed_images_reports_bad_ones_in_their_place(fake_vision: Vision) -> None:
    good = pictures.png()
    sources = [b"", good, good[:-60], b"no", good, b"\x89PNG"]
    outcomes = list(fake_vision.embed_images(iter(sources)))
    assert [isinstance(outcome, InvalidImage) for outcome in outcomes] == [True, False, True, True, False, True]
    np.testing.assert_allclose(outcomes[1], fake_vision.embed_image(good), atol=1e-6)
    assert list(fake_vision.embed_images([])) == []


def test_an_embedding_is_recognised_among_images(fake_vision: Vision) -> None:
    vector = fake_vision.embed_image(pictures.png())
    np.testing.assert_array_equal(fake_vision.embed_image_or_embedding(vector.tobytes()), vector)
    np.testing.assert_allclose(fake_vision.embed_image_or_embedding((3 * vector).tobytes()), vector, atol=1e-6)
    np.testing.assert_array_equal(fake_vision.embed_image_or_embedding(pictures.png()), vector)
    with pytest.raises(
        InvalidImage, match="expected an image, or an embedding of 32 bytes, found 33 bytes that are neither"
    ):
        fake_vision.embed_image_or_embedding(vector.tobytes() + b"\0")


def test_an_embedding_that_begins_like_a_bmp_file_is_still_an_embedding(fake_vision: Vision) -> None:
    blob = b"BM" + fake_vision.embed_text("cat").tobytes()[2:]
    assert fake_vision.embed_image_or_embedding(blob).tobytes() == blob


def test_a_classifier_gives_probabilities_over_all_its_labels(fake_vision: Vision) -> None:
    every = fake_vision.classify(pictures.png(), "fake-classifier", k=None)
    assert sorted(str(entry["label"]) for entry in every) == ["ant", "bee", "cat"]
    scores = [float(str(entry["score"])) for entry in every]
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert fake_vision.classify(pictures.png(), "fake-classifier", k=1) == every[:1]


def test_a_dual_encoder_classifies_over_the_labels_of_its_manifest(fake_vision: Vision) -> None:
    found = fake_vision.classify(pictures.png(), "fake-labels")
    assert {entry["label"] for entry in found} == {"x", "y"}
    with pytest.raises(WrongTask, match="'fake' has no labels of its own: pass labels to vision_zero_shot"):
        fake_vision.classify(pictures.png(), "fake")


def test_the_default_classifier_is_the_configured_one(fake_models: Path) -> None:
    config = Config(default_model="fake", default_classifier="fake-classifier")
    vision = Vision(config, store=ModelStore(fake_models))
    assert len(vision.classify(pictures.png(), k=None)) == 3
    vision.close()


def test_zero_shot_agrees_with_clip_s_formula(fake_vision: Vision) -> None:
    image = fake_vision.embed_image(pictures.png())
    logits = 10 * np.array([np.dot(image, fake_vision.embed_text(text)) for text in ("a dog", "a cat")])
    expected = np.exp(logits) / np.exp(logits).sum()
    labels = '{"labels": ["dog", "cat"], "template": "a {}"}'
    found = {entry["label"]: entry["score"] for entry in fake_vision.zero_shot(pictures.png(), labels)}
    assert found["dog"] == pytest.approx(expected[0], rel=1e-4)
    assert found["cat"] == pytest.approx(expected[1], rel=1e-4)
    single = '{"labels": ["dog", "cat"], "template": "a {}", "multi_label": true, "temperature": 2}'
    found = {entry["label"]: entry["score"] for entry in fake_vision.zero_shot(pictures.png(), single)}
    assert found["dog"] == pytest.approx(1 / (1 + np.exp(-logits[0] / 2)), rel=1e-4)


def test_labels_are_embedded_once_for_all_rows(fake_vision: Vision, counting: fakes.CountingLoads) -> None:
    vector = fake_vision.embed_text("anything").tobytes()
    fake_vision.zero_shot(vector, '["a", "b", "c"]')
    texts = sum(counting.batches)
    for _ in range(10):
        fake_vision.zero_shot(vector, '["a", "b", "c"]')
    assert sum(counting.batches) == texts


def test_label_sets_are_bounded_in_bytes(fake_models: Path) -> None:
    vision = Vision(Config(default_model="fake", cache_mb=1), store=ModelStore(fake_models))
    vector = vision.embed_text("anything").tobytes()
    for number in range(40):
        labels = json.dumps([f"set {number} label {label}" for label in range(100)])
        assert len(vision.zero_shot(vector, labels)) == 100
        assert 0 < vision.label_sets.bytes <= 250_000
    vision.close()


def test_too_many_labels_are_refused(fake_models: Path) -> None:
    vision = Vision(Config(default_model="fake", max_labels=2), store=ModelStore(fake_models))
    vector = vision.embed_text("anything").tobytes()
    with pytest.raises(InvalidLabels, match=r"^labels: expected at most 2 labels \(max_labels\), found 3$"):
        vision.zero_shot(vector, '["a", "b", "c"]')
    vision.close()


def test_a_default_classifier_without_labels_is_found_out(fake_models: Path) -> None:
    config = Config(default_model="fake", default_classifier="fake")
    with pytest.raises(WrongTask, match=r"^default_classifier: 'fake' has no labels of its own$"):
        Vision(config, store=ModelStore(fake_models)).check_models()


def test_mistakes_are_named(fake_vision: Vision) -> None:
    with pytest.raises(
        UnknownModel,
        match=r"^no model 'clipp' is installed; installed are: fake, fake-classifier, fake-labels, fake-wide, tiny-",
    ):
        fake_vision.embed_text("x", "clipp")
    with pytest.raises(WrongTask, match="'fake-classifier' is for image-classification: it makes no embeddings"):
        fake_vision.embed_text("x", "fake-classifier")
    with pytest.raises(InvalidLabels):
        fake_vision.zero_shot(pictures.png(), "[]")
    with pytest.raises(InvalidText, match=r"at most 100,000 characters of text \(max_text_chars\), found 100,001"):
        fake_vision.embed_text("x" * 100_001)


def test_limits_come_from_the_configuration(fake_models: Path) -> None:
    config = Config(default_model="fake", max_image_mb=0.001, max_text_chars=3)
    vision = Vision(config, store=ModelStore(fake_models))
    with pytest.raises(InvalidImage):
        vision.embed_image(pictures.png(width=200, height=200))
    with pytest.raises(InvalidText):
        vision.embed_text("four")
    vision.close()
    vision = Vision(Config(default_model="fake", max_image_megapixels=0.01), store=ModelStore(fake_models))
    with pytest.raises(InvalidImage):
        vision.embed_image(pictures.png(width=200, height=200))
    vision.close()


def test_a_full_queue_is_busy_for_the_caller_at_once(fake_models: Path, counting: fakes.CountingLoads) -> None:
    gate, entered = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        entered.set()
        assert gate.wait(60)

    counting.before_run = wait
    vision = Vision(
        Config(default_model="fake", max_queue=1, max_batch_size=1), store=ModelStore(fake_models), load=counting
    )
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(vision.embed_text, "first")
        assert entered.wait(60)
        queued = pool.submit(vision.embed_text, "second")
        service = vision.services.dual_encoder("fake")
        while not service.texts._waiting:
            pass
        with pytest.raises(Busy):
            vision.embed_text("third")
        gate.set()
        assert held.result(60).shape == queued.result(60).shape == (8,)
    assert vision.embed_text("third").shape == (8,)
    vision.close()


def test_a_damaged_model_is_named_and_a_mended_one_works_again(fake_models: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    shutil.copytree(fake_models, root)
    good = (root / "fake/text.onnx").read_bytes()
    (root / "fake/text.onnx").write_bytes(good[:-1] + b"\0")
    vision = Vision(Config(default_model="fake"), store=ModelStore(root))
    with pytest.raises(ModelCorrupt, match=r"text\.onnx: expected the SHA-256"):
        vision.embed_text("cat")
    assert vision.embed_image(pictures.png()).shape == (8,)
    (root / "fake/text.onnx").write_bytes(good)
    assert vision.embed_text("cat").shape == (8,)
    vision.close()


def test_models_describes_what_is_installed_and_what_is_damaged(fake_models: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    shutil.copytree(fake_models, root)
    (root / "fake-wide/manifest.json").write_text("{")
    vision = Vision(Config(default_model="fake"), store=ModelStore(root))
    vision.embed_text("cat")
    found = {str(model["name"]): model for model in vision.models()}
    assert list(found) == ["fake", "fake-classifier", "fake-labels", "fake-wide", "tiny-emoji"]
    assert found["fake"]["loaded"] == ["text"]
    assert found["fake"]["default"] is True
    assert found["fake-classifier"]["task"] == "image-classification"
    assert found["fake-classifier"]["labels"] == 3
    assert "expected JSON" in str(found["fake-wide"]["error"])
    vision.close()


def test_threads_and_providers_of_a_model_reach_its_loader(fake_models: Path) -> None:
    asked: list[tuple[int | None, tuple[str, ...]]] = []

    def load(threads: int | None, providers: Sequence[str]) -> LoadSession:
        asked.append((threads, tuple(providers)))
        return load_on(1)

    config = Config.from_mapping(
        {"default_model": "fake", "threads": 3, "providers": ["A", "B"], "models": {"fake-wide": {"providers": []}}}
    )
    vision = Vision(config, store=ModelStore(fake_models), load=load)
    vision.embed_text("a")
    vision.embed_text("a", "fake-wide")
    assert asked == [(3, ("A", "B")), (3, ())]


def test_preload_warms_both_towers(fake_models: Path, counting: fakes.CountingLoads) -> None:
    config = Config(default_model="fake", preload=("fake", "fake-classifier"))
    vision = Vision(config, store=ModelStore(fake_models), load=counting)
    vision.preload()
    assert counting.loads == ["text.onnx", "image.onnx", "image.onnx"]
    vision.close()


def test_a_configuration_that_names_a_missing_model_is_found_out(fake_models: Path) -> None:
    for config in (
        Config(default_model="gone"),
        Config(default_model="fake", default_classifier="gone"),
        Config(default_model="fake", preload=("gone",)),
    ):
        with pytest.raises(UnknownModel, match="no model 'gone' is installed"):
            Vision(config, store=ModelStore(fake_models)).check_models()
    with pytest.raises(WrongTask):
        Vision(Config(default_model="fake-classifier"), store=ModelStore(fake_models)).check_models()


@pytest.mark.parametrize("model", ["fake", "fake-classifier"])
def test_a_graph_that_gives_no_numbers_is_an_error_and_not_bad_data(fake_models: Path, model: str) -> None:
    vision = Vision(Config(default_model="fake"), store=ModelStore(fake_models), load=lambda threads, providers: broken)

    class Broken:
        one_by_one = False

        def run(self, inputs: object) -> np.ndarray:
            return np.full((1, 3 if model == "fake-classifier" else 8), np.nan, dtype=np.float32)

    def broken(*_: object) -> Broken:
        return Broken()

    with pytest.raises(EngineFailure, match=f"^{model}: expected finite numbers, found a NaN or an infinity"):
        vision.classify(pictures.png(), model) if "classifier" in model else vision.embed_image(pictures.png(), model)
    vision.close()


# Deadlines, and who may have something computed


def until(reached: Callable[[], bool]) -> None:
    for _ in range(6000):
        if reached():
            return
        threading.Event().wait(0.01)
    pytest.fail("not within a minute")


def in_seconds(seconds: float) -> Caller:
    return Caller("ann", deadline=time.monotonic() + seconds)


def test_labels_of_a_query_that_runs_out_of_time_get_further_each_time(
    fake_models: Path, counting: fakes.CountingLoads
) -> None:
    """A model so slow that a deadline passes with every batch."""
    vision = Vision(Config(default_model="fake", max_batch_size=8), store=ModelStore(fake_models), load=counting)
    vision.embed_text("loaded")
    labels = json.dumps([f"label {number}" for number in range(60)])
    deadline = threading.Event()
    counting.before_run = lambda _: deadline.wait(60)  # type: ignore[assignment,return-value]
    queue, attempts = vision.services.dual_encoder("fake").texts, 0
    while True:
        deadline.clear()
        attempts += 1
        assert attempts < 60, "no progress"
        try:
            with acting(in_seconds(0.1)):
                assert vision.label_set("fake", labels)[1].shape == (60, 8)
            break
        except DeadlineExceeded:
            deadline.set()
            until(lambda: queue._idle == 1)  # what was under way is finished
    assert attempts > 1
    assert queue.items == 61  # nothing twice
    vision.close()


def test_an_embedding_that_came_too_late_is_there_the_next_time(
    fake_vision: Vision, counting: fakes.CountingLoads
) -> None:
    go = threading.Event()
    counting.before_run = lambda _: go.wait(60)  # type: ignore[assignment,return-value]
    picture = pictures.png()
    for embed in (lambda: fake_vision.embed_text("cat"), lambda: fake_vision.embed_image(picture)):
        go.clear()
        before = len(counting.batches)
        with acting(in_seconds(0.1)), pytest.raises(DeadlineExceeded):
            embed()
        go.set()
        until(lambda before=before: len(counting.batches) > before and fake_vision.cache.bytes > 0)  # type: ignore[misc]
    fake_vision.close()  # what was under way is finished
    assert fake_vision.embed_text("cat").shape == fake_vision.embed_image(picture).shape == (8,)
    assert counting.batches == [1, 1]


@pytest.mark.parametrize("part", ["tokenizer", "text_tower"])
def test_a_query_stops_waiting_for_a_model_that_goes_on_loading(
    fake_vision: Vision, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    lazy = getattr(fake_vision.services.dual_encoder("fake").encoder, part)
    go, make = threading.Event(), lazy._make

    def slowly() -> Any:
        assert go.wait(60)
        return make()

    monkeypatch.setattr(lazy, "_make", slowly)
    with acting(in_seconds(0.1)), pytest.raises(DeadlineExceeded):
        fake_vision.embed_text("cat")
    assert not lazy.loaded
    go.set()
    until(lambda: lazy.loaded)
    with acting(in_seconds(60)):
        assert fake_vision.embed_text("cat").shape == (8,)


def test_what_is_wrong_with_a_model_is_said_within_a_deadline_too(
    fake_vision: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise TimeoutError("a file system that does not answer")

    monkeypatch.setattr(fake_vision.services.dual_encoder("fake").encoder.tokenizer, "_make", broken)
    with acting(in_seconds(60)), pytest.raises(TimeoutError, match="does not answer"):
        fake_vision.embed_text("cat")


def test_what_the_cache_does_not_hold_is_admitted_before_anything_is_done(
    fake_vision: Vision, counting: fakes.CountingLoads, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, bool]] = []

    def admit(*, texts: int = 0, images: int = 0, load: Any = None) -> None:
        asked.append((texts, images, load is not None))
        if refusing:
            raise Busy("not now")

    refusing, picture = True, pictures.png()
    work: list[tuple[Callable[[], object], tuple[int, int, bool]]] = [
        (lambda: fake_vision.embed_text("cat"), (1, 0, True)),
        (lambda: fake_vision.embed_texts(["cat", "dog", "bird"]), (2, 0, False)),
        (lambda: fake_vision.embed_image(picture), (0, 1, True)),
        (lambda: fake_vision.zero_shot(picture, '["cat", "cow"]'), (1, 0, False)),
        (lambda: fake_vision.classify(picture, "fake-classifier"), (0, 1, True)),
    ]
    with monkeypatch.context() as patch, acting(Caller(admit=admit)):
        patch.setattr(fake_vision, "pixels", lambda *_: pytest.fail("decoded too early"))
        for compute, _ in work:
            with pytest.raises(Busy, match="not now"):
                compute()
    assert counting.loads == []
    asked.clear()
    refusing = False
    with acting(Caller(admit=admit)):
        for compute, expected in work:
            compute()
            assert asked == [expected]
            asked.clear()
        for compute, _ in work[:-1]:
            compute()
            assert asked == []


def test_a_thousand_labels_of_ten_kilobytes_are_answered(fake_vision: Vision) -> None:
    labels = json.dumps(
        {"labels": [f"label {number}" for number in range(1000)], "template": "{} " + "and more words " * 700}
    )
    picture = pictures.png()
    assert len(fake_vision.zero_shot(picture, labels)) == 1000
    assert len(fake_vision.zero_shot(picture, labels.replace("and more words ", "x" * 15))) == 1000
