"""What strangers send: texts, JSON, embeddings and SQL values, the ordinary and the extreme."""

from __future__ import annotations

import base64
import json
import math
import struct
import sys
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests import hostile, pictures
from tests.fuzz.files import FORMATS, hostile_seeds, seeds

INTEGERS = st.sampled_from(
    [0, 1, -1, 2, 10, 255, 1000, 100_000, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]
) | st.integers(-(2**63), 2**63 - 1)
FLOATS = st.sampled_from([0.0, -0.0, 0.5, 1e-7, 1e-45, 1e30, 3.4028235e38, 3.5e38, 1e308, 5e-324, 1e15]) | st.floats()

# A lone surrogate, a NUL, marks of direction, spaces that are none of ASCII: what breaks programs.
_PIECES = ["a", "cat", " ", "  ", "\t", "\r\n", "\0", "\ud800", "\udfff", "\ufeff", "\u202e", "\u0301", "é", "猫",
    "😀", "%", "%41",
           "+", "=", ",", ";", ":", "'", '"', "\\", "/", "~2F", "{}", "[", "]", "data:", ";base64,", "<", "&",
           "1e999", "-1"]  # fmt: skip
texts = st.text(max_size=60) | st.lists(st.sampled_from(_PIECES), max_size=30).map("".join)
# As UTF-8 holds them.
plain_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
hostile_texts = st.sampled_from([text for text in hostile.HOSTILE_TEXTS.values() if len(text) <= 20_000])
any_text = texts | hostile_texts
# A unit to be repeated, between a beginning and an end.
unit = st.sampled_from([" ", "\n", " \n", "\t ", "=", "+", "-", "%", "%4", "%20", "a", "A", "{", "[", '"', "\\",
    "\\u", ",", "0", "1,",
                        "[],", "{},", '"a",', "&", "&a=", ";", ":", "é", "\0", "\r\n", "--", "--b\r\n", "data:",
                        "~", "e", "."])  # fmt: skip
units = unit | st.lists(unit, min_size=1, max_size=3).map("".join)


def nested(depth: int, opening: str = "[", closing: str = "]", inside: str = "1") -> str:
    """JSON of so many levels."""
    return opening * depth + inside + closing * depth


# About as deep as the interpreter goes, where what reads a value succeeds and what writes it fails.
depths = st.sampled_from([1, 10, 100, 500, 5000, 100_000]) | st.integers(
    sys.getrecursionlimit() - 300, sys.getrecursionlimit() + 10
)
json_leaves = st.none() | st.booleans() | INTEGERS | FLOATS | texts | st.sampled_from([10**30, -(10**400), 10**4000])
json_values = st.recursive(
    json_leaves,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=12,
)


def written(value: Any) -> str:
    """JSON of a value, with NaN and infinity as Python writes them, for those who must refuse them."""
    return json.dumps(value)


def json_texts(values: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    """JSON of these values, of any at all, and what is hardly JSON."""
    return (
        values.map(written)
        | json_values.map(written)
        | values.map(lambda value: json.dumps(value, indent=1, ensure_ascii=False))
        | st.builds(nested, depths)
        | st.builds(nested, depths, st.just('{"a":'), st.just("}"))
        | st.builds(_cut, values.map(written), st.integers(0, 40), texts)
        | any_text
        | st.sampled_from(sorted(hostile.HOSTILE_LABELS.values(), key=len)[:60])
    )


def _cut(text: str, at: int, inserted: str) -> str:
    return text[:at] + inserted + text[at:]


def objects(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these keys, their values of these kinds or of any."""
    return st.fixed_dictionaries({}, optional={key: values | json_values for key, values in keys.items()})


@st.composite
def changed(draw: st.DrawFn, good: Callable[[], Any]) -> Any:
    """A good value of JSON with one to three places in it replaced, dropped or added to."""
    value = json.loads(json.dumps(good()))
    for _ in range(draw(st.integers(1, 3))):
        place, key = None, None
        inner = value
        while isinstance(inner, (dict, list)) and inner:
            place = inner
            key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
            inner = place[key]
            if draw(st.booleans()):
                break
        if place is None:
            return draw(json_values)
        if draw(st.integers(0, 4)) == 0:
            del place[key]
        else:
            place[key] = draw(json_values)
    return value


# Embeddings


def embedding(floats: list[float]) -> bytes:
    return struct.pack(f"<{len(floats)}f", *floats)


def float32s(dimensions: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-10, 10, width=32), min_size=dimensions, max_size=dimensions)


def embeddings(dimensions: int) -> st.SearchStrategy[bytes]:
    """BLOBs that are an embedding, nearly one, or of another size."""
    own = list(hostile.HOSTILE_EMBEDDINGS(dimensions).values())
    return (
        float32s(dimensions).map(embedding)
        | st.lists(st.floats(width=32), max_size=12).map(embedding)
        | st.sampled_from([blob for blob in own if len(blob) < 100_000])
        | st.binary(min_size=4 * dimensions, max_size=4 * dimensions)
    )


def has_direction(floats: list[float]) -> bool:
    length = math.sqrt(sum(value * value for value in floats))
    return math.isfinite(length) and length > 1e-18


# Images, whole


good_images = st.sampled_from([data for name in FORMATS for data in seeds(name)] + [pictures.png(1, 1)])
any_image = good_images | st.sampled_from([data for name in FORMATS for data in hostile_seeds(name)])


@st.composite
def as_text(draw: st.DrawFn, data: bytes) -> str:
    """The ways of writing an image as text that have to give these very bytes."""
    text = base64.b64encode(data).decode()
    if draw(st.booleans()):
        text = text.replace("+", "-").replace("/", "_")
    if draw(st.booleans()):
        text = text.rstrip("=")
    uri = draw(st.booleans())
    how = draw(st.sampled_from(("plain", "plus", "lines", "escaped", "around")))
    if how == "plus":  # as a query string leaves it
        text = text.replace("+", " ")
    elif how == "lines":
        width, end = draw(st.sampled_from((4, 60, 64, 76))), draw(st.sampled_from(("\n", "\r\n", " \n", "\n  ")))
        text = end.join(text[at : at + width] for at in range(0, len(text), width))
    elif how == "escaped" and uri:
        text = text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    elif how == "around":
        space = draw(st.sampled_from((" ", "\n", "\t ")))
        text = space + text + ("" if uri else space)
    if uri:
        kind = draw(st.sampled_from(("image/png", "", "text/plain;charset=utf-8", "IMAGE/JPEG", "x" * 900)))
        text = (
            draw(st.sampled_from(("data:", "DATA:", " data:")))
            + kind
            + draw(st.sampled_from((";base64,", ";BASE64,")))
            + text
        )
    return text
