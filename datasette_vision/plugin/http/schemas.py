"""JSON Schemas of the HTTP API's requests and responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

ANSWERING_MODEL: Schema = {"type": "string", "description": "The model that was used."}
COUNT: Schema = {"type": "integer", "minimum": 1}


def closed(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """Return the schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


# Inputs

TEXT_INPUT: Schema = {"type": "string", "description": "A text."}
IMAGE_INPUT: Schema = {
    "type": "string",
    "format": "image",  # a format of our own: tests generate an image for it
    "description": "An image file as base64 or as a data: URI.",
}
EMBEDDING_AS_TEXT: Schema = {"type": "string", "format": "embedding"}  # another of our own
EMBEDDING_INPUT: Schema = {
    "description": "An embedding: numbers, or base64 of little-endian float32 values.",
    "anyOf": [{"type": "array", "items": {"type": "number"}, "minItems": 1}, EMBEDDING_AS_TEXT],
}
INPUTS: Mapping[str, Schema] = {"text": TEXT_INPUT, "image": IMAGE_INPUT, "embedding": EMBEDDING_INPUT}


def input_schema(kinds: Sequence[str]) -> Schema:
    """Return the schema of one input for inputs.input_of()."""
    text: Schema = {"type": "string", "description": "A text, or an image if it is a data: URI."}
    string = text if "text" in kinds else IMAGE_INPUT
    return {"anyOf": [string, *(closed({kind: INPUTS[kind]}) for kind in kinds)]}


# Responses

EMBEDDED: Schema = closed(
    {
        "embedding": {
            "anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string", "contentEncoding": "base64"}]
        }
    }
)
LABELLED: Schema = closed(
    {
        "labels": {
            "type": "array",
            "items": closed({"label": {"type": "string"}, "score": {"type": "number", "minimum": 0, "maximum": 1}}),
        }
    }
)
COMPARED: Schema = closed({"similarity": {"type": "number", "minimum": -1, "maximum": 1}})
FAILED: Schema = {
    **closed({"error": {"type": "string"}, "status": {"type": "integer"}}),
    "description": "Why this input could not be used.",
}
MODEL_LIST: Schema = closed(
    {
        "ok": {"const": True},
        "models": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        },
    }
)
ERROR: Schema = {
    "type": "object",
    "properties": {
        "ok": {"const": False},
        "error": {"type": "string", "description": "What was wrong."},
        "errors": {"type": "array", "items": {"type": "string"}},
        "status": {"type": "integer", "description": "The HTTP status."},
    },
    "required": ["ok", "error", "errors", "status"],
}


def results_schema(one: Schema, **head: Schema) -> Schema:
    """Return the schema of a response to several inputs."""
    listed = {"type": "array", "items": {"anyOf": [one, FAILED]}, "description": "In the order of the inputs."}
    return closed({"ok": {"const": True}, **head, "results": listed})
