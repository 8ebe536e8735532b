"""Every hostile input through every SQL function: NULL or an error of ours, and the next good call still works."""

from __future__ import annotations

import json
import sqlite3

import pytest

from datasette_vision.engine.vision import Vision
from tests import hostile, pictures
from tests.conftest import Connection

LABELS = '["cat", "dog"]'
IMAGE_EXPRESSIONS = (
    "vision_embed(?)",
    "vision_embed_image(?)",
    "vision_classify(?, 'fake-labels')",
    "vision_classify(?, 'fake-classifier')",
    f"vision_zero_shot(?, '{LABELS}')",
    f"vision_label(?, '{LABELS}')",
    "vision_info(?)",
    "vision_thumbnail(?, 64)",
    "llm_embed('fake', ?)",
)
EMBEDDING_EXPRESSIONS = (
    "vision_similarity(?, vision_embed('x'))",
    "vision_similarity(vision_embed('x'), ?)",
    "llm_embed_cosine(?, llm_embed('fake', 'x'))",
    "vision_combine(?, 1, vision_embed('x'), 1)",
    "vision_to_json(?)",
    "llm_embed_decode(?)",
    f"vision_zero_shot(?, '{LABELS}')",
    f"vision_label(?, '{LABELS}')",
    "vision_average(?)",
    "llm_embed_average(?)",
    "vision_embed(?)",
    "vision_error(?)",
)
TEXT_EXPRESSIONS = (
    "vision_embed(?)",
    "vision_embed_text(?)",
    "vision_embed_image(?)",
    "vision_embed('x', ?)",
    "vision_from_json(?)",
    "vision_error(?)",
    "vision_info(?)",
    "llm_embed('fake', ?)",
    "llm_embed(?, 'x')",
    f"vision_zero_shot(?, '{LABELS}')",
)


def answer(db: Connection, expression: str, *parameters: object) -> object:
    """Evaluate; an error must be one of ours, short and prefixed with the function's name. Then a good call works."""
    db.messages.clear()
    try:
        value = db.one(expression, *parameters)
    except sqlite3.OperationalError:
        assert len(db.messages) == 1
        message = db.messages[0]
        assert message.startswith(expression.split("(")[0] + "(): "), message
        assert "internal error" not in message
        assert len(message) < 400, message
        value = db.messages[0]
    else:
        assert db.messages == []
    assert len(db.one("vision_embed('good')")) == 32  # type: ignore[arg-type]
    return value


@pytest.fixture(scope="module")
def hostile_db(fake_models: object) -> Connection:
    from datasette_vision.config.settings import Config
    from datasette_vision.models.store import ModelStore

    return Connection(Vision(Config(default_model="fake"), store=ModelStore(fake_models)))  # type: ignore[arg-type]


def test_there_are_enough_of_them() -> None:
    count = sum(map(len, (hostile.HOSTILE_IMAGES, hostile.HOSTILE_TEXTS, hostile.HOSTILE_LABELS)))
    assert len(hostile.HOSTILE_IMAGES) >= 40
    assert count >= 100


@pytest.mark.parametrize("name", hostile.HOSTILE_IMAGES)
def test_hostile_images(hostile_db: Connection, name: str) -> None:
    data = hostile.HOSTILE_IMAGES[name]
    reason = answer(hostile_db, "vision_error(?)", data)
    if hostile.EXPECTED[name] != "either":
        assert (reason is None) == (hostile.EXPECTED[name] == "image")
    for expression in IMAGE_EXPRESSIONS:
        value = answer(hostile_db, expression, data)
        # As many bytes as an embedding has may well be one.
        if "vision_info" not in expression and len(data) != 32:
            assert (value is None) == (reason is not None), expression
    assert hostile_db.one("vision_embed(?)", pictures.png()) is not None


@pytest.mark.parametrize("name", hostile.HOSTILE_EMBEDDINGS(8))
def test_hostile_embeddings(hostile_db: Connection, name: str) -> None:
    data = hostile.HOSTILE_EMBEDDINGS(8)[name]
    for expression in EMBEDDING_EXPRESSIONS:
        answer(hostile_db, expression, data)
    similarity = answer(hostile_db, "vision_similarity(?, vision_embed('x'))", data)
    assert similarity is None or isinstance(similarity, str) or -1 <= similarity <= 1  # type: ignore[operator]


@pytest.mark.parametrize("name", hostile.HOSTILE_TEXTS)
def test_hostile_texts(hostile_db: Connection, name: str) -> None:
    text = hostile.HOSTILE_TEXTS[name]
    try:
        text.encode()
    except UnicodeEncodeError:
        # Python refuses to hand such text to SQLite at all; what comes from Python itself must work.
        vision = hostile_db.connection and hostile_db
        with pytest.raises(UnicodeEncodeError):
            vision.one("?", text)
        return
    for expression in TEXT_EXPRESSIONS:
        value = answer(hostile_db, expression, text)
        if expression in ("vision_embed(?)", "vision_embed_text(?)"):
            assert isinstance(value, bytes) or "max_text_chars" in str(value)


@pytest.mark.parametrize("name", hostile.HOSTILE_TEXTS)
def test_hostile_texts_from_python(fake_vision: Vision, name: str) -> None:
    text = hostile.HOSTILE_TEXTS[name][:50_000]
    assert fake_vision.embed_text(text).shape == (8,)


@pytest.mark.parametrize("name", hostile.HOSTILE_LABELS)
def test_hostile_labels(hostile_db: Connection, name: str) -> None:
    labels = hostile.HOSTILE_LABELS[name]
    for expression in ("vision_zero_shot(vision_embed('x'), ?)", "vision_label(vision_embed('x'), ?)"):
        value = answer(hostile_db, expression, labels)
        assert isinstance(value, str)
        if not hostile_db.messages and "zero_shot" in expression:
            entries = json.loads(value)
            assert all(0 <= entry["score"] <= 1 for entry in entries)


def test_text_that_is_not_utf_8_is_refused_by_python_before_it_reaches_us(hostile_db: Connection) -> None:
    with pytest.raises(sqlite3.OperationalError):
        hostile_db.one("vision_embed(cast(x'ff41' as text))")
    assert hostile_db.one("vision_embed('good')") is not None
