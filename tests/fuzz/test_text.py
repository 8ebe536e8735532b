"""Images and embeddings that travel as text."""

from __future__ import annotations

import base64
import contextlib
import urllib.parse

import numpy as np
import pytest
from hypothesis import assume, example
from hypothesis import strategies as st

from datasette_vision.errors import DimensionMismatch, InvalidArgument, InvalidImage, InvalidVector
from datasette_vision.images import decode as images
from datasette_vision.sql.functions import Functions
from datasette_vision.vectors import embedding as vectors
from tests.fuzz import strategies as own
from tests.fuzz.properties import assert_linear, fuzz

# from_text


@fuzz(
    own.any_text | st.builds(str.__add__, st.sampled_from(["data:,", "data:;base64,", "data:x;base64,"]), own.any_text)
)
def test_any_text_is_an_image_or_an_error(text: str) -> None:
    try:
        data = images.from_text(text)
    except InvalidImage as reason:
        assert 10 < len(str(reason)) < 200
    else:
        assert isinstance(data, bytes)
        assert data
        assert len(data) <= 4 * len(text)
        assert images.from_text("data:;base64," + base64.b64encode(data).decode()) == data


@fuzz(st.data(), own.good_images)
def test_however_an_image_is_written_it_is_the_same_bytes(data: st.DataObject, image: bytes) -> None:
    assert images.from_text(data.draw(own.as_text(image))) == image


@fuzz(st.binary(min_size=1, max_size=300), st.booleans())
def test_a_data_uri_holds_any_bytes(content: bytes, escaped: bool) -> None:
    assert images.from_text("data:;base64," + base64.b64encode(content).decode()) == content
    assert (
        images.from_text("data:," + (urllib.parse.quote(content, safe="") if escaped else urllib.parse.quote(content)))
        == content
    )


PREFIXES = ["", "A", "data:,", "data:;base64,", "data:image/png;base64,iVBOR", "data:" + "x" * 900]


@fuzz(st.sampled_from(PREFIXES), own.units, st.sampled_from(["", "!", "A", "="]), weight=1.5)
@example("A", " ", "!")
@example("data:;base64,A", " ", "\n")
def test_reading_an_image_as_text_takes_time_in_proportion(prefix: str, repeated: str, suffix: str) -> None:
    def work(count: int) -> None:
        with contextlib.suppress(InvalidImage):
            images.from_text(prefix + repeated * count + suffix)

    assert_linear(work, 20_000 // len(repeated))


# Embeddings


def decoded(blob: bytes) -> np.ndarray | None:
    try:
        return vectors.from_blob(blob)
    except InvalidVector:
        return None


@fuzz(own.embeddings(8) | st.binary(max_size=40))
def test_blobs(blob: bytes) -> None:
    vector = decoded(blob)
    if vector is None:
        return
    assert np.isfinite(vector).all()
    assert vectors.to_blob(vector) == blob
    text = vectors.to_json(vector)
    assert vectors.to_blob(vectors.from_json(text)) == blob
    for encoded in (base64.b64encode(blob), base64.urlsafe_b64encode(blob), base64.b64encode(blob).rstrip(b"=")):
        assert vectors.to_blob(vectors.from_base64(encoded.decode())) == blob
    try:
        unit = vectors.normalise(vector)
    except InvalidVector:
        assert not vector.any()
    else:
        assert abs(float(np.linalg.norm(unit.astype(np.float64))) - 1) < 1e-5
        np.testing.assert_allclose(vectors.normalise(unit), unit, atol=1e-6)


@fuzz(own.json_texts(st.lists(own.FLOATS | own.INTEGERS, max_size=10)))
@example("[" + "1" * 5000 + "]")
@example("[1e999]")
def test_embeddings_in_json(text: str) -> None:
    try:
        vector = vectors.from_json(text)
    except InvalidVector as reason:
        assert len(str(reason)) < 200
    else:
        assert np.isfinite(vector).all()
        assert vectors.from_json(vectors.to_json(vector)).tobytes() == vector.tobytes()


@fuzz(own.any_text | st.binary(max_size=50).map(lambda data: base64.b64encode(data).decode()))
def test_embeddings_in_base64(text: str) -> None:
    try:
        vector = vectors.from_base64(text)
    except InvalidVector as reason:
        assert len(str(reason)) < 200
    else:
        assert vectors.from_base64(base64.b64encode(vectors.to_blob(vector)).decode()).tobytes() == vector.tobytes()


@pytest.mark.parametrize("read", [vectors.from_json, vectors.from_base64])
@fuzz(st.sampled_from(["", "[", "[1", "{", '"', "A"]), own.units, st.sampled_from(["", "]", "!", "="]), weight=0.5)
def test_reading_embeddings_takes_time_in_proportion(read: object, prefix: str, repeated: str, suffix: str) -> None:
    def work(count: int) -> None:
        with contextlib.suppress(InvalidVector):
            read(prefix + repeated * count + suffix)  # type: ignore[operator]

    assert_linear(work, 20_000 // len(repeated))


functions = Functions(None)  # type: ignore[arg-type]  # arithmetic asks for no model


@fuzz(own.embeddings(8), own.embeddings(8))
def test_similarities(a: bytes, b: bytes) -> None:
    """The fast way, straight from the bytes, is the slow way."""
    first, second = decoded(a), decoded(b)
    try:
        found = functions.vision_similarity(a, b)
    except (InvalidVector, DimensionMismatch) as reason:
        assert len(str(reason)) < 200
        assert first is None or second is None or len(first) != len(second) or not first.any() or not second.any()
        return
    assert first is not None, "a BLOB that is no embedding has a similarity"
    assert second is not None, "a BLOB that is no embedding has a similarity"
    assert -1 - 1e-6 <= found <= 1 + 1e-6
    assert found == pytest.approx(vectors.cosine(first, second), abs=1e-5)
    assert found == pytest.approx(functions.vision_similarity(b, a), abs=1e-6)


@fuzz(st.lists(st.tuples(own.embeddings(8), own.FLOATS | own.INTEGERS), max_size=6))
def test_combinations(pairs: list[tuple[bytes, float]]) -> None:
    flat = [value for pair in pairs for value in pair]
    try:
        blob = functions.vision_combine(*flat)
    except (InvalidArgument, InvalidVector, DimensionMismatch) as reason:
        assert len(str(reason)) < 200
        return
    vector = vectors.from_blob(blob)
    assert abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) < 1e-5
    # Of the weights only the proportions matter.
    weights = [float(weight) for _, weight in pairs]
    assume(all(weight == 0 or 1e-300 < abs(weight) < 1e300 for weight in weights))
    halves = [value for (embedding, _), weight in zip(pairs, weights, strict=True) for value in (embedding, weight / 2)]
    np.testing.assert_allclose(vectors.from_blob(functions.vision_combine(*halves)), vector, atol=1e-5)


@fuzz(st.lists(own.embeddings(4), max_size=6), st.booleans())
def test_averages(blobs: list[bytes], drop_in: bool) -> None:
    average = functions.llm_embed_average() if drop_in else functions.vision_average()
    for blob in blobs:
        with contextlib.suppress(InvalidVector, DimensionMismatch):
            average.step(blob)
    try:
        mean = average.finalize()
    except InvalidVector:
        return
    assert mean is None or drop_in or np.isfinite(np.frombuffer(mean, "<f4")).all()
