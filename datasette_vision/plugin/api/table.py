"""The one table of routes of the HTTP API: Datasette's router, OpenAPI and the documentation are made of it."""

from __future__ import annotations

from datasette_vision.plugin.api import api, documentation, metrics, openai
from datasette_vision.plugin.api import jobs as jobs_api
from datasette_vision.plugin.http.routes import Route
from datasette_vision.plugin.search import api as search_api

ROUTES: tuple[Route, ...] = (
    *api.ROUTES,
    *search_api.ROUTES,
    *openai.ROUTES,
    *jobs_api.ROUTES,
    *metrics.ROUTES,
    *documentation.routes(lambda: ROUTES),
)
