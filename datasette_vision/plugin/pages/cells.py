"""Images and embeddings in table cells."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from datasette_vision.errors import InvalidImage, InvalidVector
from datasette_vision.images.formats import MEDIA_TYPES
from datasette_vision.plugin.http.context import context_of
from datasette_vision.plugin.pages import image_route, table_facts
from datasette_vision.plugin.search import page
from datasette_vision.plugin.search.request import LikeRow, SearchRequest
from datasette_vision.tables.schema import OWN_COLUMNS, SIDE_TABLE_PREFIX, SideTable

if TYPE_CHECKING:
    from datasette.app import Datasette

# Images up to this size are embedded in the page: otherwise a hundred rows would send as many requests.
MAX_INLINE_BYTES = 8 * 1024
# So are larger ones in results of queries, which have no row to request them from. Still larger ones stay download
# links.
MAX_INLINE_BYTES_WITHOUT_ROW = 64 * 1024
SHORTEST_EMBEDDING, LONGEST_EMBEDDING = 8, 65_536  # floats
IMAGE = Markup(
    '<img src="{}" alt="{}" loading="lazy" style="display:block;max-width:128px;max-height:128px;object-fit:contain">'
)
LINK = Markup('<a href="{}">{}</a>')
NOTE = Markup('<span style="font-size:0.8em;white-space:nowrap">{}</span>')


def render(datasette: Datasette, row: Any, value: Any, column: str, table: str | None, database: str) -> Any:
    """Return HTML for an image or an embedding, or an awaitable of it. None for other values."""
    if not isinstance(value, bytes) or len(value) < 12:
        return None
    from datasette_vision.images.decode import sniff  # heavy: Pillow

    kind = sniff(value)
    if kind in MEDIA_TYPES and table is None:
        return _inline(kind, value, column) if len(value) <= MAX_INLINE_BYTES_WITHOUT_ROW else None
    if kind is not None:
        return _image(datasette, row, value, column, str(table), database, kind) if table else None
    if is_embedding(value, column):
        return _embedding(datasette, row, value, column, table, database)
    return None


def is_embedding(value: bytes, column: str) -> bool:
    """Say whether a BLOB is an embedding: float32 values, of unit length or in a column with a telling name."""
    from datasette_vision.vectors import embedding as vectors  # heavy: NumPy

    if not SHORTEST_EMBEDDING <= len(value) / 4 <= LONGEST_EMBEDDING:
        return False
    try:
        vector = vectors.from_blob(value)
    except InvalidVector:
        return False
    length = float((vector.astype("float64") ** 2).sum() ** 0.5)
    return vectors.is_unit(vector) or ("embedding" in column.lower() and 1e-3 < length < 1e6)


async def _image(
    datasette: Datasette, row: Any, value: bytes, column: str, table: str, database: str, kind: str
) -> Markup | None:
    """A thumbnail that links to the full image, its format and size, and a link to similar rows."""
    facts = await table_facts.facts(datasette, database, table)
    path = facts.row_path(row)
    if path is None:
        small = kind in MEDIA_TYPES and len(value) <= MAX_INLINE_BYTES_WITHOUT_ROW
        return _inline(kind, value, column) if small else None
    # Some decoders copy the whole file to read its header.
    large = len(value) > MAX_INLINE_BYTES_WITHOUT_ROW
    note = await context_of(datasette).render(_note, kind, value) if large else _note(kind, value)
    inline = kind in MEDIA_TYPES and len(value) <= MAX_INLINE_BYTES
    source = _data(kind, value) if inline else image_route.image_path(datasette, database, table, column, path, 192)
    full = image_route.image_path(datasette, database, table, column, path)
    html = LINK.format(full, IMAGE.format(source, f"{column}: {note}")) + NOTE.format(note)
    if column in facts.similar_columns:
        like = SearchRequest(examples=(LikeRow(path, 1.0),)).query_string()
        address = f"{page.search_page_path(datasette, database, table)}?{like}"
        html += Markup("<br>") + NOTE.format(LINK.format(address, "find similar"))
    return html


async def _embedding(
    datasette: Datasette, row: Any, value: bytes, column: str, table: str | None, database: str
) -> Markup:
    html = NOTE.format(f"{len(value) // 4:,} floats")
    names = list(row.keys()) if hasattr(row, "keys") else []
    if table and table.startswith(SIDE_TABLE_PREFIX) and column == "embedding" and set(OWN_COLUMNS) <= set(names):
        source = table[len(SIDE_TABLE_PREFIX) :]
        known_by = (await table_facts.facts(datasette, database, source)).keys
        key = SideTable(source, known_by).key_columns
        if key and set(key) <= set(names):  # it may be known by another key than addresses take
            link = LINK.format(_similar_to(datasette, row, key, source, database), "find similar")
            html += Markup("<br>") + NOTE.format(link)
    return html


def _similar_to(datasette: Datasette, row: Mapping[str, Any], key: Sequence[str], table: str, database: str) -> str:
    """Return the address of the search for rows like a row of a side table, given its key columns."""
    like = SearchRequest(
        examples=(LikeRow(table_facts.path_of([row[name] for name in key]), 1.0),),
        model=str(row["model"]),
        column=str(row["source_column"]),
    )
    return f"{page.search_page_path(datasette, database, table)}?{like.query_string()}"


def _inline(kind: str, value: bytes, column: str) -> Markup:
    note = _note(kind, value)
    return IMAGE.format(_data(kind, value), f"{column}: {note}") + NOTE.format(note)


def _data(kind: str, value: bytes) -> str:
    return f"data:{MEDIA_TYPES[kind]};base64,{base64.b64encode(value).decode()}"


def _note(kind: str, value: bytes) -> str:
    """The dimensions, format and file size of an image, in words."""
    from datasette_vision.images import decode as images  # heavy: Pillow

    try:
        facts = images.info(value)
        size = f"{facts['width']}×{facts['height']} "  # noqa: RUF001 - the sign of multiplication is meant
    except InvalidImage:
        size = "damaged "
    weight = f"{len(value) / 1000:,.1f}" if len(value) < 10_000 else f"{len(value) / 1000:,.0f}"
    return f"{size}{kind}, {weight} kB"
