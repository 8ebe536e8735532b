"""Links to the search page and the playground on Datasette's own pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from datasette_vision.plugin.pages import table_facts
from datasette_vision.plugin.search import page
from datasette_vision.plugin.search.request import LikeRow, SearchRequest
from datasette_vision.plugin.search.search import arguments_of
from datasette_vision.plugin.server import permissions
from datasette_vision.tables.schema import SIDE_TABLE_PREFIX

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

Link = dict[str, str]

SEARCH_BOX = Markup(
    '<form class="core" action="{}" method="get" role="search" aria-label="Search {} by meaning"'
    ' style="margin:0 0 1em">'
    '<label for="vision-q" style="width:auto;padding-right:0.5em">Looks like</label>'
    '<input type="search" id="vision-q" name="q" placeholder="describe it in your own words"'
    ' style="width:18em;max-width:60%">{} <input type="submit" value="Search"></form>'
)

HIDDEN_INPUT = Markup('<input type="hidden" name="{}" value="{}">')


async def menu(datasette: Datasette, actor: dict[str, Any] | None) -> list[Link]:
    """Return the menu's link to the playground, for those who may use it."""
    for action in (permissions.VIEW_INSTANCE, permissions.INFER):
        if not await permissions.may(datasette, actor, action):
            return []
    return [{"href": datasette.urls.path("/-/vision"), "label": "Vision playground"}]


async def of_table(datasette: Datasette, database: str, table: str, request: Request | None) -> list[Link]:
    """Return the entry of a table's action menu, if the table can be searched or embedded."""
    if table.startswith(SIDE_TABLE_PREFIX):
        return []
    facts = await table_facts.facts(datasette, database, table)
    address = page.search_page_path(datasette, database, table)
    filters = SearchRequest(filters=_filters(request)).query_string()
    if facts.embedded_columns:
        address += f"?{filters}" if filters else ""
        about = "Find rows by words, by an image, or by similarity to rows"
        return [{"href": address, "label": "Search by meaning", "description": about}]
    if facts.image_columns:
        about = "The images of this table are not embedded yet: see how"
        return [{"href": address, "label": "Search by meaning …", "description": about}]
    return []


async def of_row(datasette: Datasette, database: str, table: str, row: Any) -> list[Link]:
    """Return the entry of a row's action menu, if its table is embedded."""
    facts = await table_facts.facts(datasette, database, table)
    path = facts.row_path(row)
    if not facts.embedded_columns or path is None:
        return []
    like = SearchRequest(examples=(LikeRow(path, 1.0),)).query_string()
    address = f"{page.search_page_path(datasette, database, table)}?{like}"
    return [{"href": address, "label": "Find similar", "description": "Find rows with similar meaning"}]


async def search_box(datasette: Datasette, database: str, table: str, request: Request | None) -> str | None:
    """Return a search box for the top of an embedded table's page. It searches the rows shown there."""
    facts = await table_facts.facts(datasette, database, table)
    if not facts.embedded_columns:
        return None
    hidden = Markup("").join(HIDDEN_INPUT.format(name, value) for name, value in _filters(request))
    return SEARCH_BOX.format(page.search_page_path(datasette, database, table), table, hidden)


def _filters(request: Request | None) -> tuple[tuple[str, str], ...]:
    """Return the arguments of a table's page that select its rows."""
    return tuple(
        (name, value)
        for name, value in (arguments_of(request) if request else ())
        if name != "q"
        and (not name.startswith("_") or "__" in name or name.startswith(("_where", "_search", "_through")))
    )
