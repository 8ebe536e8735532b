"""vectors/embedding.py: bytes and numbers, pinned."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest

from datasette_vision.errors import DimensionMismatch, InvalidArgument, InvalidImage, InvalidVector
from datasette_vision.vectors import embedding as vectors
from tests import pictures

NOT_FINITE = "expected an embedding of finite floats, found a NaN or an infinity in it"
MAX = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


def f32(*values: float) -> vectors.Vector:
    return np.array(values, dtype=np.float32)


# Bytes


def test_layout_is_little_endian_float32() -> None:
    blob = bytes.fromhex("0000803f 000000bf cdcccc3d 00000080 ffff7f7f 01000000".replace(" ", ""))
    values = [1.0, -0.5, 0.1, -0.0, MAX, SMALLEST]
    assert vectors.to_blob(values) == blob
    assert vectors.to_blob(f32(*values)) == blob
    assert vectors.to_blob(np.array(values, dtype=">f4")) == blob
    assert vectors.to_blob(np.array(values, dtype=np.float64)) == blob
    assert vectors.to_blob(np.repeat(f32(*values), 2)[::2]) == blob
    assert vectors.from_blob(blob).tolist() == [1.0, -0.5, float(np.float32(0.1)), 0.0, MAX, SMALLEST]
    assert vectors.to_blob(vectors.from_blob(blob)) == blob


def test_decoded_is_float32_and_cannot_be_written() -> None:
    vector = vectors.from_blob(vectors.to_blob([1, 2, 3]), 3)
    assert vector.dtype == np.float32
    assert vector.shape == (3,)
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 5


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 7, 2047])
def test_size_that_is_not_of_whole_floats(size: int) -> None:
    with pytest.raises(InvalidVector) as caught:
        vectors.from_blob(bytes(size))
    assert str(caught.value) == f"expected an embedding, a BLOB of 4 bytes per float, found {size} bytes"


@pytest.mark.parametrize("size", [0, 4, 2044, 2047, 2049, 2052])
def test_size_of_another_model(size: int) -> None:
    with pytest.raises(InvalidVector) as caught:
        vectors.from_blob(bytes(size), 512)
    assert str(caught.value) == f"expected an embedding of 512 floats, 2048 bytes, found {size} bytes"


@pytest.mark.parametrize(
    "values",
    [
        [math.nan],
        [1, math.inf],
        [-math.inf, 1],
        [math.inf, -math.inf],
        [math.inf, math.inf],
        [0] * 999 + [math.nan],
    ],
)
def test_not_finite_is_no_embedding(values: list[float]) -> None:
    with pytest.raises(InvalidVector) as caught:
        vectors.from_blob(f32(*values).tobytes())
    assert str(caught.value) == NOT_FINITE


def test_signalling_nan_is_no_embedding() -> None:
    with pytest.raises(InvalidVector, match=NOT_FINITE):
        vectors.from_blob(bytes.fromhex("0100807f0000803f"))


def test_largest_values_are_an_embedding() -> None:
    assert vectors.from_blob(f32(*[MAX] * 1000)).shape == (1000,)


# Length


@pytest.mark.parametrize("size", [MAX, 1e30, 1.0, 1e-30, 1e-38, 1e-40, SMALLEST])
def test_normalise_at_every_magnitude(size: float) -> None:
    found = vectors.normalise(f32(size, 0, -size, size, size))
    assert found.dtype == np.float32
    assert found.tolist() == [0.5, 0, -0.5, 0.5, 0.5]


def test_normalise_known_values() -> None:
    np.testing.assert_array_equal(vectors.normalise(f32(3, 4)), f32(0.6, 0.8))
    np.testing.assert_array_equal(vectors.normalise(np.array([[3, 4], [0, -2]])), np.array([f32(0.6, 0.8), f32(0, -1)]))


def test_normalise_leaves_its_argument_alone() -> None:
    vector = f32(3, 4)
    vectors.normalise(vector)
    assert vector.tolist() == [3, 4]


@pytest.mark.parametrize("value", [f32(0, 0), np.array([[1, 2], [0, 0]])])
def test_zero_has_no_direction(value: vectors.Vector) -> None:
    with pytest.raises(InvalidVector) as caught:
        vectors.normalise(value)
    assert str(caught.value) == "expected an embedding with a direction, found one that is zero everywhere"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_normalise_never_answers_with_nan(bad: float) -> None:
    for value in (f32(1, bad), np.array([[1, 2], [bad, 1]])):
        with pytest.raises(InvalidVector) as caught:
            vectors.normalise(value)
        assert str(caught.value) == NOT_FINITE


# Cosine


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1, 0), (0, 1), 0.0),
        ((1, 2), (2, 4), 1.0),
        ((1, 2), (-3, -6), -1.0),
        ((1, 0), (1, 1), math.sqrt(0.5)),
        ((3, 4), (4, 3), 0.96),
        ((1, 2, 3), (4, -5, 6), 12 / math.sqrt(14 * 77)),
    ],
)
@pytest.mark.parametrize("scale_a", [MAX / 8, 1e19, 1.0, 1e-19, 1e-22, 1e-36])
@pytest.mark.parametrize("scale_b", [MAX / 8, 1e19, 1.0, 1e-19, 1e-22, 1e-36])
def test_cosine_does_not_depend_on_lengths(
    a: tuple[float, ...], b: tuple[float, ...], expected: float, scale_a: float, scale_b: float
) -> None:
    found = vectors.cosine(f32(*(scale_a * x for x in a)), f32(*(scale_b * x for x in b)))
    assert found == pytest.approx(expected, abs=3e-7)


def test_cosine_of_denormals() -> None:
    assert vectors.cosine(f32(SMALLEST, SMALLEST), f32(SMALLEST, 0)) == pytest.approx(math.sqrt(0.5), abs=1e-12)


def test_cosine_stays_within_one() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 512)).astype(np.float32)
    for row in rows:
        assert -1.0 <= vectors.cosine(row, -row) <= -1.0 + 1e-12
        assert 1.0 - 1e-12 <= vectors.cosine(row, row) <= 1.0
        assert type(vectors.cosine(row, row)) is float


def test_rounding_takes_no_cosine_beyond_one() -> None:
    row = np.array([24 / 7, 1, 0.3], dtype=np.float32)
    longer = row * np.float32(3)
    wide = [vector.astype(np.float64) for vector in (row, longer)]
    assert wide[0] @ wide[1] / np.sqrt((wide[0] @ wide[0]) * (wide[1] @ wide[1])) > 1
    assert vectors.cosine(row, longer) == 1
    assert vectors.cosine(row, -longer) == -1


def test_cosine_of_other_sizes() -> None:
    with pytest.raises(DimensionMismatch) as caught:
        vectors.cosine(f32(1, 2), f32(1, 2, 3))
    assert str(caught.value) == "expected two embeddings of the same model, found one of 2 floats and one of 3"


@pytest.mark.parametrize(("a", "b"), [(f32(0, 0), f32(1, 2)), (f32(1, 2), f32(0, 0)), (f32(0, 0), f32(0, 0))])
def test_cosine_with_zero(a: vectors.Vector, b: vectors.Vector) -> None:
    with pytest.raises(InvalidVector) as caught:
        vectors.cosine(a, b)
    assert str(caught.value) == "expected embeddings with a direction, found one that is zero everywhere"


# Sums


def test_combine_known_values() -> None:
    found = vectors.combine([(f32(2, 0), 1), (f32(0, 5), -1)])
    np.testing.assert_allclose(found, [math.sqrt(0.5), -math.sqrt(0.5)], atol=1e-7)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(vectors.combine([(f32(10, 0), 3), (f32(0, 0.1), 4)]), f32(0.6, 0.8))
    np.testing.assert_array_equal(vectors.combine([(f32(3, 4), -2)]), f32(-0.6, -0.8))
    np.testing.assert_array_equal(vectors.combine([(f32(3, 4), 1), (f32(1, 0), 0)]), f32(0.6, 0.8))


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e-9, 1e9, 1e200, 1e308])
def test_only_proportions_of_weights_matter(scale: float) -> None:
    found = vectors.combine([(f32(1, 0), 1.0 * scale), (f32(0, 1), -0.5 * scale), (f32(1, 0), 1.0 * scale)])
    np.testing.assert_allclose(found, vectors.normalise(f32(2, -0.5)), atol=1e-7)


def test_combine_accepts_an_iterator() -> None:
    np.testing.assert_array_equal(vectors.combine(iter([(f32(3, 4), 1.0)])), f32(0.6, 0.8))


@pytest.mark.parametrize("weight", [1, 1e9, 1e-9])
@pytest.mark.parametrize("length", [1, 3.3])
def test_what_cancels_out_has_no_direction(weight: float, length: float) -> None:
    with pytest.raises(InvalidVector) as caught:
        vectors.combine([(f32(1, 2, 3), weight), (f32(1, 2, 3) * np.float32(length), -weight)])
    assert str(caught.value) == "expected a sum with a direction: these embeddings and weights cancel out"


def test_weights_of_zero_leave_nothing() -> None:
    with pytest.raises(InvalidVector, match="cancel out"):
        vectors.combine([(f32(1, 2), 0), (f32(3, 4), 0.0)])


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weights_must_be_finite(weight: float) -> None:
    with pytest.raises(InvalidArgument) as caught:
        vectors.combine([(f32(1, 2), 1), (f32(1, 2), weight)])
    assert str(caught.value) == "expected finite weights, found a NaN or an infinity"


def test_combine_refuses_what_cannot_be_added() -> None:
    with pytest.raises(DimensionMismatch) as mismatch:
        vectors.combine([(f32(1, 2), 1), (f32(1, 2, 3), 1)])
    assert str(mismatch.value) == "expected embeddings of the same model, found one of 2 floats and one of 3"
    with pytest.raises(InvalidVector) as caught:
        vectors.combine([])
    assert str(caught.value) == "expected at least one embedding, found none"
    with pytest.raises(InvalidVector, match="zero everywhere"):
        vectors.combine([(f32(0, 0), 1), (f32(1, 0), 1)])


# JSON


def test_json_is_the_shortest_text() -> None:
    values = (0.1, 1, -0.0, 1e-45, 16777216, MAX, 1e-38, 1 / 3)
    expected = "[0.1, 1.0, -0.0, 1e-45, 16777216.0, 3.4028235e+38, 1e-38, 0.33333334]"
    assert vectors.to_json(f32(*values)) == expected


def test_json_round_trip_is_exact() -> None:
    bits = np.random.default_rng(3).integers(0, 2**32, 40_000, dtype=np.uint32)
    edges = np.array([0, 1, 2, 0x7FFFFF, 0x800000, 0x800001, 0x7F7FFFFF, 0x80000000, 0x80000001, 0xFF7FFFFF])
    powers = np.arange(1, 255, dtype=np.uint32) << 23
    found = np.concatenate([bits, edges.astype(np.uint32), powers, powers - 1, powers + 1]).view(np.float32)
    found = found[np.isfinite(found)]
    text = vectors.to_json(found)
    assert vectors.to_blob(vectors.from_json(text)) == vectors.to_blob(found)
    assert len(json.loads(text)) == len(found) > 39_000


def test_numbers_of_any_json_form() -> None:
    found = vectors.from_json(" [1, -2.5, 1e3, 0, 1E-50, 123456789012345678901234567890]\n")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, f32(1, -2.5, 1000, 0, 0, 1.2345679e29))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a JSON array of numbers, found text that is not JSON"),
        ("[1, 2", "expected a JSON array of numbers, found text that is not JSON"),
        ("[1, 2] 3", "expected a JSON array of numbers, found text that is not JSON"),
        ("[" * 100_000, "expected a JSON array of numbers, found text that is not JSON"),
        ("\ud800", "expected a JSON array of numbers, found text that is not JSON"),
        ("[]", "expected a JSON array of numbers, found an empty array"),
        ("{}", "expected a JSON array of numbers, found an object"),
        ('"[1]"', "expected a JSON array of numbers, found a string"),
        ("null", "expected a JSON array of numbers, found null"),
        ("1", "expected a JSON array of numbers, found a single value"),
        ("true", "expected a JSON array of numbers, found a single value"),
        ("[true]", "expected a JSON array of numbers, found something else in it"),
        ("[1, null]", "expected a JSON array of numbers, found something else in it"),
        ('[1, "2"]', "expected a JSON array of numbers, found something else in it"),
        ("[[1, 2], [3, 4]]", "expected a JSON array of numbers, found something else in it"),
        ("[NaN]", "expected finite numbers that fit a float32, found one that does not"),
        ("[1, -Infinity]", "expected finite numbers that fit a float32, found one that does not"),
        ("[1e39]", "expected finite numbers that fit a float32, found one that does not"),
        ("[1e999]", "expected finite numbers that fit a float32, found one that does not"),
        (f"[{10**400}]", "expected numbers that fit a float32, found a larger one"),
    ],
)
def test_text_that_is_no_embedding(text: str, message: str) -> None:
    with pytest.raises(InvalidVector) as caught:
        vectors.from_json(text)
    assert str(caught.value) == message


def test_an_embedding_of_more_floats_than_any_model_makes_is_refused() -> None:
    most = vectors.MAX_DIMENSIONS
    assert len(vectors.from_blob(bytes(4 * most))) == most
    assert len(vectors.from_json(vectors.to_json(np.full(most, -1.17549435e-38, dtype=np.float32)))) == most
    assert len(vectors.from_base64(base64.b64encode(bytes(4 * most)).decode())) == most
    for refused in (
        lambda: vectors.from_blob(bytes(4 * most + 4)),
        lambda: vectors.from_base64(base64.b64encode(bytes(5 * most)).decode()),
        lambda: vectors.from_json("[" + "1," * 20 * most + "1]"),
    ):
        with pytest.raises(InvalidVector, match="at most 100,000 floats"):
            refused()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_base64_needs_no_padding(size: int) -> None:
    values = np.arange(1, size + 1, dtype=np.float32)
    text = base64.b64encode(values.tobytes()).decode()
    for given in (text, text.rstrip("="), f" {text.rstrip('=')}\n"):
        assert vectors.from_base64(given).tolist() == values.tolist()


# An image or an embedding


def test_what_is_an_embedding_among_images() -> None:
    unit = f32(0.6, 0.8)
    assert vectors.unless_image(vectors.to_blob(unit), 2).tobytes() == unit.tobytes()
    assert vectors.unless_image(vectors.to_blob(3 * unit), 2).tolist() == pytest.approx(unit.tolist())
    assert vectors.unless_image(pictures.png(), 2) is None
    gif = b"GIF89a\x80\x3f"  # of unit length, though it begins like an image
    assert vectors.unless_image(gif, 2).tobytes() == gif
    assert vectors.unless_image(b"GIF89a\x80\x40", 2) is None  # as long as an embedding, but not of unit length


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (vectors.to_blob([0.6, 0.8]), DimensionMismatch, "expected an embedding of 3 floats, found one of 2"),
        (
            vectors.to_blob([6, 8]),
            InvalidImage,
            "expected an image, or an embedding of 12 bytes, found 8 bytes that are neither",
        ),
        (b"nothing", InvalidImage, "expected an image, or an embedding of 12 bytes, found 7 bytes that are neither"),
        (b"", InvalidImage, "expected an image, or an embedding of 12 bytes, found 0 bytes that are neither"),
        (bytes(12), InvalidVector, "expected an embedding with a direction, found one that is zero everywhere"),
        (vectors.to_blob([math.nan, 1, 1]), InvalidImage, "expected an image, or an embedding of 12 bytes, found 12"),
    ],
)
def test_what_is_neither(data: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        vectors.unless_image(data, 3)


def test_unit_length_is_told_with_a_tolerance() -> None:
    assert vectors.is_unit(f32(1.009, 0))
    assert not vectors.is_unit(f32(1.011, 0))
    assert not vectors.is_unit(f32(0.989, 0))
    assert not vectors.is_unit(f32(1.009, 0), 0.001)
    assert not vectors.is_unit(f32(MAX, MAX))
