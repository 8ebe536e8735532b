"""The search page's search as JSON: /-/vision/search/<database>/<table>, with the same arguments."""

from __future__ import annotations

import dataclasses
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from datasette_vision.errors import InvalidArgument, NotEmbedded, VisionError
from datasette_vision.plugin.api.examples import RequestExample
from datasette_vision.plugin.http import schemas
from datasette_vision.plugin.http.computing import embed_inputs, take
from datasette_vision.plugin.http.context import Call
from datasette_vision.plugin.http.inputs import EMBEDDING, IMAGE, read_inputs
from datasette_vision.plugin.http.parameters import Parameter, text
from datasette_vision.plugin.http.responses import answer
from datasette_vision.plugin.http.routes import GET, POST, Route
from datasette_vision.plugin.pages import image_route
from datasette_vision.plugin.search.request import SearchRequest, encode_embedding
from datasette_vision.plugin.search.search import Search, arguments_of, read_embedded, resolve_search, run, table_of
from datasette_vision.plugin.server import permissions

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Response

API_THUMBNAIL_PIXELS = 384


async def handle_search(call: Call) -> Response:
    """Return the rows of a table that are closest to the search. Everyone who may see the table may search it."""
    datasette, request = call.datasette, call.request
    database, table = await table_of(datasette, request)
    embedded = await read_embedded(database, table)
    if embedded is None:
        file = PurePath(database.path).name if database.path else "DATABASE"
        raise NotEmbedded(f"{table} has no embeddings yet: make them with `datasette vision embed {file} {table}`")
    asked = SearchRequest.read(arguments_of(request), datasette.setting("max_returned_rows"))
    found = Search(database, table, embedded, asked)
    await resolve_search(datasette, request, found)
    if request.method == POST:
        found.request = dataclasses.replace(asked, embedding=await _image(call, found.model))
    await run(datasette, request, found)
    rows = [_row(call, found, place) for place in range(len(found.rows))]
    if request.args.get("_shape") == "array":
        return answer(datasette, rows)
    sql = found.sql()
    following = None
    if found.has_next:
        address = (
            f"{search_api_path(datasette, database.name, table)}?{found.request.query_string(page=asked.page + 1)}"
        )
        following = datasette.absolute_url(request, address)
    body = {
        "ok": True,
        "database": database.name,
        "table": table,
        "column": found.column,
        "model": found.model,
        "rows": rows,
        "next": asked.page + 1 if following else None,
        "next_url": following,
        "sql": sql.sql,
        "parameters": sql.parameters,
    }
    return answer(datasette, body)


def search_api_path(datasette: Datasette, database: str, table: str) -> str:
    """Return the address of the search of a table as JSON."""
    from datasette.utils import tilde_encode

    route = tilde_encode(datasette.get_database(database).route)
    return str(datasette.urls.path(f"/-/vision/search/{route}/{tilde_encode(table)}"))


async def _image(call: Call, model: str) -> str:
    """Return the embedding of the posted input, as written in addresses. Computing one requires `vision-infer`."""
    from datasette_vision.vectors import embedding as vectors  # heavy: NumPy

    inputs = read_inputs(call.fields, SEARCH_ROUTE.kinds)
    if len(inputs) != 1:
        raise InvalidArgument(f"expected one image or embedding, found {len(inputs)}")
    if inputs[0].kind != EMBEDDING:
        await permissions.ensure(call.datasette, call.request.actor, permissions.INFER)
    take(call, inputs)
    (found,) = await embed_inputs(call, inputs, model)
    if isinstance(found, VisionError):
        raise found
    return encode_embedding(vectors.to_blob(found))


def _row(call: Call, search: Search, place: int) -> dict[str, Any]:
    """The JSON of a row: its similarity, the addresses of the row and its image, and the columns that JSON can hold."""
    datasette, request, row = call.datasette, call.request, search.rows[place]
    database, table = search.database.name, search.table
    column = search.embedded.image_column(search.column)
    addresses: dict[str, str | None] = {"url": None, "picture": None, "thumbnail": None}
    if not search.embedded.is_view:
        addresses["url"] = f"{datasette.urls.table(database, table)}/{row.path}"
    if column is not None:
        addresses["picture"] = image_route.image_path(datasette, database, table, column, row.path)
        addresses["thumbnail"] = image_route.image_path(
            datasette, database, table, column, row.path, API_THUMBNAIL_PIXELS
        )
    return {
        "path": row.path,
        "label": row.label,
        "similarity": row.similarity,
        **{name: path and datasette.absolute_url(request, path) for name, path in addresses.items()},
        "row": {name: value for name, value in row.values.items() if not isinstance(value, bytes)},
    }


def _argument(name: str, meaning: str, expected: str, many: bool = False) -> Parameter:
    """Describe an argument of the address for the documentation. request.py reads it."""
    return Parameter(name, meaning, {"type": "string"}, expected, text, read_many=list if many else None)


FOUND_SCHEMA: schemas.Schema = schemas.closed(
    {
        "path": {"type": "string", "description": "The row's path in Datasette's addresses."},
        "label": {"type": "string"},
        "similarity": {"type": ["number", "null"], "minimum": -1, "maximum": 1},
        "url": {"type": ["string", "null"]},
        "picture": {"type": ["string", "null"]},
        "thumbnail": {"type": ["string", "null"]},
        "row": {"type": "object", "description": "Its columns, except BLOBs."},
    }
)
SEARCH_ROUTE = Route(
    "search",
    "/search/{database}/{table}",
    "Search a table",
    "The rows of an embedded table that are closest to the search, best first. The arguments are those of the"
    " search page, in the query string. Datasette's column filters (`name__contains=cat`), `_where` and"
    " `_search` work too."
    " Post an image or an embedding to search for it.",
    handle_search,
    methods=(GET, POST),
    action=None,
    kinds=(IMAGE, EMBEDDING),
    strict=False,
    parameters=(
        _argument("q", "What to look for, in words.", "a text"),
        _argument("_not", "What to avoid, in words.", "a text"),
        _argument(
            "_like",
            "A row to be more like, by its path in Datasette's addresses, with a weight after a colon if it is not 1.",
            "the path of a row",
            many=True,
        ),
        _argument("_unlike", "A row to be less like, with a weight if it is not 0.5.", "the path of a row", many=True),
        _argument("_embedding", "An embedding as base64 of float32 values.", "base64"),
        _argument("_model", "The model whose embeddings to search, if there are several.", "a name"),
        _argument("_column", "The column whose embeddings to search, if there are several.", "a name"),
        _argument("_threshold", "The lowest similarity.", "a number"),
        _argument("_size", "Rows per page: 24 by default, or `max`.", "a whole number"),
        _argument("_page", "The page, from 1.", "a whole number"),
        _argument("_shape", "`array` for the rows alone.", "array"),
    ),
    answer={
        "anyOf": [
            schemas.closed(
                {
                    "ok": {"const": True},
                    "database": {"type": "string"},
                    "table": {"type": "string"},
                    "column": {"type": "string"},
                    "model": schemas.ANSWERING_MODEL,
                    "rows": {"type": "array", "items": FOUND_SCHEMA},
                    "next": {"type": ["integer", "null"]},
                    "next_url": {"type": ["string", "null"]},
                    "sql": {"type": "string"},
                    "parameters": {"type": "object"},
                }
            ),
            {"type": "array", "items": FOUND_SCHEMA},
        ]
    },
    path_parameters=(("database", "A database."), ("table", "An embedded table or view.")),
    in_address=True,
    example=RequestExample("/-/vision/search/demo/emoji", query=[("q", "happy cat"), ("_size", "3")]),
)
ROUTES = (SEARCH_ROUTE,)
