"""A route of the HTTP API: described once, for Datasette's router, for OpenAPI, and for the pages of documentation."""

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
# A HEAD is answered as a GET, without a body.
SAFE = {"HEAD": GET}


@dataclass(frozen=True)
class Route:
    """One address and what stands behind it.

    `handle` returns the response, or raises: a VisionError, a RequestError, or an exception of Datasette's. {name} in
    `path` is a part of the address, found in request.url_vars, still tilde-encoded. `kinds` are the inputs that it
    takes (inputs.py). Who may not do `action` gets a 403; with None, `handle` sees to it, for it depends on the table
    that the address names.
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
    # How this route answers an error: OpenAI's clients expect another form than Datasette's, and people a page.
    refused: Callable[[Datasette, Exception], Response] = error_answer
    error: Schema = field(default_factory=lambda: schemas.ERROR)
    # Whether the parameters stand in the address even of what is posted.
    in_address: bool = False
    # Whether an address may hold parameters that the route does not know.
    strict: bool = True
    # The schema of a posted body, where it is not made of kinds and parameters.
    body: Schema | None = None
    path_parameters: tuple[tuple[str, str], ...] = ()
    example: RequestExample | None = None

    @property
    def pattern(self) -> str:
        """The path as Datasette's router takes it."""
        return "^" + re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(ROUTE_PREFIX + self.path)) + "$"

    def known(self) -> Sequence[str]:
        """Return the names of the fields that it takes."""
        inputs = (*self.kinds, "inputs") if self.kinds else ()
        return (*inputs, *(parameter.name for parameter in self.parameters))

    async def view(self, datasette: Datasette, request: Request) -> Response:
        """Answer a request: what Datasette's router calls."""
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
    """Answer the question that a browser asks before it posts JSON from another origin."""
    from datasette.utils.asgi import Response

    return Response("", 204, {**cors_headers(datasette), "allow": allowed})


def _method(request: Request) -> str:
    """Return the method for the metrics, where a client must not be able to make up new ones."""
    return request.method if request.method in (GET, POST, "HEAD", "OPTIONS") else "other"


def as_datasette_routes(routes: Sequence[Route]) -> list[tuple[str, Any]]:
    """Return routes as Datasette's register_routes() hook gives them."""
    return [(route.pattern, _function(route)) for route in routes]


def _function(route: Route) -> Any:
    """Return a route's view as the plain function that Datasette's router wants."""

    async def view(datasette: Datasette, request: Request) -> Response:
        return await route.view(datasette, request)

    return view
