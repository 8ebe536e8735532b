"""The SQL functions on the fake model: what each returns, for good arguments and for bad ones."""

from __future__ import annotations

import base64
import json
import math
import sqlite3
import struct
from collections.abc import Callable

import numpy as np
import pytest

from datasette_vision.engine.vision import Vision
from datasette_vision.sql import registration as sql
from datasette_vision.sql.functions import Functions
from datasette_vision.sql.table import FUNCTIONS
from datasette_vision.vectors import embedding as vectors
from tests import pictures
from tests.conftest import Connection

SCALARS = [function for function in FUNCTIONS if not function.aggregate]


def functions_of(connection: sqlite3.Connection) -> set[tuple[str, int]]:
    return {
        (name, arity)
        for name, arity in connection.execute("select name, narg from pragma_function_list")
        if name.startswith(("vision_", "llm_embed"))
    }


def test_the_functions_on_a_connection_are_those_of_the_table(fake_vision: Vision) -> None:
    plain = sqlite3.connect(":memory:")
    sql.register(plain, lambda: fake_vision)
    expected = {(function.name, arity) for function in FUNCTIONS for arity in function.arities}
    assert functions_of(plain) == expected
    without = sqlite3.connect(":memory:")
    sql.register(without, lambda: fake_vision, drop_in=False)
    assert functions_of(without) == {(name, arity) for name, arity in expected if not name.startswith("llm_")}
    plain.close()
    without.close()


def test_every_function_of_the_table_is_implemented_and_no_other() -> None:
    implemented = {name for name in vars(Functions) if name.startswith(("vision_", "llm_"))}
    assert implemented == {function.name for function in FUNCTIONS}


@pytest.mark.parametrize("function", SCALARS, ids=lambda function: function.name)
def test_every_scalar_function_is_deterministic(function: object, fake_vision: Vision) -> None:
    # SQLite takes only deterministic functions into an index, and evaluates them once with constant arguments.
    connection = Connection(fake_vision)
    flags = connection.connection.execute(
        "select distinct flags & 0x800 from pragma_function_list where name = ?",
        [function.name],  # type: ignore[attr-defined]
    ).fetchall()
    assert flags == [(0x800,)]
    connection.connection.close()


@pytest.mark.parametrize("function", SCALARS, ids=lambda function: function.name)
def test_null_in_null_out(function: object, fake_db: Connection) -> None:
    for arity in function.arities:  # type: ignore[attr-defined]
        for position in range(arity):
            arguments = ["'x'"] * arity
            arguments[position] = "null"
            assert fake_db.one(f"{function.name}({', '.join(arguments)})") is None  # type: ignore[attr-defined]
    assert fake_db.messages == []


# Embeddings


def test_embed_gives_unit_length_little_endian_float32(fake_db: Connection, fake_vision: Vision) -> None:
    blob = fake_db.one("vision_embed('cat')")
    assert isinstance(blob, bytes)
    values = struct.unpack("<8f", blob)
    assert math.sqrt(sum(value * value for value in values)) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(np.array(values, dtype=np.float32), fake_vision.embed_text("cat"))
    assert fake_db.one("vision_embed_text('cat')") == blob
    assert len(fake_db.one("vision_embed('cat', 'fake-wide')")) == 48  # type: ignore[arg-type]


def test_embed_takes_images_as_blobs_and_embed_image_as_text_too(fake_db: Connection) -> None:
    picture = pictures.png()
    blob = fake_db.one("vision_embed(?)", picture)
    assert isinstance(blob, bytes)
    assert fake_db.one("vision_embed_image(?)", picture) == blob
    import base64

    text = base64.b64encode(picture).decode()
    assert fake_db.one("vision_embed_image(?)", text) == blob
    assert fake_db.one("vision_embed_image(?)", "data:image/png;base64," + text) == blob
    # … but to vision_embed() all text is text.
    assert fake_db.one("vision_embed(?)", text) == fake_db.one("vision_embed_text(?)", text) != blob


def test_a_bad_image_is_null_and_vision_error_says_why(fake_db: Connection) -> None:
    for bad in (b"", b"nonsense", pictures.png()[:-60], pictures.png()[:-60].hex()):
        assert fake_db.one("vision_embed_image(?)", bad) is None
        assert isinstance(fake_db.one("vision_error(?)", bad), str)
    assert fake_db.one("vision_error(?)", pictures.png()) is None
    assert fake_db.messages == []


def test_one_broken_image_does_not_stop_a_query(fake_db: Connection) -> None:
    fake_db.connection.execute("create table t (id integer primary key, image blob)")
    good = pictures.png()
    fake_db.connection.executemany("insert into t (image) values (?)", [(good,), (good[:-60],), (None,), (good,)])
    rows = fake_db.connection.execute("select vision_embed(image) is not null, vision_error(image) from t").fetchall()
    assert [row[0] for row in rows] == [1, 0, 0, 1]
    assert [row[1] is None for row in rows] == [True, False, True, True]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("vision_embed(5)", "vision_embed(): expected TEXT or an image BLOB, found an INTEGER"),
        ("vision_embed(5.5)", "vision_embed(): expected TEXT or an image BLOB, found a REAL"),
        ("vision_embed_text(x'00')", "vision_embed_text(): expected TEXT, found a BLOB"),
        ("vision_embed_image(1)", "vision_embed_image(): expected an image BLOB or TEXT, found an INTEGER"),
        ("vision_embed('x', 3)", "vision_embed(): expected the name of a model as TEXT, found an INTEGER"),
        ("vision_embed('x', '../fake')", "vision_embed(): no model '../fake' is installed; installed are: "),
        ("vision_embed('x', 'fake-classifier')", "vision_embed(): 'fake-classifier' is for image-classification: "),
        ("vision_similarity('a', x'00')", "vision_similarity(): expected an embedding BLOB, found TEXT"),
        (
            "vision_similarity(vision_embed('x'), vision_embed('x', 'fake-wide'))",
            "vision_similarity(): expected two embeddings of the same model, found one of 8 floats and one of 12",
        ),
        ("vision_combine()", "vision_combine(): expected pairs of an embedding and a weight, found 0 arguments"),
        ("vision_combine(x'00')", "vision_combine(): expected pairs of an embedding and a weight, found 1 arguments"),
        ("vision_combine(vision_embed('x'), 'y')", "vision_combine(): expected a number as weight, found TEXT"),
        ("vision_combine(vision_embed('x'), 9e999)", "vision_combine(): expected a number as weight, found a REAL"),
        ("vision_from_json(5)", "vision_from_json(): expected a JSON array as TEXT, found an INTEGER"),
        ("vision_from_base64(5)", "vision_from_base64(): expected base64 as TEXT, found an INTEGER"),
        ("vision_to_json('[1]')", "vision_to_json(): expected an embedding BLOB, found TEXT"),
        ("vision_classify(x'00', 'fake')", "vision_classify(): 'fake' has no labels of its own: pass labels to vis"),
        ("vision_classify(x'00', 'fake-classifier', 0)", "vision_classify(): expected k to be a whole number of at le"),
        ("vision_classify(x'00', 'fake-classifier', 'x')", "vision_classify(): expected k to be a whole number of at"),
        ("vision_zero_shot(vision_embed('x'), 'cat')", "vision_zero_shot(): expected labels as a JSON array such as "),
        ("vision_zero_shot(vision_embed('x'), 7)", "vision_zero_shot(): expected labels as JSON TEXT, found an INTEG"),
        ("vision_label(vision_embed('x'), '[]')", "vision_label(): labels: expected at least one label, found an emp"),
        ("vision_thumbnail(x'00', -1)", "vision_thumbnail(): expected pixels to be a whole number of at least 1, fou"),
        ("vision_thumbnail(x'00', 1.5)", "vision_thumbnail(): expected pixels to be a whole number of at least 1, fo"),
        ("llm_embed(1, 'x')", "llm_embed(): expected the name of a model as TEXT, found an INTEGER"),
        ("llm_embed('nope', 'x')", "llm_embed(): no model 'nope' is installed; installed are: "),
        ("llm_embed('fake', 5)", "llm_embed(): expected TEXT or an image BLOB, found an INTEGER"),
        ("llm_embed_cosine(1, 2)", "llm_embed_cosine(): expected an embedding BLOB, found an INTEGER"),
        ("llm_embed_decode('x')", "llm_embed_decode(): expected an embedding BLOB, found TEXT"),
    ],
)
def test_a_mistake_in_the_query_raises_and_says_which(fake_db: Connection, expression: str, message: str) -> None:
    assert fake_db.error(expression).startswith(message)
    assert fake_db.one("vision_embed('next')") is not None


@pytest.mark.parametrize("function", SCALARS, ids=lambda function: function.name)
def test_a_wrong_number_of_arguments_is_sqlite_s_own_clear_error(function: object, fake_db: Connection) -> None:
    if function.variadic:  # type: ignore[attr-defined]
        return
    arguments = ", ".join(["'x'"] * 9)
    with pytest.raises(sqlite3.OperationalError, match=r"wrong number of arguments to function"):
        fake_db.one(f"{function.name}({arguments})")  # type: ignore[attr-defined]


# Arithmetic


def blob(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@pytest.mark.parametrize("name", ["vision_similarity", "llm_embed_cosine"])
@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (blob(1, 0), blob(0, 1), 0.0),
        (blob(1, 0), blob(2, 0), 1.0),
        (blob(1, 0), blob(-3, 0), -1.0),
        (blob(1, 1), blob(1, 0), math.sqrt(0.5)),
        (blob(3e38, 0), blob(3e38, 3e38), math.sqrt(0.5)),
        (blob(1e-38, 0), blob(1e-38, 1e-38), math.sqrt(0.5)),
        (blob(1e-44), blob(1e-44), 1.0),
        (blob(0, 0), blob(1, 0), None),
        (blob(1, 0), blob(0, 0), None),
        (blob(math.nan, 0), blob(1, 0), None),
        (blob(1, 0), blob(math.inf, 0), None),
        (blob(1, 0)[:-1], blob(1, 0), None),
        (blob(1, 0), blob(1, 0) + b"\0", None),
        (blob(1, 1), blob(1, 0) + b"\0", None),
        (blob(1, 1) + b"\0", blob(1, 0) + b"\0", None),
        (blob(1, 1) + b"\0\0", blob(1, 0) + b"\0\0", None),
        (b"", b"", None),
    ],
)
def test_similarity(fake_db: Connection, name: str, a: bytes, b: bytes, expected: float | None) -> None:
    found = fake_db.one(f"{name}(?, ?)", a, b)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-6))
    assert fake_db.messages == []


def test_similarity_is_the_same_whatever_was_compared_before(fake_db: Connection) -> None:
    pairs = [(blob(1, 2), blob(3, 4)), (blob(1, 2), b"bad"), (blob(5, 6), blob(3, 4)), (blob(1, 2), blob(7, -8))]
    for a, b in pairs * 3:
        expected = None if b == b"bad" else vectors.cosine(vectors.from_blob(a), vectors.from_blob(b))
        assert fake_db.one("vision_similarity(?, ?)", a, b) == (
            expected if expected is None else pytest.approx(expected)
        )


def test_a_constant_call_is_evaluated_once_for_a_whole_table(
    fake_db: Connection, fake_vision: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original: Callable[..., object] = fake_vision.embed_text
    monkeypatch.setattr(fake_vision, "embed_text", lambda *arguments: calls.append(1) or original(*arguments))
    fake_db.connection.execute("create table t (e blob)")
    fake_db.connection.executemany("insert into t values (?)", [(bytes([index % 120] * 32),) for index in range(1000)])
    fake_db.connection.execute("select * from t order by vision_similarity(e, vision_embed(?)) desc limit 5", ["cat"])
    assert len(calls) == 1


def test_combine(fake_db: Connection) -> None:
    found = fake_db.one("vision_combine(?, 1, ?, -1)", blob(2, 0), blob(0, 5))
    assert struct.unpack("<2f", found) == pytest.approx((math.sqrt(0.5), -math.sqrt(0.5)))  # type: ignore[arg-type]
    assert fake_db.one("vision_combine(?, 1, ?, -1)", blob(2, 0), blob(4, 0)) is None  # nothing is left
    assert fake_db.one("vision_combine(?, 1, x'00', 1)", blob(2, 0)) is None
    assert fake_db.one("vision_combine(?, null)", blob(2, 0)) is None
    assert "found one of 2 floats and one of 1" in fake_db.error("vision_combine(?, 1, ?, 1)", blob(2, 0), blob(1))


def test_average(fake_db: Connection) -> None:
    connection = fake_db.connection
    connection.execute("create table t (e blob)")
    connection.executemany("insert into t values (?)", [(blob(2, 0),), (None,), (blob(0, 9),), (b"bad",)])
    found = fake_db.one("vision_average(e) from t")
    assert struct.unpack("<2f", found) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))  # type: ignore[arg-type]
    found = fake_db.one("llm_embed_average(e) from t")
    assert struct.unpack("<2f", found) == pytest.approx((1.0, 4.5))  # type: ignore[arg-type]
    assert fake_db.one("vision_average(e) from t where e is null") is None
    assert fake_db.one("llm_embed_average(e) from t where 0") is None
    connection.executemany("insert into t values (?)", [(blob(1, 2, 3),)])
    message = "expected embeddings of one model, found one of 2 floats and one of 3"
    assert fake_db.error("vision_average(e) from t") == f"vision_average(): {message}"
    groups = connection.execute("select length(e), vision_average(e) from t group by 1 order by 1").fetchall()
    assert [group[1] is None for group in groups] == [True, True, False, False]


def test_average_of_opposites_is_null(fake_db: Connection) -> None:
    fake_db.connection.execute("create table t (e blob)")
    fake_db.connection.executemany("insert into t values (?)", [(blob(1, 0),), (blob(-1, 0),)])
    assert fake_db.one("vision_average(e) from t") is None
    assert fake_db.messages == []


def test_json_there_and_back(fake_db: Connection) -> None:
    assert fake_db.one("vision_from_json('[1, -0.5]')") == blob(1, -0.5)
    assert fake_db.one("vision_to_json(?)", blob(0.1, 1e-20, 3)) == "[0.1, 1e-20, 3.0]"
    embedding = fake_db.one("vision_embed('cat')")
    assert fake_db.one("vision_from_json(vision_to_json(?))", embedding) == embedding
    for bad in ("", "cat", "[]", "{}", '["a"]', "[1, null]", "[[1]]", "[1e999]", "[NaN]", "[true]", "[" * 100_000):
        assert fake_db.one("vision_from_json(?)", bad) is None, bad
    assert fake_db.messages == []


def test_base64(fake_db: Connection) -> None:
    embedding = blob(1, -0.5, 0.1, 3e7)
    text = base64.b64encode(embedding).decode()
    for written in (text, text.rstrip("="), base64.urlsafe_b64encode(embedding).decode(), f" {text}\n"):
        assert fake_db.one("vision_from_base64(?)", written) == embedding
    for bad in ("", "cat", "ä", "AAAA", "A", base64.b64encode(blob(float("nan"))).decode(), text + "!"):
        assert fake_db.one("vision_from_base64(?)", bad) is None, bad
    assert fake_db.messages == []


# Classification and images


def test_classify(fake_db: Connection, fake_vision: Vision) -> None:
    picture = pictures.png()
    found = json.loads(str(fake_db.one("vision_classify(?, 'fake-classifier')", picture)))
    assert found == fake_vision.classify(picture, "fake-classifier")
    assert len(json.loads(str(fake_db.one("vision_classify(?, 'fake-classifier', 2)", picture)))) == 2
    assert fake_db.one("vision_classify(x'00', 'fake-classifier')") is None
    assert "has no labels of its own" in fake_db.error("vision_classify(?)", picture)


def test_zero_shot_and_label_take_an_image_or_its_embedding(fake_db: Connection) -> None:
    picture = pictures.png()
    labels = '["ant", {"label": "bee", "prompt": "a busy bee"}]'
    scores = json.loads(str(fake_db.one("vision_zero_shot(?, ?)", picture, labels)))
    assert sum(entry["score"] for entry in scores) == pytest.approx(1, abs=1e-5)
    assert json.loads(str(fake_db.one("vision_zero_shot(vision_embed(?), ?)", picture, labels))) == scores
    assert fake_db.one("vision_label(?, ?)", picture, labels) == scores[0]["label"]
    assert fake_db.one("vision_label(vision_embed(?), ?)", picture, labels) == scores[0]["label"]
    assert fake_db.one("vision_label(x'0011', ?)", labels) is None


def test_info_and_thumbnail(fake_db: Connection) -> None:
    turned = pictures.with_orientation(6)
    information = json.loads(str(fake_db.one("vision_info(?)", turned)))
    assert information == {"format": "JPEG", "width": 64, "height": 48, "orientation": 6, "bytes": len(turned)}
    small = json.loads(str(fake_db.one("vision_info(vision_thumbnail(?, 32))", turned)))
    assert (small["format"], small["width"], small["height"], small["orientation"]) == ("WEBP", 32, 24, 1)
    assert fake_db.one("vision_info(x'00')") is None
    assert fake_db.one("vision_thumbnail(x'00', 32)") is None
    assert "2048" in fake_db.error("vision_thumbnail(?, 5000)", turned)


def test_models(fake_db: Connection) -> None:
    found = json.loads(str(fake_db.one("vision_models()")))
    assert "fake-classifier" in [model["name"] for model in found]


# Drop-in


def test_llm_embed_is_not_normalised_as_llm_clip_s_is_not(fake_db: Connection, fake_vision: Vision) -> None:
    expected = fake_vision.embed_text("cat", normalised=False)
    assert fake_db.one("llm_embed('fake', 'cat')") == expected.tobytes()
    assert fake_db.one("llm_embed('vision/fake', 'cat')") == fake_vision.embed_text("cat").tobytes()
    image = fake_vision.embed_image(pictures.png(), normalised=False)
    assert fake_db.one("llm_embed('fake', ?)", pictures.png()) == image.tobytes()
    assert json.loads(str(fake_db.one("llm_embed_decode(llm_embed('fake', 'cat'))"))) == expected.tolist()


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, OverflowError])
def test_an_internal_error_shows_nothing_of_itself(
    fake_db: Connection,
    fake_vision: Vision,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[Exception],
) -> None:
    def broken(*_: object) -> object:
        raise kind("secret /etc/passwd")

    monkeypatch.setattr(fake_vision, "embed_text", broken)
    assert fake_db.error("vision_embed('x')") == "vision_embed(): internal error; see the server's log"
    assert "secret /etc/passwd" in caplog.text
