"""Reads inputs (texts, images and embeddings) from the fields of a request."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasette_vision.errors import InvalidArgument
from datasette_vision.plugin.http.bodies import Field
from datasette_vision.plugin.http.parameters import quoted_value

TEXT, IMAGE, EMBEDDING, INPUTS = "text", "image", "embedding", "inputs"
DATA_URI = re.compile(r"\s*data:", re.IGNORECASE)


@dataclass(frozen=True)
class Input:
    """One input.

    `content` is str for a text. For an image it is bytes, or str with base64 or a data: URI, which is decoded later,
    where it can fail alone. For an embedding it is the bytes of little-endian float32 values.
    """

    kind: str
    content: str | bytes


def read_inputs(fields: Sequence[Field], kinds: Sequence[str]) -> list[Input]:
    """Return the inputs of a request, in order.

    They are the fields named after their kind, repeated for each input, or an array in JSON. Or, in JSON, the array
    `inputs` of values for input_of(). Raises InvalidArgument if there are none, or one of another kind.
    """
    found: list[Input] = []
    named = [field for field in fields if field.name in (*kinds, INPUTS)]
    if any(field.is_json for field in named) and len({field.name for field in named}) > 1:
        raise InvalidArgument(f"expected one of {', '.join((*kinds, INPUTS))}, found several")
    for field in named:
        if field.name == INPUTS:
            if not isinstance(field.value, list):
                raise InvalidArgument(f"inputs: expected an array, found {quoted_value(field.value)}")
            found += [
                input_of(value, kinds, f"inputs: number {position}")
                for position, value in enumerate(field.value, start=1)
            ]
        else:
            several = field.is_json and isinstance(field.value, list) and not _is_floats(field)
            found += [_input(field.name, value) for value in (field.value if several else [field.value])]
    if not found:
        names = [*kinds, INPUTS]
        raise InvalidArgument(f"expected {', '.join(names[:-1])} or {names[-1]}, found none")
    return found


def input_of(value: Any, kinds: Sequence[str], where: str) -> Input:
    """Return the input in a value: {"text": …}, {"image": …}, {"embedding": …}, or a string or a file.

    A string is an image if it is a data: URI, otherwise a text. A file (bytes) is an image. Raises InvalidArgument,
    naming `where`, for anything else.
    """
    if isinstance(value, str):
        kind = IMAGE if DATA_URI.match(value) or TEXT not in kinds else TEXT
    elif isinstance(value, bytes):
        kind = IMAGE
    elif isinstance(value, dict) and len(value) == 1:
        kind, value = next(iter(value.items()))
    else:
        raise InvalidArgument(f"{where}: expected a string or an object of one of {', '.join(kinds)}")
    if kind not in kinds:
        raise InvalidArgument(f"{where}: expected one of {', '.join(kinds)}, found {quoted_value(kind)}")
    return _input(kind, value, where)


def _input(kind: str, value: Any, where: str | None = None) -> Input:
    where = where or kind
    if kind == EMBEDDING:
        return Input(kind, _embedding(value, where))
    if kind == IMAGE and isinstance(value, (str, bytes)):
        return Input(kind, value)
    if kind == TEXT and isinstance(value, str):
        return Input(kind, value)
    raise InvalidArgument(f"{where}: expected {EXPECTED[kind]}, found {quoted_value(value)}")


def _embedding(value: Any, where: str) -> bytes:
    import numpy as np  # heavy: not at start

    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidArgument(f"{where}: expected {EXPECTED[EMBEDDING]}, found {quoted_value(value)}") from None
    numbers = isinstance(value, list) and all(
        isinstance(number, (int, float)) and not isinstance(number, bool) for number in value
    )
    if not numbers:
        raise InvalidArgument(f"{where}: expected {EXPECTED[EMBEDDING]}, found {quoted_value(value)}")
    try:
        with np.errstate(over="ignore"):
            return np.array(value, dtype=np.float64).astype("<f4").tobytes()
    except OverflowError:
        raise InvalidArgument(f"{where}: expected numbers that fit a float32, found a larger one") from None


def _is_floats(field: Field) -> bool:
    """Whether the array under `embedding` is one embedding, not several."""
    return field.name == EMBEDDING and not any(isinstance(value, (str, list)) for value in field.value)


EXPECTED = {
    TEXT: "a text",
    IMAGE: "an image: a file, a data: URI or base64",
    EMBEDDING: "an embedding: an array of numbers, or base64 of little-endian float32 values",
}
