"""OpenAI's embeddings API: /-/vision/v1/embeddings and /-/vision/v1/models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasette_vision.errors import Busy, InvalidArgument, InvalidInput, UnknownModel, VisionError
from datasette_vision.models.tasks import embeds
from datasette_vision.plugin.api.api import INLINE_EMBEDDINGS, written_embedding
from datasette_vision.plugin.api.examples import RequestExample
from datasette_vision.plugin.http import schemas
from datasette_vision.plugin.http.computing import embed_inputs, take
from datasette_vision.plugin.http.context import Call
from datasette_vision.plugin.http.inputs import IMAGE, TEXT, Input, input_of
from datasette_vision.plugin.http.parameters import ENCODING_FORMAT, MODEL_PARAMETER, Parameter, choice, quoted_value
from datasette_vision.plugin.http.responses import answer, dumps, message_of, status_of
from datasette_vision.plugin.http.routes import GET, POST, Route
from datasette_vision.plugin.server import permissions

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Response

    from datasette_vision.models.manifest import Manifest
    from datasette_vision.vectors.embedding import Vector

OWNER = "datasette-vision"
PARAMETERS = ("input", "model", "dimensions", "encoding_format", "modality")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)
# An extension of infinity: https://github.com/michaelfeil/infinity
MODALITY = Parameter(
    "modality",
    "The kind of the strings: `text`, or `image`, as data: URIs or base64. By default a data: URI is an image,"
    " and anything"
    " else is text.",
    {"type": ["string", "null"], "enum": [TEXT, IMAGE, None]},
    "text or image",
    choice(TEXT, IMAGE),
)


async def embeddings(call: Call) -> Response:
    """Return the embeddings of texts, and of images as data: URIs, in OpenAI's format."""
    # Some clients send null for parameters that are not set.
    fields = [field for field in call.fields if field.value is not None]
    values = {field.name: field.value for field in fields if field.is_json}
    model, encoding = MODEL_PARAMETER.value(fields), ENCODING_FORMAT.value(fields)
    inputs = read_input(values.get("input"), MODALITY.value(fields))
    take(call, inputs)
    manifest = await call.context.call(call.context.encoder, model)
    dimensions = values.get("dimensions")
    if dimensions is not None and (dimensions != manifest.dimensions or isinstance(dimensions, bool)):
        raise InvalidArgument(
            f"dimensions: the embeddings of {manifest.name} have {manifest.dimensions} dimensions and cannot be"
            f" shortened, found {quoted_value(dimensions)}"
        )
    vectors: list[Vector] = []
    for position, found in enumerate(await embed_inputs(call, inputs, manifest.name), start=1):
        if isinstance(found, VisionError):
            raise type(found)(f"input: number {position}: {found}" if len(inputs) > 1 else f"input: {found}")
        vectors.append(found)
    write = written_data, vectors, encoding
    data = write[0](*write[1:]) if len(vectors) <= INLINE_EMBEDDINGS else await call.context.call(*write)
    tokens = await call.context.call(_count_tokens, call, manifest.name, inputs)
    rest = dumps({"model": manifest.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    return answer(call.datasette, f'{{"object":"list","data":[{data}],{rest[1:]}')


def read_input(value: Any, modality: str | None = None) -> list[Input]:
    """Return the inputs in OpenAI's `input`: a string, or an array of strings. A data: URI is an image.

    With a `modality`, all are of that kind, images as data: URIs or base64. Raises InvalidArgument for anything else:
    arrays of tokens, which belong to another model's tokenizer, and addresses of images, which are not fetched.
    """
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise InvalidArgument("input: expected a string or an array of strings, found an empty array")
    for entry in listed:
        if _is_token(entry) or (isinstance(entry, list) and entry and all(map(_is_token, entry))):
            raise InvalidArgument(
                "input: expected texts, found numbers, which are tokens of another model: configure the client"
                " to send the"
                " texts themselves (in LangChain: check_embedding_ctx_length=False)"
            )
        if not isinstance(entry, str):
            raise InvalidArgument(f"input: expected a string or an array of strings, found {quoted_value(value)}")
        if modality == IMAGE and ADDRESS.match(entry):
            raise InvalidArgument(
                f"input: expected images as data: URIs or base64, found {quoted_value(entry)}:"
                " addresses are not fetched"
            )
    if modality is not None:
        return [Input(modality, entry) for entry in listed]
    return [input_of(entry, (TEXT, IMAGE), "input") for entry in listed]


def written_data(vectors: Sequence[Vector], encoding: str) -> str:
    """Return the entries of `data`, as JSON."""
    return ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{written_embedding(vector, encoding)}}}'
        for index, vector in enumerate(vectors)
    )


async def handle_openai_models(call: Call) -> Response:
    """Return the models that embed, in OpenAI's format."""
    manifests = await call.context.call(_dual_encoders, call)
    return answer(call.datasette, {"object": "list", "data": [_described(manifest) for manifest in manifests]})


async def model(call: Call) -> Response:
    """Return one model."""
    from datasette.utils import tilde_decode

    name = tilde_decode(call.request.url_vars["model"])
    return answer(call.datasette, _described(await call.context.call(call.context.encoder, name)))


def refused(datasette: Datasette, error: Exception) -> Response:
    """Return the response for an error, in OpenAI's format."""
    status, headers = status_of(error)
    message = message_of(error)
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    code = None
    if isinstance(error, UnknownModel):
        code = "model_not_found"
    elif isinstance(error, Busy):
        code = "overloaded"
    parameter, colon, _ = message.partition(":")
    known = colon and isinstance(error, InvalidInput) and parameter in PARAMETERS
    body = {"message": message, "type": kind, "param": parameter if known else None, "code": code}
    return answer(datasette, {"error": body}, status, headers)


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count_tokens(call: Call, name: str, inputs: Sequence[Input]) -> int:
    """Count the tokens that the text tower reads. Images have no tokens."""
    service = call.context.vision.services.dual_encoder(name)
    return sum(len(service.tokenise(str(item.content))) for item in inputs if item.kind == TEXT)


def _dual_encoders(call: Call) -> list[Manifest]:
    vision = call.context.vision
    usable = (entry for entry in vision.models() if embeds(entry.get("task")))
    return [vision.services.get(str(entry["name"])).manifest for entry in usable]


def _described(manifest: Manifest) -> dict[str, Any]:
    # The time at which a model was made is unknown, and clients expect a number.
    return {"id": manifest.name, "object": "model", "created": 0, "owned_by": OWNER}


MODEL_SCHEMA = schemas.closed(
    {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    }
)
ERROR_SCHEMA: schemas.Schema = schemas.closed(
    {
        "error": schemas.closed(
            {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            }
        )
    }
)
STRING_INPUT: schemas.Schema = {"type": "string", "description": "A text, or an image when it is a data: URI."}
EMBEDDINGS_BODY: schemas.Schema = {
    "type": "object",
    "properties": {
        "input": {"anyOf": [STRING_INPUT, {"type": "array", "items": STRING_INPUT, "minItems": 1}]},
        "model": {**MODEL_PARAMETER.schema, "type": ["string", "null"]},
        "encoding_format": {**ENCODING_FORMAT.schema, "type": ["string", "null"], "enum": ["float", "base64", None]},
        "dimensions": {
            "type": ["integer", "null"],
            "description": "Must be the model's dimensions: its embeddings cannot be shortened.",
            "minimum": 1,
        },
        "modality": {**MODALITY.schema, "description": MODALITY.meaning},
        "user": {"description": "Ignored."},
    },
    "required": ["input"],
}
ANSWER = schemas.closed(
    {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": schemas.closed(
                {
                    "object": {"const": "embedding"},
                    "index": {"type": "integer", "minimum": 0},
                    **schemas.EMBEDDED["properties"],
                }
            ),
        },
        "model": schemas.ANSWERING_MODEL,
        "usage": schemas.closed({"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}}),
    }
)
ROUTES = (
    Route(
        "openai_embeddings",
        "/v1/embeddings",
        "Embed, in OpenAI's format",
        "OpenAI's embeddings API, for its clients: set their base URL to `/-/vision/v1`. Images"
        " are data: URIs. Embeddings have unit length, like OpenAI's.",
        embeddings,
        methods=(POST,),
        answer=ANSWER,
        refused=refused,
        error=ERROR_SCHEMA,
        strict=False,
        body=EMBEDDINGS_BODY,
        example=RequestExample(json={"model": "tiny-emoji", "input": "purple heart"}),
    ),
    Route(
        "openai_models",
        "/v1/models",
        "List the models that embed, in OpenAI's format",
        "The installed dual encoders.",
        handle_openai_models,
        methods=(GET,),
        action=permissions.VIEW_INSTANCE,
        answer=schemas.closed({"object": {"const": "list"}, "data": {"type": "array", "items": MODEL_SCHEMA}}),
        refused=refused,
        error=ERROR_SCHEMA,
        example=RequestExample(),
    ),
    Route(
        "openai_model",
        "/v1/models/{model}",
        "Get one model, in OpenAI's format",
        "An installed dual encoder.",
        model,
        methods=(GET,),
        action=permissions.VIEW_INSTANCE,
        answer=MODEL_SCHEMA,
        refused=refused,
        error=ERROR_SCHEMA,
        path_parameters=(("model", "Name of an installed model."),),
        example=RequestExample("/-/vision/v1/models/tiny-emoji"),
    ),
)
