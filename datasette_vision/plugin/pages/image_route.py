"""Serves the image of a row: in full, or as a small WebP for a grid."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from datasette_vision.errors import Busy, InvalidArgument, VisionError
from datasette_vision.images.formats import MEDIA_TYPES
from datasette_vision.plugin.http.context import RequestContext, context_of
from datasette_vision.plugin.http.responses import status_of
from datasette_vision.plugin.search.search import table_of
from datasette_vision.plugin.server.permissions import may_view_table
from datasette_vision.tables import keys
from datasette_vision.util.excerpt import excerpt
from datasette_vision.util.sql_names import quote

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request, Response

IMAGE_SIZES = (96, 192, 288, 384, 576)
FULL_PIXELS = 2048
# A smaller file is served as it is.
SMALL_IMAGE_BYTES = 8 * 1024
MAX_AGE_S = 300
HEADERS = {
    # Browsers must treat it as an image only, whatever its bytes are.
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "content-disposition": "inline",
}


def image_path(datasette: Datasette, database: str, table: str, column: str, row: str, size: int | None = None) -> str:
    """Return the address of a row's image: in full, or to fit a square of `size` pixels (one of IMAGE_SIZES)."""
    from datasette.utils import tilde_encode

    route = datasette.get_database(database).route
    parts = "/".join(tilde_encode(part) for part in (route, table, column))
    return str(datasette.urls.path(f"/-/vision/picture/{parts}/{row}")) + (f"?_size={size}" if size else "")


async def serve_image(datasette: Datasette, request: Request) -> Response:
    """Serve /-/vision/picture/<database>/<table>/<column>/<row>, with ?_size= for a small version."""
    from datasette.utils.asgi import NotFound, Response

    database, table = await table_of(datasette, request)
    size = _size(request.args.get("_size"))
    public = await may_view_table(datasette, None, database.name, table)
    context = context_of(datasette)
    async with context.image_slots:
        await context.ready()
        most = context.vision.limits.max_bytes
        value = await _read(database, table, request.url_vars["column"], request.url_vars["row"], most)
        if isinstance(value, int):
            size_of = f"it has {value / 1e6:.1f} MB, more than the {most / 1e6:g} MB allowed (max_image_mb)"
            raise NotFound(f"This image cannot be shown: {size_of}")
        if not isinstance(value, bytes):
            raise NotFound("There is no image in this row")
        headers = {
            **HEADERS,
            "etag": await context.render(_etag, value, size),
            "cache-control": f"{'public' if public else 'private'}, max-age={MAX_AGE_S}",
        }
        if headers["etag"] in request.headers.get("if-none-match", ""):
            return Response("", status=304, headers=headers)
        try:
            body, media_type = await context.render(_render, value, size, context)
        except Busy as error:
            status, retry = status_of(error)
            return Response.text(str(error), status=status, headers=retry)
        except VisionError as error:
            raise NotFound(f"This image cannot be shown: {error}") from None
    return Response(body, headers=headers, content_type=media_type)


def _size(text: str | None) -> int | None:
    """Read ?_size=: only some sizes are allowed, so that nobody fills caches with others."""
    if text is None:
        return None
    if text not in map(str, IMAGE_SIZES):
        from datasette.utils.asgi import BadRequest

        raise BadRequest(f"_size: expected one of {', '.join(map(str, IMAGE_SIZES))}, found {excerpt(text)}")
    return int(text)


async def _read(database: Any, table: str, column: str, row: str, most: int) -> object:
    """Return the value of a column in a row, both named as in an address. None if there is none.

    For a BLOB of more than `most` bytes, return its size instead.
    """
    from datasette.utils import tilde_decode, urlsafe_components

    column, values = tilde_decode(column), urlsafe_components(row)
    known = await database.execute_fn(lambda connection: keys.describe(connection, table))
    if known is None or column not in known.columns or not len(values) == len(known.own_key) > 0:
        return None
    conditions = " and ".join(f"{quote(key)} = :p{place}" for place, key in enumerate(known.own_key))
    name = quote(column)
    content = f"case when typeof({name}) = 'blob' then iif(length({name}) > :most, length({name}), {name}) end"
    parameters = {**{f"p{place}": value for place, value in enumerate(values)}, "most": most}
    found = (await database.execute(f"select {content} from {quote(table)} where {conditions}", parameters)).first()
    return found[0] if found else None


def _etag(value: bytes, size: int | None) -> str:
    return f'"{hashlib.sha256(value).hexdigest()[:32]}-{size or "full"}"'


def _render(value: bytes, size: int | None, context: RequestContext) -> tuple[bytes, str]:
    """Return (bytes, media type) of an image in the requested size. Raises InvalidImage or Busy."""
    from datasette_vision.images import decode as images  # heavy: Pillow

    kind = images.sniff(value)
    if kind is None:
        raise InvalidArgument("this is not an image of a known format")
    # Formats that browsers do not show are sent as WebP.
    if kind in MEDIA_TYPES and (size is None or len(value) <= SMALL_IMAGE_BYTES):
        return value, MEDIA_TYPES[kind]
    return context.vision.decoder.thumbnail(value, size or FULL_PIXELS), "image/webp"
