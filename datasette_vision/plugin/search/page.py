"""The page /-/vision/<database>/<table>: search by words, by an image, and by more or less similar rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from datasette_vision import __version__
from datasette_vision.errors import InvalidArgument, VisionError
from datasette_vision.plugin.http import uploads
from datasette_vision.plugin.http.context import context_of, outcomes
from datasette_vision.plugin.http.responses import RequestError, status_of
from datasette_vision.plugin.pages import image_route
from datasette_vision.plugin.search import api
from datasette_vision.plugin.search import embedded_table as embedded_tables
from datasette_vision.plugin.search.request import LESS, SearchRequest, encode_embedding
from datasette_vision.plugin.search.search import (
    FoundRow,
    Search,
    arguments_of,
    read_embedded,
    resolve_search,
    run,
    table_of,
)
from datasette_vision.plugin.server import permissions
from datasette_vision.plugin.server.compatibility import database_color

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database
    from datasette.utils.asgi import Request, Response

SEARCH_TEMPLATE = "vision_search.html"
PAGE_THUMBNAIL_PIXELS = 192
LIKE_WEIGHTS = (
    (2.0, "much more like"), (1.0, "more like"), (0.5, "a little like"),
    (-0.25, "a little less like"), (-0.5, "less like"), (-1.0, "much less like"),
)  # fmt: skip


async def search_page(datasette: Datasette, request: Request) -> Response:
    """Serve the page, and handle an image uploaded from it."""
    from datasette.utils.asgi import Response

    database, table = await table_of(datasette, request)
    address = search_page_path(datasette, database.name, table)
    embedded = await read_embedded(database, table)
    if embedded is None:
        return await _not_embedded(datasette, request, database, table)
    search = Search(database, table, embedded, SearchRequest())
    status, error = 200, ""
    headers: dict[str, str] = {}
    try:
        search.request = SearchRequest.read(_with_filters(request), datasette.setting("max_returned_rows"))
        if request.method == "GET" and sorted(search.request.arguments()) != sorted(arguments_of(request)):
            return Response.redirect(f"{address}?{search.request.query_string()}")
        await resolve_search(datasette, request, search, or_first=True)
        if request.method == "POST":
            return Response.redirect(f"{address}?{await _uploaded(datasette, request, search)}", status=303)
        await run(datasette, request, search)
    except (VisionError, RequestError) as problem:
        status, headers = status_of(problem)
        error = str(problem)
    context = await _context(datasette, request, search, address)
    html = await datasette.render_template(
        SEARCH_TEMPLATE, {**context, "error": error}, request, view_name="vision_search"
    )
    return Response.html(html, status=status, headers=headers)


def search_page_path(datasette: Datasette, database: str, table: str) -> str:
    """Return the address of the search page of a table."""
    from datasette.utils import tilde_encode

    route = tilde_encode(datasette.get_database(database).route)
    return str(datasette.urls.path(f"/-/vision/{route}/{tilde_encode(table)}"))


def _with_filters(request: Request) -> list[tuple[str, str]]:
    """Return the arguments of the address, with the form's filter fields turned into column filters."""
    from datasette.utils import filters_should_redirect

    changes = filters_should_redirect(request.args)
    dropped = {name for name, value in changes if value is None}
    kept = [(name, value) for name, value in arguments_of(request) if name not in dropped]
    return kept + [(name, value) for name, value in changes if value is not None]


async def _uploaded(datasette: Datasette, request: Request, search: Search) -> str:
    """Embed the uploaded image, and return the query string of the search for it. The image is not stored."""
    from datasette_vision.vectors import embedding as vectors  # heavy: NumPy

    await permissions.ensure(datasette, request.actor, permissions.INFER)
    async with uploads.upload(datasette, request) as sent:
        if not sent.image:
            raise InvalidArgument("choose an image first")
        (found,) = await outcomes([context_of(datasette).inference.embed_image(sent.image, search.model)])
    if isinstance(found, VisionError):
        raise found
    return search.request.query_string(
        q="",
        but_not="",
        examples=(),
        embedding=encode_embedding(vectors.to_blob(vectors.normalise(found))),
        embedding_weight=1.0,
    )


async def _not_embedded(datasette: Datasette, request: Request, database: Database, table: str) -> Response:
    """Explain how to make a table searchable."""
    from datasette.utils.asgi import Response

    columns = await database.execute_fn(lambda connection: embedded_tables.image_columns(connection, table))
    file = PurePath(database.path).name if database.path else f"{database.name}.db"
    context = {
        **_frame(datasette, request, database, table),
        "not_embedded": True,
        "image_columns": columns,
        "command_arguments": (file, table),
    }
    html = await datasette.render_template(SEARCH_TEMPLATE, context, request, view_name="vision_search")
    return Response.html(html, status=200 if request.method != "POST" else 400)


def _frame(datasette: Datasette, request: Request, database: Database, table: str) -> dict[str, Any]:
    """The variables that every version of the page shows."""
    return {
        "database": database.name,
        "table": table,
        "color": database_color(database),
        "table_path": datasette.urls.table(database.name, table),
        "playground_path": datasette.urls.path("/-/vision"),
        "version": __version__,
        "not_embedded": False,
        "may_infer": False,
    }


async def _context(datasette: Datasette, request: Request, search: Search, address: str) -> dict[str, Any]:
    asked, database = search.request, search.database
    frame = _frame(datasette, request, database, search.table)
    shown = search.embedded.image_column(search.column) if search.column else None
    sql = search.sql() if search.model else None
    may_sql = await permissions.may_execute_sql(datasette, request.actor, database.name)
    # The API does not pick the first of several embeddings, so its link names the ones shown here.
    named = {"model": search.model, "column": search.column} if len(search.embedded.pairs) > 1 and sql else {}
    models = list(dict.fromkeys(model for model, _ in search.embedded.pairs))
    columns = list(dict.fromkeys(column for _, column in search.embedded.pairs))
    return {
        **frame,
        "may_infer": await permissions.may(datasette, request.actor, permissions.INFER),
        "address": address,
        "asked": asked,
        "heading": heading(search),
        "cards": [_card(datasette, search, found, shown, address) for found in search.rows],
        "chips": [_chip(datasette, search, example.row, example.weight, shown) for example in asked.examples],
        "without_image": f"{address}?{asked.query_string(embedding='')}",
        "models": models if len(models) > 1 else [],
        "columns": columns if len(columns) > 1 else [],
        "model": search.model,
        "column": search.column,
        "filters": list(_filter_rows(asked.filters)),
        "other_filters": [(name, value) for name, value in asked.filters if name.startswith("_")],
        "human_filters": search.human_filters,
        "without_filters": f"{address}?{asked.query_string(filters=())}",
        "lookups": _lookups(),
        "filter_columns": [name for name in search.embedded.columns if name not in search.embedded.blob_columns],
        "sql": sql.sql if sql else "",
        "parameters": _shown_parameters(sql.parameters if sql else {}),
        "query_path": search.query_path(datasette) if sql and may_sql else None,
        "json_path": api.search_api_path(datasette, database.name, search.table)
        + "?"
        + asked.query_string(page=asked.page, **named),
        "first": asked.size * (asked.page - 1) + 1,
        "previous": f"{address}?{asked.query_string(page=asked.page - 1)}" if asked.page > 1 else None,
        "next": f"{address}?{asked.query_string(page=asked.page + 1)}" if search.has_next else None,
        "thumbnail": PAGE_THUMBNAIL_PIXELS,
    }


def heading(search: Search) -> str:
    """Describe the search in words."""
    asked = search.request
    parts = [f"“{asked.q}”"] if asked.q else []
    parts += ["your image"] if asked.embedding else []
    for example in asked.examples:
        name = search.labels.get(example.row, example.row)
        parts.append(f"{'more' if example.weight > 0 else 'less'} like {name}")
    parts += [f"not “{asked.but_not}”"] if asked.but_not else []
    text = ", ".join(parts) or f"images of {search.table}"
    text = f"Closest to {text}" if asked.q or asked.embedding else text[0].upper() + text[1:]
    return f"{text}, {search.human_filters}" if search.human_filters else text


def _card(datasette: Datasette, search: Search, found: FoundRow, shown: str | None, address: str) -> dict[str, Any]:
    database, table, asked = search.database.name, search.table, search.request
    afresh = SearchRequest(model=asked.model, column=asked.column, filters=asked.filters, size=asked.size)
    return {
        "id": found.path,
        "label": found.label,
        "similarity": found.similarity,
        # A view has no row pages.
        "row_path": None if search.embedded.is_view else f"{datasette.urls.table(database, table)}/{found.path}",
        "thumbnails": _thumbnails(datasette, search, found.path, shown),
        "like": f"{address}?{afresh.with_example(found.path, 1.0)}",
        "more": f"{address}?{asked.with_example(found.path, 1.0)}",
        "less": f"{address}?{asked.with_example(found.path, LESS)}",
        "weight": next((example.weight for example in asked.examples if example.row == found.path), 0),
    }


def _chip(datasette: Datasette, search: Search, row: str, weight: float, shown: str | None) -> dict[str, Any]:
    choices = [(f"{row}:{value:g}", words, value == weight) for value, words in LIKE_WEIGHTS]
    if not any(chosen for _, _, chosen in choices):
        choices.append((f"{row}:{weight:g}", f"{weight:g} times like", True))
    return {
        "row": row,
        "label": search.labels.get(row, row),
        "choices": choices,
        # A missing row has no image.
        "thumbnails": _thumbnails(datasette, search, row, shown) if row in search.labels else None,
        "less": weight < 0,
    }


def _thumbnails(datasette: Datasette, search: Search, row: str, shown: str | None) -> tuple[str, str] | None:
    """Addresses of a row's image, for ordinary and for high-density screens. None if there is no image to show."""
    if shown is None:
        return None
    database, table = search.database.name, search.table
    small, large = (
        image_route.image_path(datasette, database, table, shown, row, size)
        for size in (PAGE_THUMBNAIL_PIXELS, 2 * PAGE_THUMBNAIL_PIXELS)
    )
    return small, large


def _filter_rows(filters: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str, str]]:
    """(column, lookup, value) of the column filters, for the form."""
    for name, value in filters:
        if not name.startswith("_"):
            column, lookup = name.rsplit("__", 1) if "__" in name else (name, "exact")
            yield column, lookup, value


def _lookups() -> list[tuple[str, str]]:
    """(value, display) of Datasette's filters, as on its table page."""
    from datasette.filters import Filters

    return [(f"{key}__1" if no_argument else key, display) for key, display, no_argument in Filters([]).lookups()]


def _shown_parameters(parameters: dict[str, object]) -> list[tuple[str, str]]:
    return [(name, text if len(text := str(value)) <= 60 else text[:60] + "…") for name, value in parameters.items()]
