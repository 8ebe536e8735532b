"""bulk/pipeline.py: every item gets its outcome, whatever is wrong with its neighbours, in bounded memory."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasette_vision.bulk import pipeline_stages
from datasette_vision.bulk.pipeline import Inspected, Outcome, config_for_bulk, embed_all
from datasette_vision.config.settings import Config, ModelConfig
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import Busy, EngineFailure, InvalidImage, InvalidText, ModelCorrupt, Unreadable, WrongTask
from datasette_vision.models.store import ModelStore
from tests import fakes, pictures

Make = Callable[..., Vision]


@pytest.fixture
def make(fake_models: Path, counting: fakes.CountingLoads) -> Iterator[Make]:
    """Makes a Vision on the fake model, set up for bulk work."""
    made = []

    def make(**settings: Any) -> Vision:
        config = config_for_bulk(Config(default_model="fake", **settings), workers=2, batch_size=4)
        made.append(Vision(config, store=ModelStore(fake_models), load=counting))
        return made[-1]

    yield make
    for vision in made:
        vision.close()


def no_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("datasette-vision-read")]


def content(item: bytes) -> bytes:
    return item


PICTURES = [pictures.png(width=20 + seed % 5, height=30, seed=seed) for seed in range(40)]


@pytest.mark.parametrize("in_order", [True, False])
def test_images_are_embedded_as_they_are_one_by_one(make: Make, in_order: bool) -> None:
    vision = make()
    outcomes = list(embed_all(vision.image_tower(), PICTURES, content, in_order=in_order))
    if in_order:
        assert [outcome.item for outcome in outcomes] == PICTURES
    assert sorted(outcome.item for outcome in outcomes) == sorted(PICTURES)
    for outcome in outcomes:
        assert outcome.vector is not None
        assert outcome.vector.dtype == np.float32
        np.testing.assert_allclose(outcome.vector, vision.embed_image(outcome.item), atol=1e-6)
        assert outcome.content_hash == hashlib.sha256(outcome.item).hexdigest()
        assert (outcome.error, outcome.unchanged, outcome.computed) == (None, False, True)
    assert no_threads()


def test_texts(make: Make) -> None:
    vision = make(max_text_chars=20)
    texts = ["cat", "a purple heart", "", "é", "x" * 21, "cat"]
    outcomes = list(embed_all(vision.text_tower(), texts, str.encode))
    for text, outcome in zip(texts, outcomes, strict=True):
        if len(text) > 20:
            assert isinstance(outcome.error, InvalidText)
        else:
            assert outcome.vector is not None
            np.testing.assert_allclose(outcome.vector, vision.embed_text(text), atol=1e-6)
    assert [outcome.computed for outcome in outcomes] == [True, True, True, True, False, False]


def test_a_classifier_gives_its_scores(make: Make) -> None:
    vision = make()
    (outcome,) = embed_all(vision.image_tower("fake-classifier"), PICTURES[:1], content)
    assert outcome.vector is not None
    expected = {entry["label"]: entry["score"] for entry in vision.classify(PICTURES[0], "fake-classifier")}
    assert dict(zip(("ant", "bee", "cat"), outcome.vector.tolist(), strict=True)) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(WrongTask):
        vision.text_tower("fake-classifier")


def test_bad_items_are_named_and_stop_nobody(make: Make, tmp_path: Path) -> None:
    """One truncated JPEG killed the thread that prepares pictures, and every later request hung: elsewhere."""
    good = pictures.jpeg(seed=1)
    files = {
        "good": good,
        "truncated": pictures.jpeg(seed=2)[:-700],
        "empty": b"",
        "text": b"hello",
        "huge": pictures.png(4000, 3000, seed=1),
        "last": pictures.jpeg(seed=3),
    }
    for name, data in files.items():
        tmp_path.joinpath(name).write_bytes(data)
    tmp_path.joinpath("folder").mkdir()
    names = ["truncated", "missing", *files, "folder", "last"] * 20
    vision = make(max_image_megapixels=10)
    outcomes = list(embed_all(vision.image_tower(), [tmp_path / name for name in names], Path.read_bytes))
    errors = {outcome.item.name: outcome.error for outcome in outcomes if outcome.error}
    assert {name: type(error) for name, error in errors.items()} == {
        "truncated": InvalidImage,
        "empty": InvalidImage,
        "text": InvalidImage,
        "huge": InvalidImage,
        "missing": Unreadable,
        "folder": Unreadable,
    }
    assert str(errors["missing"]) == "cannot be read: No such file or directory"
    assert str(errors["truncated"]).startswith("truncated JPEG image")
    assert [outcome.item.name for outcome in outcomes] == names
    assert sum(outcome.vector is not None for outcome in outcomes) == names.count("good") + names.count("last")
    assert next(outcome for outcome in outcomes if outcome.item.name == "missing").content_hash is None


def test_equal_contents_are_computed_once(make: Make, counting: fakes.CountingLoads) -> None:
    outcomes = list(embed_all(make().image_tower(), PICTURES[:5] * 30, content))
    assert sum(counting.batches) == 5
    assert sum(outcome.computed for outcome in outcomes) == 5
    by_item: dict[bytes, list[Outcome[bytes]]] = {}
    for outcome in outcomes:
        by_item.setdefault(outcome.item, []).append(outcome)
    for same in by_item.values():
        for outcome in same:
            np.testing.assert_array_equal(outcome.vector, same[0].vector)


def test_what_is_known_or_unchanged_is_not_computed(make: Make, counting: fakes.CountingLoads) -> None:
    digests = [hashlib.sha256(picture).hexdigest() for picture in PICTURES]
    vector = np.ones(8, dtype=np.float32)
    seen: list[tuple[bytes, bytes]] = []
    outcomes = list(
        embed_all(
            make().image_tower(),
            PICTURES,
            content,
            unchanged=lambda item, digest: digest in digests[:10] and item == PICTURES[digests.index(digest)],
            known=lambda digest: vector if digest in digests[10:20] else None,
            inspect=lambda item, data: seen.append((item, data)) or len(data),  # type: ignore[func-returns-value]
        )
    )
    assert [outcome.unchanged for outcome in outcomes] == [True] * 10 + [False] * 30
    assert all(outcome.vector is None and outcome.inspected is None for outcome in outcomes[:10])
    assert all(outcome.vector is vector and not outcome.computed for outcome in outcomes[10:20])
    assert [outcome.inspected for outcome in outcomes[10:]] == [len(picture) for picture in PICTURES[10:]]
    assert sorted(seen) == sorted((picture, picture) for picture in PICTURES[10:])
    assert sum(counting.batches) == 20


def test_what_inspecting_has_prepared_is_not_prepared_again(make: Make, counting: fakes.CountingLoads) -> None:
    tower = make().image_tower()
    prepared: list[bytes] = []

    def prepare(data: bytes) -> Any:
        prepared.append(data)
        return tower.prepare(data)

    def inspect(item: bytes, data: bytes) -> Any:
        return len(data) if item == PICTURES[2] else Inspected(len(data), tower.prepare(data))

    counted = dataclasses.replace(tower, prepare=prepare)
    outcomes = list(embed_all(counted, PICTURES[:4], content, inspect=inspect))
    assert prepared == [PICTURES[2]]
    assert [outcome.inspected for outcome in outcomes] == [len(picture) for picture in PICTURES[:4]]
    for outcome, expected in zip(outcomes, embed_all(tower, PICTURES[:4], content), strict=True):
        assert (outcome.vector == expected.vector).all()


def test_what_inspecting_finds_wrong_is_the_items_error(make: Make, counting: fakes.CountingLoads) -> None:
    def inspect(item: bytes, data: bytes) -> str:
        if item == PICTURES[1]:
            raise InvalidImage("not to my taste")
        return "fine"

    outcomes = list(embed_all(make().image_tower(), [*PICTURES[:3], b"no"], content, inspect=inspect))
    assert [str(outcome.error) for outcome in outcomes[:3]] == ["None", "not to my taste", "None"]
    assert isinstance(outcomes[3].error, InvalidImage)
    assert outcomes[3].inspected == "fine"
    assert outcomes[1].content_hash == hashlib.sha256(PICTURES[1]).hexdigest()
    assert sum(counting.batches) == 2


def test_an_input_that_the_engine_fails_on_fails_alone(make: Make, counting: fakes.CountingLoads) -> None:
    bad = pictures.png(16, 16)
    vision = make()
    pixels = vision.image_tower().prepare(bad)

    def before_run(inputs: Mapping[str, np.ndarray]) -> None:
        if any(np.array_equal(row, pixels) for row in inputs["pixel_values"]):
            raise RuntimeError

    counting.before_run = before_run
    outcomes = list(embed_all(vision.image_tower(), [*PICTURES[:10], bad, *PICTURES[10:]], content))
    assert [type(outcome.error) for outcome in outcomes if outcome.error] == [EngineFailure]
    assert outcomes[10].error is not None


def test_a_model_that_is_damaged_ends_the_run(make: Make, counting: fakes.CountingLoads) -> None:
    def before_run(inputs: object) -> None:
        raise ModelCorrupt("image.onnx: gone")

    counting.before_run = before_run
    with pytest.raises(ModelCorrupt, match=r"image\.onnx: gone"):
        list(embed_all(make().image_tower(), PICTURES, content))
    assert no_threads()


def test_a_vision_that_is_closed_ends_the_run(make: Make) -> None:
    vision = make()
    items = [PICTURES[0] + b"%d" % number for number in range(2 * pipeline_stages.WINDOW)]
    outcomes = embed_all(vision.image_tower(), items, content)
    next(outcomes)
    vision.services.close()
    with pytest.raises(Busy, match="shutting down"):
        list(outcomes)


@pytest.mark.parametrize("where", ["items", "read", "unchanged", "known", "inspect"])
def test_a_defect_is_raised(make: Make, where: str) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    def items() -> Iterator[bytes]:
        yield from PICTURES[:5]
        fail()

    functions: dict[str, Any] = {"read": content} | ({where: fail} if where != "items" else {})
    with pytest.raises(ZeroDivisionError):
        list(embed_all(make().image_tower(), items() if where == "items" else PICTURES, **functions))
    assert no_threads()


def test_nothing_to_do(make: Make) -> None:
    assert list(embed_all(make().image_tower(), [], content)) == []


def test_giving_up_half_way(make: Make) -> None:
    outcomes = embed_all(make().image_tower(), iter(PICTURES * 100), content)
    for _ in range(3):
        next(outcomes)
    outcomes.close()
    assert no_threads()


def test_items_are_taken_only_a_little_ahead(make: Make) -> None:
    taken = 0

    def items() -> Iterator[bytes]:
        nonlocal taken
        for number in range(3 * pipeline_stages.WINDOW):
            taken += 1
            yield PICTURES[number % 40]

    for delivered, _ in enumerate(embed_all(make().image_tower(), items(), content, workers=4), start=1):
        assert taken - delivered <= pipeline_stages.WINDOW + 4
    assert delivered == 3 * pipeline_stages.WINDOW


def test_few_are_in_the_queue_at_a_time(make: Make, counting: fakes.CountingLoads) -> None:
    """So that others who ask the same model are served in between."""
    vision = make()
    tower = vision.image_tower()
    gate = threading.Event()
    counting.before_run = lambda inputs: None if gate.wait(30) else pytest.fail("never opened")
    prepared = 0
    lock = threading.Lock()

    def prepare(data: bytes) -> Any:
        nonlocal prepared
        with lock:
            prepared += 1
        return tower.prepare(data)

    outcomes: list[Outcome[bytes]] = []
    counted = type(tower)(tower.model, tower.dimensions, prepare, tower.queue, tower.finish)
    thread = threading.Thread(target=lambda: outcomes.extend(embed_all(counted, PICTURES, content, max_queued=6)))
    thread.start()
    deadline = time.monotonic() + 30
    while prepared < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert prepared == 6
    gate.set()
    thread.join(30)
    assert len(outcomes) == 40


def test_others_are_served_meanwhile(make: Make) -> None:
    vision = make(max_queue=1)
    for number, outcome in enumerate(embed_all(vision.image_tower(), PICTURES, content)):
        assert outcome.vector is not None
        if number % 10 == 0:
            while True:
                try:
                    vision.embed_image(pictures.png(seed=1000 + number))
                    break
                except Busy:
                    time.sleep(0.001)


def test_an_error_holds_no_picture(make: Make) -> None:
    """Kept with its traceback, an error would keep the bytes it came from: 20 MB a broken file."""

    class Content(bytes):
        pass

    contents = [Content(pictures.jpeg(seed=seed)[:-500]) for seed in range(3)]
    errors = [outcome.error for outcome in embed_all(make().image_tower(), range(3), lambda item: contents.pop())]
    assert all(error is not None for error in errors)
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, Content)]
    for error in errors:
        assert error is not None
        assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_configuration_for_bulk_work() -> None:
    config = Config(
        default_model="clip", max_image_mb=5, models={"clip": ModelConfig(threads=4, replicas=3, max_queue=9)}
    )
    bulk = config_for_bulk(config, workers=6)
    assert (bulk.default_model, bulk.max_image_mb, bulk.cache_mb) == ("clip", 5, 0)
    chosen = bulk.for_model("clip")
    assert (chosen.threads, chosen.replicas, chosen.max_batch_size, chosen.max_queue) == (1, 6, 8, 9)
    assert config_for_bulk(batch_size=3).max_batch_size == 3
    assert config_for_bulk().replicas >= 1
