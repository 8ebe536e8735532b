"""The table of routes of the HTTP API, from which Datasette's router, OpenAPI and the documentation are made."""

from __future__ import annotations

from datasette_vision.plugin.api import api, documentation, jobs, metrics, openai, operations
from datasette_vision.plugin.http.routes import Route
from datasette_vision.plugin.search import api as search_api


def api_routes() -> tuple[Route, ...]:
    """Return all routes. Those of operations depend on the registered tasks."""
    return (
        *api.ROUTES,
        *operations.operation_routes(),
        *search_api.ROUTES,
        *openai.ROUTES,
        *jobs.ROUTES,
        *metrics.ROUTES,
        *documentation.documentation_routes(api_routes),
    )
