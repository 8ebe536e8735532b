"""The OpenAPI description of the HTTP API, generated from its routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasette_vision import __version__
from datasette_vision.plugin.http import schemas
from datasette_vision.plugin.http.bodies import FORM, JSON, MULTIPART
from datasette_vision.plugin.http.parameters import Parameter
from datasette_vision.plugin.http.routes import GET, POST, ROUTE_PREFIX, Route
from datasette_vision.plugin.http.schemas import Schema

# status -> when it is returned. _responses() leaves out statuses that a route never returns.
ERRORS = {
    400: "The request is malformed, or none of its inputs can be used.",
    401: "The token was made by this server and is no longer valid.",
    403: "The actor may not do this.",
    404: "No such model is installed.",
    408: "The body did not arrive in time.",
    413: "The body is too large, or has too many inputs.",
    415: "The media type of the body is not supported.",
    429: "The client has exceeded its rate: see Retry-After.",
    500: "The server failed.",
    503: "The server is at its limits: see Retry-After.",
}
OF_BODIES = (408, 413, 415)
RETRY_AFTER = {"retry-after": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
TITLE = "datasette-vision"
ABOUT = (
    "Embeddings and classification of images and texts. A body may be JSON or a form; in a form, repeat a field for"
    " each input. Results have the order of the inputs, and a bad input has an `error` as its result."
)


def description(routes: Sequence[Route], server: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of routes below a server's address."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(ROUTE_PREFIX + route.path, {}).update(
            {method.lower(): operation(route, method) for method in route.methods}
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": __version__,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server}],
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "A token of Datasette."}}
        },
    }


def operation(route: Route, method: str) -> dict[str, Any]:
    """Return the description of one method of a route."""
    found: dict[str, Any] = {
        "operationId": route.name if len(route.methods) == 1 else f"{route.name}_{method.lower()}",
        "summary": route.summary,
        "description": route.description,
        "responses": _responses(route, method),
    }
    parameters: list[Mapping[str, Any]] = [
        {"name": name, "in": "path", "required": True, "description": meaning, "schema": {"type": "string"}}
        for name, meaning in route.path_parameters
    ]
    if method == GET and not route.in_address:
        parameters += [_in_address(kind, len(route.kinds) == 1) for kind in route.kinds]
    if method == GET or route.in_address:
        parameters += [_parameter(parameter) for parameter in route.parameters]
    if parameters:
        found["parameters"] = parameters
    if method == POST:
        found["requestBody"] = {"required": True, "content": _content(route)}
    return found


def _in_address(kind: str, required: bool) -> Mapping[str, Any]:
    return {
        "name": kind,
        "in": "query",
        "required": required,
        "description": f"{schemas.INPUTS[kind]['description']} Repeat it for each input.",
        "schema": {"type": "array", "items": _string(kind), "minItems": 1},
    }


def _parameter(parameter: Parameter) -> Mapping[str, Any]:
    return {
        "name": parameter.name,
        "in": "query",
        "required": parameter.required,
        "description": parameter.meaning,
        "schema": _as_text(parameter),
    }


def _as_text(parameter: Parameter) -> Schema:
    """Return the schema of a parameter in a query string or a form."""
    if parameter.read_many is not None:
        return {"type": "array", "items": {"type": "string", "pattern": r"\w"}, "minItems": 1, "uniqueItems": True}
    return parameter.schema if "type" in parameter.schema else {"type": "string"}


def _content(route: Route) -> dict[str, Any]:
    if route.body is not None:
        return {JSON: {"schema": route.body}}
    names = {} if route.in_address else {parameter.name: parameter for parameter in route.parameters}
    required = [name for name, parameter in names.items() if parameter.required]
    described = {name: {**item.schema, "description": item.meaning} for name, item in names.items()}
    inputs: dict[str, Any] = {kind: _one_or_many(schemas.INPUTS[kind]) for kind in route.kinds}
    if inputs:
        inputs["inputs"] = {"type": "array", "minItems": 1, "items": schemas.input_schema(route.kinds)}
    as_json = {
        "type": "object",
        "properties": {**inputs, **described},
        "required": required,
        "additionalProperties": False,
        **({"oneOf": [{"required": [name]} for name in inputs]} if inputs else {}),
    }
    forms = {
        media_type: {
            "type": "object",
            "properties": {
                **{kind: _repeated(kind, media_type) for kind in route.kinds},
                **{name: {**_as_text(item), "description": item.meaning} for name, item in names.items()},
            },
            "required": required,
            "additionalProperties": False,
            "anyOf": [{"required": [kind]} for kind in route.kinds],
        }
        for media_type in (MULTIPART, FORM)
    }
    return {JSON: {"schema": as_json}, **{media_type: {"schema": form} for media_type, form in forms.items()}}


def _repeated(kind: str, media_type: str) -> Schema:
    """Return the schema of a form field that is repeated for each input."""
    one = _string(kind)
    if kind == "image" and media_type == MULTIPART:
        one = {"type": "string", "format": "binary"}
    return {"type": "array", "items": one, "minItems": 1, "description": schemas.INPUTS[kind]["description"]}


def _string(kind: str) -> Schema:
    return {"text": {"type": "string"}, "embedding": schemas.EMBEDDING_AS_TEXT}.get(kind, schemas.IMAGE_INPUT)


def _one_or_many(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


def _responses(route: Route, method: str) -> dict[str, Any]:
    answer = {"schema": route.answer} if route.answer is not None else {}
    found: dict[str, Any] = {"200": {"description": "OK", "content": {route.media_type: answer}}}
    for status, meaning in ERRORS.items():
        if method != POST and status in OF_BODIES[:1] + OF_BODIES[2:]:
            continue
        # Datasette itself refuses an expired token, for every route.
        schema = schemas.ERROR if status == 401 else route.error
        found[str(status)] = {
            "description": meaning,
            "content": {JSON: {"schema": schema}},
            **({"headers": RETRY_AFTER} if status in (429, 503) else {}),
        }
    return found
