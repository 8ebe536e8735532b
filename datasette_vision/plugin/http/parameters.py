"""The parameters of the HTTP API, each described once, for parsing and for the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasette_vision.errors import InvalidArgument
from datasette_vision.plugin.http.bodies import Field
from datasette_vision.plugin.http.schemas import Schema

# The most that a message quotes of a value: characters, entries of an array or object, and levels of arrays.
SHOWN_CHARS = 60
SHOWN_VALUES = 10
SHOWN_DEPTH = 3


@dataclass(frozen=True)
class Parameter:
    """A parameter. It occurs at most once, or repeatedly in a form or a query string if there is a `read_many`.

    `schema` is the JSON Schema of its value in JSON. `read` converts the value, a str if it came in a form or a query
    string, for the handler. It raises ValueError for a bad value, and `expected` says what is allowed.
    """

    name: str
    meaning: str
    schema: Schema
    expected: str
    read: Callable[[Any], Any]
    default: Any = None
    required: bool = False
    read_many: Callable[[list[str]], Any] | None = None

    def value(self, fields: Sequence[Field]) -> Any:
        """Return the value in these fields, or the default. Raises InvalidArgument, naming the parameter."""
        found = [field for field in fields if field.name == self.name]
        if not found:
            if self.required:
                raise InvalidArgument(f"{self.name}: expected {self.expected}, found none")
            return self.default
        read, sent = self.read, found[0].value
        if self.read_many is not None and not found[0].is_json:
            read, sent = self.read_many, [field.value for field in found]
        elif len(found) > 1:
            raise InvalidArgument(f"{self.name}: expected it once, found it {len(found)} times")
        try:
            return read(sent)
        except ValueError:
            raise InvalidArgument(f"{self.name}: expected {self.expected}, found {quoted_value(sent)}") from None


def whole_number(minimum: int, maximum: int) -> Callable[[Any], int]:
    """Return a reader of whole numbers in a range: digits in a form, numbers in JSON."""

    def read(value: Any) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if isinstance(value, float) and value.is_integer():  # in JSON Schema, 5.0 is an integer
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise ValueError
        return value

    return read


def choice(*allowed: str) -> Callable[[Any], str]:
    """Return a reader that accepts one of these words."""

    def read(value: Any) -> str:
        if value not in allowed or not isinstance(value, str):
            raise ValueError
        return value

    return read


def text(value: Any) -> str:
    """Read a text."""
    if not isinstance(value, str):
        raise ValueError
    return value


def optional_text(value: Any) -> str | None:
    """Read a text. An empty one counts as missing: forms send it for an empty field."""
    return text(value) or None


def refuse_unknown(fields: Sequence[Field], known: Sequence[str]) -> None:
    """Raise InvalidArgument for an unknown field: a mistyped name must not be ignored silently."""
    for field in fields:
        if field.name not in known:
            raise InvalidArgument(f"unknown parameter {quoted_value(field.name)}; allowed are {', '.join(known)}")


def quoted_value(value: Any) -> str:
    """Return a value as a message quotes it, cut short. A large value takes no longer than a small one."""
    cut = _cut(value, SHOWN_DEPTH)
    if isinstance(cut, str) and not isinstance(value, str):
        return cut
    written = json.dumps(cut, default=str)
    return written if len(written) <= SHOWN_CHARS else written[:SHOWN_CHARS] + "…"


def _cut(value: Any, depth: int) -> Any:
    """Return the beginning of a value, or a description of it."""
    if isinstance(value, bytes):
        return f"a file of {len(value):,} bytes"
    if isinstance(value, str):
        return value[:SHOWN_CHARS]
    if isinstance(value, int) and value.bit_length() > 4 * SHOWN_CHARS:
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, (list, dict)) and (len(value) > SHOWN_VALUES or not depth):
        return f"{len(value):,} values"
    if isinstance(value, list):
        return [_cut(inner, depth - 1) for inner in value]
    if isinstance(value, dict):
        return {name[:SHOWN_CHARS]: _cut(inner, depth - 1) for name, inner in value.items()}
    return value


LABEL = {
    "anyOf": [
        {"type": "string", "pattern": r"\w"},
        {
            "type": "object",
            "properties": {name: {"type": "string", "pattern": r"\w"} for name in ("label", "prompt")},
            "required": ["label", "prompt"],
            "additionalProperties": False,
        },
    ]
}

MODEL_PARAMETER = Parameter(
    "model",
    "Name of an installed model; by default the configured `default_model`.",
    {"type": "string"},
    "the name of a model",
    optional_text,
)
ENCODING_FORMAT = Parameter(
    "encoding_format",
    "The format of embeddings: `float`, an array of numbers, or `base64`, of little-endian float32 values.",
    {"type": "string", "enum": ["float", "base64"], "default": "float"},
    "float or base64",
    choice("float", "base64"),
    "float",
)


def labels_as_text(value: Any) -> str:
    """Read labels in JSON, as text for zero_shot.parse_labels()."""
    if not isinstance(value, (list, dict)):
        raise ValueError
    return json.dumps(value)


def labels_of_text(text: str) -> str:
    """Return labels that a person wrote, as JSON. They are one per line; or on one line, separated by commas; or JSON.

    This rule applies wherever labels are written as text: forms, query strings, the playground and the enrichment.
    """
    text = text.strip()
    if text.startswith(("[", "{")):
        return text
    parts = text.splitlines() if len(text.splitlines()) > 1 else text.split(",")
    return json.dumps(list(dict.fromkeys(part.strip() for part in parts if part.strip())))


def labels_of_form(sent: list[str]) -> str:
    """Read labels in a form or a query string: one in each of several fields, or all in one, as labels_of_text() reads
    them.
    """
    if not all(isinstance(label, str) for label in sent):
        raise ValueError
    return labels_of_text(sent[0]) if len(sent) == 1 else json.dumps(sent)


LABELS = Parameter(
    "labels",
    "The labels: an array of strings, or of objects with a `label` and its `prompt`; or an"
    " object of `labels`, a `template` such as `a photo of a {}`, `multi_label` and a `temperature`. In a"
    " query string or a"
    " form: repeat it for each label, or send all labels at once, separated by commas, one per line, or as JSON.",
    {
        "anyOf": [
            {"type": "array", "minItems": 1, "items": LABEL, "uniqueItems": True, "examples": [["cat", "dog"]]},
            {
                "type": "object",
                "properties": {
                    "labels": {"type": "array", "minItems": 1, "items": LABEL, "uniqueItems": True},
                    "template": {"type": "string", "pattern": r"^[^{}]*\{\}[^{}]*$"},
                    "multi_label": {"type": "boolean", "default": False},
                    "temperature": {"type": "number", "minimum": 0.001, "maximum": 1000, "default": 1},
                },
                "required": ["labels"],
                "additionalProperties": False,
            },
        ]
    },
    "labels: an array of strings, or an object",
    labels_as_text,
    required=True,
    read_many=labels_of_form,
)
K_PARAMETER = Parameter(
    "k",
    "How many labels to return, best first; by default 5 of the model's labels, or all of the given labels.",
    {"type": "integer", "minimum": 1, "maximum": 100_000},
    "a whole number from 1 to 100000",
    whole_number(1, 100_000),
)
