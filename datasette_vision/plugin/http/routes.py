"""A route of the HTTP API: described once, for Datasette's router, OpenAPI, and the documentation."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasette_vision.plugin.api.examples import RequestExample
from datasette_vision.plugin.http import schemas
from datasette_vision.plugin.http.bodies import read_fields
from datasette_vision.plugin.http.context import ANSWER_TIMEOUT_S, Call, context_of
from datasette_vision.plugin.http.parameters import Parameter, refuse_unknown
from datasette_vision.plugin.http.responses import RequestError, cors_headers, error_answer, guarded
from datasette_vision.plugin.http.schemas import Schema
from datasette_vision.plugin.server import permissions
from datasette_vision.util.caller import Caller, acting

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request, Response

ROUTE_PREFIX = "/-/vision"
GET, POST = "GET", "POST"
# A HEAD is answered like a GET, without a body.
SAFE = {"HEAD": GET}


@dataclass(frozen=True)
class Route:
    """One address and its handler.

    `handle` returns the response, or raises a VisionError, a RequestError, or an exception of Datasette's. {name} in
    `path` is a part of the address, found in request.url_vars, still tilde-encoded. `kinds` are the inputs that the
    route takes (inputs.py). An actor who may not do `action` gets a 403. With None, `handle` checks permissions,
    because they depend on the table in the address.
    """

    name: str
    path: str
    summary: str
    description: str
    handle: Callable[[Call], Awaitable[Response]]
    methods: tuple[str, ...] = (GET, POST)
    action: str | None = permissions.INFER
    kinds: tuple[str, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    answer: Schema | None = None
    media_type: str = "application/json"
    # How this route returns an error: OpenAI's clients expect another format than Datasette's, and people a page.
    refused: Callable[[Datasette, Exception], Response] = error_answer
    error: Schema = field(default_factory=lambda: schemas.ERROR)
    # Whether the parameters are in the query string even for a POST.
    in_address: bool = False
    # Whether the query string may have unknown parameters.
    strict: bool = True
    # The schema of the request body, if it is not made of kinds and parameters.
    body: Schema | None = None
    path_parameters: tuple[tuple[str, str], ...] = ()
    example: RequestExample | None = None

    @property
    def pattern(self) -> str:
        """The path as a pattern for Datasette's router."""
        return "^" + re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(ROUTE_PREFIX + self.path)) + "$"

    def known(self) -> Sequence[str]:
        """Return the names of the fields that it accepts."""
        inputs = (*self.kinds, "inputs") if self.kinds else ()
        return (*inputs, *(parameter.name for parameter in self.parameters))

    async def view(self, datasette: Datasette, request: Request) -> Response:
        """Handle a request from Datasette's router."""
        began = time.perf_counter()
        response: Response = await guarded(self._answer, self._refused)(datasette, request)
        if request.method == "HEAD":
            response.body = ""
        context_of(datasette).measures.request(
            self.name, _method(request), response.status, time.perf_counter() - began
        )
        return response

    def _refused(self, datasette: Datasette, error: Exception) -> Response:
        context_of(datasette).measures.error(self.name, error)
        return self.refused(datasette, error)

    async def _answer(self, datasette: Datasette, request: Request) -> Response:
        if request.method == "OPTIONS":
            return _options(datasette, self._allowed())
        if SAFE.get(request.method, request.method) not in self.methods:
            allowed = self._allowed()
            raise RequestError(405, f"expected one of {allowed}, found {request.method}", {"allow": allowed})
        if self.action is not None:
            await permissions.ensure(datasette, request.actor, self.action)
        context = context_of(datasette)
        if self.kinds or self.body is not None:
            await context.ready()
        client = context.clients.name(request)
        with context.limits.share(client) as share:
            with acting(Caller(client)):
                fields = await read_fields(request, share, context.call)
            if self.strict:
                refuse_unknown(fields, self.known())
            with acting(Caller(client, time.monotonic() + ANSWER_TIMEOUT_S)):
                return await self.handle(Call(datasette, request, context, share, fields, self.name))

    def _allowed(self) -> str:
        extra = ("HEAD",) if GET in self.methods else ()
        return ", ".join((*self.methods, *extra, "OPTIONS"))


def _options(datasette: Datasette, allowed: str) -> Response:
    """Answer a browser's preflight request, sent before JSON from another origin."""
    from datasette.utils.asgi import Response

    return Response("", 204, {**cors_headers(datasette), "allow": allowed})


def _method(request: Request) -> str:
    """Return the method for the metrics, in which clients must not be able to invent new ones."""
    return request.method if request.method in (GET, POST, "HEAD", "OPTIONS") else "other"


def as_datasette_routes(routes: Sequence[Route]) -> list[tuple[str, Any]]:
    """Return routes in the form of Datasette's register_routes() hook."""
    return [(route.pattern, _function(route)) for route in routes]


def _function(route: Route) -> Any:
    """Return a route's view as a plain function, which Datasette's router requires."""

    async def view(datasette: Datasette, request: Request) -> Response:
        return await route.view(datasette, request)

    return view
