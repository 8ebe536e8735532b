"""Describes the HTTP API: as OpenAPI at /-/vision/openapi.json, and for people at /-/vision/docs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from datasette_vision.plugin.api import openapi
from datasette_vision.plugin.api.examples import RequestExample
from datasette_vision.plugin.http.context import Call
from datasette_vision.plugin.http.inputs import EXPECTED
from datasette_vision.plugin.http.responses import answer, page_error
from datasette_vision.plugin.http.routes import GET, ROUTE_PREFIX, Route
from datasette_vision.plugin.server import permissions

if TYPE_CHECKING:
    from datasette.utils.asgi import Request, Response

HTML = "text/html"
STATUSES = {status: meaning for status, meaning in openapi.ERRORS.items() if status != 500}


def server_of(call: Call) -> str:
    """Return the address of this server as its client knows it, without a trailing slash."""
    request: Request = call.request
    base = str(call.datasette.setting("base_url")).rstrip("/")
    scheme = "https" if call.datasette.setting("force_https_urls") else request.scheme
    return f"{scheme}://{request.host}{base}"


def entries(routes: Sequence[Route], server: str) -> list[dict[str, Any]]:
    """Return the documentation of each route, for a page."""
    return [
        {
            "name": route.name,
            "path": ROUTE_PREFIX + route.path,
            "methods": ", ".join(route.methods),
            "summary": route.summary,
            "description": route.description,
            "parameters": [*_inputs(route), *_parameters(route)],
            "example": route.example.curl(server, ROUTE_PREFIX + route.path) if route.example else None,
        }
        for route in routes
        if route.media_type != HTML
    ]


def _inputs(route: Route) -> list[dict[str, str]]:
    found = [
        {"name": kind, "meaning": f"{EXPECTED[kind][:1].upper()}{EXPECTED[kind][1:]}. Repeat it for each input."}
        for kind in route.kinds
    ]
    if found:
        meaning = f"In JSON: an array of strings, and of objects with one of {', '.join(route.kinds)}, in any order."
        found.append({"name": "inputs", "meaning": meaning})
    return found


def _parameters(route: Route) -> list[dict[str, str]]:
    found = [{"name": name, "meaning": meaning} for name, meaning in route.path_parameters]
    found += [{"name": parameter.name, "meaning": parameter.meaning} for parameter in route.parameters]
    for name, schema in (route.body or {}).get("properties", {}).items():
        found.append({"name": name, "meaning": schema.get("description") or DOCUMENT_BODY[name]})
    return found


def with_code(text: str) -> Markup:
    """Return a text as HTML, with text between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


DOCUMENT_BODY = {
    "input": "A string, or an array of strings: texts, and images as data: URIs.",
    "model": "Name of an installed model; by default the `default_model` of the configuration.",
    "encoding_format": "`float` or `base64`.",
}


def documentation_routes(described: Callable[[], Sequence[Route]]) -> tuple[Route, ...]:
    """Return the routes that describe all routes. `described` is called on each request, because it includes these
    routes.
    """

    async def as_openapi(call: Call) -> Response:
        listed = [route for route in described() if route.media_type != HTML]
        return answer(call.datasette, openapi.description(listed, server_of(call)))

    async def as_page(call: Call) -> Response:
        from datasette.utils.asgi import Response

        server = server_of(call)
        context = {"entries": entries(described(), server), "statuses": STATUSES, "with_code": with_code}
        html = await call.datasette.render_template("vision_docs.html", context, request=call.request)
        return Response.html(html)

    return (
        Route(
            "openapi",
            "/openapi.json",
            "Describe the API",
            "This API as OpenAPI 3.1, for clients and tools.",
            as_openapi,
            methods=(GET,),
            action=permissions.VIEW_INSTANCE,
            strict=False,
            answer={"type": "object"},
            example=RequestExample(),
        ),
        Route(
            "docs",
            "/docs",
            "Describe the API for people",
            "This page.",
            as_page,
            methods=(GET,),
            action=permissions.VIEW_INSTANCE,
            strict=False,
            media_type=HTML,
            refused=page_error,
        ),
    )
