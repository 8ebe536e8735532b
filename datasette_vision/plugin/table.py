"""The one table of routes of the HTTP API: Datasette's router, OpenAPI and the documentation are made of it."""

from __future__ import annotations

from datasette_vision.plugin import api, documentation, jobs_api, metrics, openai, search_api
from datasette_vision.plugin.routes import Route

ROUTES: tuple[Route, ...] = (
    *api.ROUTES,
    *search_api.ROUTES,
    *openai.ROUTES,
    *jobs_api.ROUTES,
    *metrics.ROUTES,
    *documentation.routes(lambda: ROUTES),
)
