"""The implementations of the SQL functions: a method for each row in table.py, with the same name.

Arguments come as SQLite passes them, and are never NULL. InvalidImage and InvalidVector mean that a row's data is bad,
and become NULL. Every other error is a mistake in the query, and fails it.
"""

from __future__ import annotations

import functools
import json
import math
import sqlite3
from collections.abc import Callable
from typing import Any

import numkong
import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine.vision import Vision
from datasette_vision.errors import DimensionMismatch, InvalidArgument, InvalidImage, UnknownModel
from datasette_vision.images import decode as images
from datasette_vision.retrieval.search import Searcher
from datasette_vision.util.caller import current
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.embedding import Vector

# (embedding, embedding, "f32") -> 1 - cosine. Its declared type also covers arrays with more dimensions.
angular: Callable[[bytes, bytes, str], float] = numkong.angular  # type: ignore[assignment]

# (model, text or bytes) -> embedding, not normalised
ForeignEmbed = Callable[[str, "str | bytes"], Vector]


class Functions:
    """The SQL functions of one Vision. Thread-safe."""

    def __init__(
        self, vision: Vision, foreign_embed: ForeignEmbed | None = None, searcher: Searcher | None = None
    ) -> None:
        self._vision = vision
        self._searcher = searcher or Searcher(vision)
        self._foreign_embed = foreign_embed

    # Embeddings

    def vision_embed(self, value: Any, model: Any = None) -> bytes:
        if isinstance(value, str):
            return self.vision_embed_text(value, model)
        return vectors.to_blob(self._vision.embed_image(_blob(value, "TEXT or an image BLOB"), _model(model)))

    def vision_embed_text(self, value: Any, model: Any = None) -> bytes:
        return vectors.to_blob(self._vision.embed_text(_text(value, "TEXT"), _model(model)))

    def vision_embed_image(self, value: Any, model: Any = None) -> bytes:
        return vectors.to_blob(self._vision.embed_image(_image(value), _model(model)))

    def vision_similarity(self, a: Any, b: Any) -> float:
        try:
            # Straight from the bytes, summed in float64: half the time of NumPy, which makes an array of each row.
            distance = angular(a, b, "f32")
            # numkong ignores a broken last float, and gives 0 or 1 for a length of zero. Those cases are checked below.
            if 0 < distance < 2 and distance != 1 and not (len(a) | len(b)) & 3:
                return 1 - distance
        except (TypeError, ValueError):
            pass  # an argument is invalid; the code below finds out how
        return vectors.cosine(vectors.from_blob(_embedding(a)), vectors.from_blob(_embedding(b)))

    llm_embed_cosine = vision_similarity

    def vision_combine(self, *arguments: Any) -> bytes:
        if not arguments or len(arguments) % 2:
            raise InvalidArgument(f"expected pairs of an embedding and a weight, found {len(arguments)} arguments")
        for weight in arguments[1::2]:
            if not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise InvalidArgument(f"expected a number as weight, found {_kind(weight)}")
        pairs = zip(arguments[::2], arguments[1::2], strict=True)
        return vectors.to_blob(
            vectors.combine((vectors.from_blob(_embedding(blob)), float(weight)) for blob, weight in pairs)
        )

    def vision_to_json(self, embedding: Any) -> str:
        return vectors.to_json(vectors.from_blob(_embedding(embedding)))

    def vision_from_json(self, text: Any) -> bytes:
        return vectors.to_blob(vectors.from_json(_text(text, "a JSON array as TEXT")))

    def vision_from_base64(self, text: Any) -> bytes:
        return vectors.to_blob(vectors.from_base64(_text(text, "base64 as TEXT")))

    def vision_average(self) -> Average:
        return Average(normalised=True)

    def implementation(self, name: str) -> Callable[..., Any]:
        """Return the implementation of a function in the table: the method of its name, or the operation of a task."""
        found: Callable[..., Any] | None = getattr(self, name, None)
        return found or functools.partial(self._ask, name.removeprefix("vision_"))

    def _ask(self, operation: str, image: Any, model: Any = None) -> str:
        answer = self._vision.ask(operation, _image(image), _model(model))
        return answer if isinstance(answer, str) else _json(answer)

    # Classification

    def vision_classify(self, image: Any, model: Any = None, k: Any = 5) -> str:
        return _json(self._vision.classify(_image(image), _model(model), _count(k, "k")))

    def vision_zero_shot(self, value: Any, labels: Any, model: Any = None) -> str:
        return _json(self._vision.zero_shot(_image(value), _text(labels, "labels as JSON TEXT"), _model(model)))

    def vision_label(self, value: Any, labels: Any, model: Any = None) -> str:
        best = self._vision.zero_shot(_image(value), _text(labels, "labels as JSON TEXT"), _model(model), k=1)
        return str(best[0]["label"])

    # Search

    def vision_search(
        self,
        connection: sqlite3.Connection,
        table: Any,
        query: Any,
        k: Any = 10,
        model: Any = "",
        column: Any = "",
        rows: Any = None,
    ) -> str:
        if not isinstance(query, (str, bytes)):
            raise InvalidArgument(f"expected TEXT, an image BLOB or an embedding, found {_kind(query)}")
        hits = self._searcher.search(
            connection,
            _text(table, "the name of a table as TEXT"),
            query,
            _count(k, "k"),
            _model(model),
            _text(column, "the name of a column as TEXT"),
            None if rows is None else _text(rows, "rows as JSON TEXT"),
        )
        return _json([hit.to_json() for hit in hits])

    # Images

    def vision_error(self, image: Any) -> str | None:
        if isinstance(image, str):
            try:
                image = images.from_text(image)
            except InvalidImage as error:
                return str(error)
        blob = _blob(image, "an image BLOB or TEXT")
        current().admit()
        return self._vision.decoder.error(blob)

    def vision_info(self, image: Any) -> str:
        return _json(images.info(_image(image)))

    def vision_thumbnail(self, image: Any, pixels: Any) -> bytes:
        blob, size = _image(image), _count(pixels, "pixels")
        current().admit()
        return self._vision.decoder.thumbnail(blob, size)

    # Models

    def vision_models(self) -> str:
        return _json(self._vision.models())

    # Drop-in for datasette-llm-embed

    def llm_embed(self, model: Any, value: Any) -> bytes:
        name = _text(model, "the name of a model as TEXT")
        # Under the name that llm uses for one of our models, return what llm returns: unit length.
        ours, normalised = name.removeprefix("vision/"), name.startswith("vision/")
        try:
            if isinstance(value, str):
                return vectors.to_blob(self._vision.embed_text(value, ours, normalised=normalised))
            image = _blob(value, "TEXT or an image BLOB")
            return vectors.to_blob(self._vision.embed_image(image, ours, normalised=normalised))
        except UnknownModel:
            if self._foreign_embed is None:
                raise
        return vectors.to_blob(self._foreign_embed(name, value))

    def llm_embed_decode(self, embedding: Any) -> str:
        # In the format of json.dumps(struct.unpack(…)), because callers compare this text.
        return json.dumps(vectors.from_blob(_embedding(embedding)).tolist())

    def llm_embed_average(self) -> Average:
        return Average(normalised=False)


class Average:
    """The mean of embeddings, one step at a time."""

    def __init__(self, *, normalised: bool) -> None:
        self._normalised = normalised
        self._sum: NDArray[np.float64] | None = None
        self._count = 0

    def step(self, embedding: Any) -> None:
        """Add one embedding. Raises DimensionMismatch if its size differs from the earlier ones."""
        vector = vectors.from_blob(_embedding(embedding))
        term = (vectors.normalise(vector) if self._normalised else vector).astype(np.float64)
        if self._sum is None:
            self._sum = term
        elif self._sum.shape != term.shape:
            raise DimensionMismatch(
                f"expected embeddings of one model, found one of {self._sum.shape[0]} floats and one of {term.shape[0]}"
            )
        else:
            self._sum += term
        self._count += 1

    def finalize(self) -> bytes | None:
        """Return the mean as a BLOB, or None if there were no embeddings."""
        if self._sum is None:
            return None
        mean = self._sum / self._count
        return vectors.to_blob(vectors.normalise(mean) if self._normalised else mean.astype(np.float32))


def _model(value: Any) -> str | None:
    return None if value is None else _text(value, "the name of a model as TEXT")


def _text(value: Any, expected: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"expected {expected}, found {_kind(value)}")
    return value


def _blob(value: Any, expected: str) -> bytes:
    if not isinstance(value, bytes):
        raise InvalidArgument(f"expected {expected}, found {_kind(value)}")
    return value


def _embedding(value: Any) -> bytes:
    return _blob(value, "an embedding BLOB")


def _image(value: Any) -> bytes:
    if isinstance(value, str):
        return images.from_text(value)
    return _blob(value, "an image BLOB or TEXT")


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or value < 1:
        shown = value if isinstance(value, (int, float)) else _kind(value)
        raise InvalidArgument(f"expected {name} to be a whole number of at least 1, found {shown}")
    return value


def _kind(value: Any) -> str:
    return {str: "TEXT", bytes: "a BLOB", int: "an INTEGER", float: "a REAL"}.get(type(value), "something else")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
