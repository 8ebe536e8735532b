"""The addresses of the pages and of the images on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasette_vision.plugin.pages.image_route import serve_image
from datasette_vision.plugin.pages.playground import playground
from datasette_vision.plugin.search.page import search_page

ROW = r"(?P<database>[^/]+)/(?P<table>[^/]+)"


def page_routes() -> list[tuple[str, Callable[..., Any]]]:
    """Return (pattern, view) of each page. The last one matches everything else, so nothing may come after it."""
    return [
        (rf"^/-/vision/picture/{ROW}/(?P<column>[^/]+)/(?P<row>[^/]+)$", serve_image),
        (r"^/-/vision$", playground),
        (rf"^/-/vision/{ROW}$", search_page),
    ]
