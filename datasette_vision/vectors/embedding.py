"""Embeddings as arrays and as bytes.

An embedding in a database is a BLOB of little-endian float32 values and nothing else: the format of llm, sqlite-vec and
datasette-faiss. In Python it is a one-dimensional float32 array.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from datasette_vision.errors import DimensionMismatch, InvalidArgument, InvalidImage, InvalidVector
from datasette_vision.images.formats import sniff

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]

FLOAT32 = np.dtype("<f4")
# Models make a few thousand floats. More would only be an attack on memory: in JSON, or as Python numbers, they take
# tens of bytes each.
MAX_DIMENSIONS = 100_000
# The longest output of repr() for a float, plus a separator.
CHARS_A_FLOAT = 32


def to_blob(vector: Vector | Sequence[float]) -> bytes:
    """Write an embedding of shape (d,) as a BLOB of 4 * d bytes."""
    return np.asarray(vector, dtype=FLOAT32).tobytes()


def from_blob(blob: bytes, dimensions: int | None = None) -> Vector:
    """Read a BLOB as an embedding of shape (d,).

    Raises InvalidVector if its length is not a whole number of float32 values (or not `dimensions` of them), or more
    than MAX_DIMENSIONS, or if it holds a NaN or an infinity.
    """
    size = len(blob)
    if dimensions is not None and size != 4 * dimensions:
        raise InvalidVector(f"expected an embedding of {dimensions} floats, {4 * dimensions} bytes, found {size} bytes")
    if size == 0 or size % 4:
        raise InvalidVector(f"expected an embedding, a BLOB of 4 bytes per float, found {size} bytes")
    if size > 4 * MAX_DIMENSIONS:
        raise InvalidVector(f"expected an embedding of at most {MAX_DIMENSIONS:,} floats, found {size:,} bytes")
    vector = np.frombuffer(blob, dtype=FLOAT32)
    if not np.isfinite(vector).all():
        raise InvalidVector("expected an embedding of finite floats, found a NaN or an infinity in it")
    return vector


def unless_image(data: bytes, dimensions: int) -> Vector | None:
    """Return the unit-length embedding (dimensions,) in `data`, or None if it is an image file.

    Bytes of an embedding's size and unit length are an embedding. Bytes that begin like an image are an image. Other
    bytes of an embedding's size are an embedding that is not normalised. Raises DimensionMismatch for a unit-length
    embedding of another size, InvalidImage for anything else, InvalidVector for an embedding that is zero everywhere.
    """
    embedding = None
    with contextlib.suppress(InvalidVector):
        embedding = from_blob(data)
    fits = embedding is not None and len(embedding) == dimensions
    if embedding is not None and fits and is_unit(embedding):
        return embedding
    if sniff(data) is not None:
        return None
    if embedding is not None and fits:
        return normalise(embedding)
    if embedding is not None and is_unit(embedding):
        raise DimensionMismatch(f"expected an embedding of {dimensions} floats, found one of {len(embedding)}")
    raise InvalidImage(
        f"expected an image, or an embedding of {4 * dimensions} bytes, found {len(data)} bytes that are neither"
    )


def is_unit(vector: Vector, tolerance: float = 0.01) -> bool:
    """Say whether an embedding (d,) has length 1, like those of models and vision_embed(), and hardly any other
    data.
    """
    return abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) < tolerance


def normalise(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale the last axis to unit length: (d,) -> (d,) or (n, d) -> (n, d).

    Raises InvalidVector for a vector of length zero, or with a NaN or an infinity.
    """
    # float64, so that the squares of huge float32 values do not overflow.
    wide = np.asarray(vectors, dtype=np.float64)
    length = np.sqrt(np.einsum("...i,...i->...", wide, wide))[..., None]
    if not np.isfinite(length).all():
        raise InvalidVector("expected an embedding of finite floats, found a NaN or an infinity in it")
    if not length.all():
        raise InvalidVector("expected an embedding with a direction, found one that is zero everywhere")
    return (wide / length).astype(np.float32)


def cosine(a: Vector, b: Vector) -> float:
    """Return the cosine of the angle between two embeddings of shape (d,), from -1 to 1.

    Raises DimensionMismatch if their sizes differ, InvalidVector if one of them is zero everywhere.
    """
    if a.shape != b.shape:
        raise DimensionMismatch(
            f"expected two embeddings of the same model, found one of {a.shape[0]} floats and one of {b.shape[0]}"
        )
    # In float64, in which no product of two float32 values overflows.
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    square = float(np.dot(wide_a, wide_a)) * float(np.dot(wide_b, wide_b))
    if square == 0.0:
        raise InvalidVector("expected embeddings with a direction, found one that is zero everywhere")
    return min(1.0, max(-1.0, float(np.dot(wide_a, wide_b)) / math.sqrt(square)))


def combine(pairs: Iterable[tuple[Vector, float]]) -> Vector:
    """Return the unit-length weighted sum of (embedding, weight) pairs.

    Each embedding is scaled to unit length first, so only its direction counts. Only the proportions of the weights
    matter. Raises DimensionMismatch if sizes differ, InvalidVector if everything cancels out, InvalidArgument if a
    weight is a NaN or an infinity.
    """
    pairs = list(pairs)
    largest = max((abs(weight) for _, weight in pairs), default=0.0)
    if not all(math.isfinite(weight) for _, weight in pairs):
        raise InvalidArgument("expected finite weights, found a NaN or an infinity")
    total: NDArray[np.float64] | None = None
    for vector, weight in pairs:
        term = (weight / largest if largest else 0.0) * normalise(vector).astype(np.float64)
        if total is None:
            total = term
        elif total.shape != term.shape:
            raise DimensionMismatch(
                "expected embeddings of the same model, found one of "
                f"{total.shape[0]} floats and one of {term.shape[0]}"
            )
        else:
            total = total + term
    if total is None:
        raise InvalidVector("expected at least one embedding, found none")
    if float(np.abs(total).max()) < 1e-7:  # the remainder in float32 of vectors that cancel out
        raise InvalidVector("expected a sum with a direction: these embeddings and weights cancel out")
    return normalise(total)


def to_json(vector: Vector) -> str:
    """Write an embedding as a JSON array, each float in the shortest form that reads back as the same float32."""
    # NumPy 1 and 2 use the same digits for a float32, but different formats: Python's repr() is stable.
    return "[" + ", ".join(repr(float(str(value))) for value in vector) + "]"


def from_json(text: str) -> Vector:
    """Read a JSON array of numbers as an embedding. Raises InvalidVector for anything else."""
    _check_length(text, CHARS_A_FLOAT * MAX_DIMENSIONS)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidVector("expected a JSON array of numbers, found text that is not JSON") from None
    if not isinstance(values, list) or not values:
        raise InvalidVector("expected a JSON array of numbers, found " + _kind(values))
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        raise InvalidVector("expected a JSON array of numbers, found something else in it")
    try:
        with np.errstate(over="ignore"):
            vector = np.array(values, dtype=np.float64).astype(np.float32)
    except OverflowError:
        raise InvalidVector("expected numbers that fit a float32, found a larger one") from None
    if not np.isfinite(vector).all():
        raise InvalidVector("expected finite numbers that fit a float32, found one that does not")
    return vector


def from_base64(text: str) -> Vector:
    """Read base64 of little-endian float32 values as an embedding, as JSON APIs encode it.

    Either alphabet, with or without padding. Raises InvalidVector for anything else.
    """
    _check_length(text, 6 * MAX_DIMENSIONS)
    try:
        standard = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
        blob = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except ValueError:
        raise InvalidVector("expected base64 of float32 values, found text that is not base64") from None
    return from_blob(blob)


def _check_length(text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidVector(
            f"expected an embedding of at most {MAX_DIMENSIONS:,} floats, found {len(text):,} characters"
        )


def _kind(value: object) -> str:
    if value == []:
        return "an empty array"
    return {dict: "an object", str: "a string", type(None): "null"}.get(type(value), "a single value")
