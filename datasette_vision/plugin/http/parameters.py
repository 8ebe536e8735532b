"""What the routes of the HTTP API take: each parameter described once, for reading and for the documentation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasette_vision.errors import InvalidArgument
from datasette_vision.plugin.http.bodies import Field
from datasette_vision.plugin.http.schemas import Schema

# What a message quotes of a value at most: characters, values of an array or object, and arrays within arrays.
SHOWN_CHARS = 60
SHOWN_VALUES = 10
SHOWN_DEPTH = 3


@dataclass(frozen=True)
class Parameter:
    """A parameter. It is there once at most; in a form or an address more often, where there is a `read_many`.

    `schema` is the JSON Schema of its value in JSON. `read` turns what was sent, a str where it came in a form or an
    address, into what the handler gets; it raises ValueError for what does not fit, and `expected` says what does.
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
    """Return a reader of whole numbers in a range: of digits in a form, of numbers in JSON."""

    def read(value: Any) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if isinstance(value, float) and value.is_integer():  # JSON Schema says that 5.0 is an integer
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise ValueError
        return value

    return read


def choice(*allowed: str) -> Callable[[Any], str]:
    """Return a reader of one of these words."""

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
    """Read a text, an empty one as none: what a form sends for a field that nobody filled in."""
    return text(value) or None


def refuse_unknown(fields: Sequence[Field], known: Sequence[str]) -> None:
    """Raise InvalidArgument for a field of another name: a mistyped one must not be passed over in silence."""
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
    """Return the beginning of a value, or what it is in words."""
    if isinstance(value, bytes):
        return f"a file of {len(value):,} bytes"
    if isinstance(value, str):
        return value[: SHOWN_CHARS + 1]
    if isinstance(value, int) and value.bit_length() > 4 * SHOWN_CHARS:
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, (list, dict)) and (len(value) > SHOWN_VALUES or not depth):
        return f"{len(value):,} values"
    if isinstance(value, list):
        return [_cut(inner, depth - 1) for inner in value]
    if isinstance(value, dict):
        return {_cut(name, depth - 1): _cut(inner, depth - 1) for name, inner in value.items()}
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
    "Name of an installed model; by default the `default_model` of the configuration.",
    {"type": "string"},
    "the name of a model",
    optional_text,
)
ENCODING_FORMAT = Parameter(
    "encoding_format",
    "How embeddings are written: `float`, an array of numbers, or `base64`, of little-endian float32 values.",
    {"type": "string", "enum": ["float", "base64"], "default": "float"},
    "float or base64",
    choice("float", "base64"),
    "float",
)


def labels_as_text(value: Any) -> str:
    """Read labels in JSON: as text, which is what zeroshot.parse_labels() takes."""
    if not isinstance(value, (list, dict)):
        raise ValueError
    return json.dumps(value)


def labels_of_text(text: str) -> str:
    """Return labels that somebody wrote as JSON: a label a line; on a single line, between commas; or JSON as it is.

    This is the rule wherever labels are written as text: forms, addresses, the playground and the enrichment.
    """
    text = text.strip()
    if text.startswith(("[", "{")):
        return text
    parts = text.splitlines() if len(text.splitlines()) > 1 else text.split(",")
    return json.dumps(list(dict.fromkeys(part.strip() for part in parts if part.strip())))


def labels_of_form(sent: list[str]) -> str:
    """Read labels in a form or an address: one in each of several fields, or in one, as labels_of_text() reads it."""
    if not all(isinstance(label, str) for label in sent):
        raise ValueError
    return labels_of_text(sent[0]) if len(sent) == 1 else json.dumps(sent)


LABELS = Parameter(
    "labels",
    "What to choose from: an array of strings, or of objects of a `label` and the `prompt` that stands for it; or an"
    " object of `labels`, a `template` such as `a photo of a {}`, `multi_label` and a `temperature`. In an address or a"
    " form: one label each time, or once: labels between commas, one a line, or all of it as JSON.",
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
    "How many labels to return for each, the best; by default 5 of those that a model brings, all of those given.",
    {"type": "integer", "minimum": 1, "maximum": 100_000},
    "a whole number from 1 to 100000",
    whole_number(1, 100_000),
)
