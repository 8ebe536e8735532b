"""Wiring only: each hook calls the module that does the work. Nothing heavy is imported here.

Datasette imports its plugins while datasette.app is still being imported. Names from datasette.app can be used in
annotations, and imported inside functions.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from datasette import hookimpl

from datasette_vision.cli.main import vision_group
from datasette_vision.plugin.api import table
from datasette_vision.plugin.checks import command
from datasette_vision.plugin.http import concurrency, routes
from datasette_vision.plugin.http import cross_origin as crossorigin
from datasette_vision.plugin.http import slow_clients as slowclients
from datasette_vision.plugin.pages import cells, links, pages
from datasette_vision.plugin.queries import execution, sqlite_limits
from datasette_vision.plugin.queries.query_rules import rules_of
from datasette_vision.plugin.server import permissions, recovery, side_table_permissions
from datasette_vision.plugin.server.state import state_of

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request

    from datasette_vision.plugin.server.activity import Application


@hookimpl
def startup(datasette: Datasette) -> None:
    """Check the configuration, so that a mistake prevents the start, and begin to preload."""
    execution.bound_queries(rules_of)
    state_of(datasette).start()


@hookimpl(trylast=True)  # the outermost of all
def asgi_wrapper(datasette: Datasette) -> Callable[[Application], Application]:
    """Stay awake while there is work, and shut down in good order."""
    return state_of(datasette).watch


# Pluggy collects hooks by name, in alphabetical order, and calls the last first. Of those for asgi_wrapper,
# `slow_clients` is the innermost and `cross_origin` the outermost, except for asgi_wrapper() itself.
@hookimpl(specname="asgi_wrapper")
def readable_databases(datasette: Datasette) -> Callable[[Application], Application]:
    """Roll back what killed processes were writing, before a request reads it."""
    return functools.partial(recovery.recover_before_requests, datasette)


@hookimpl(specname="asgi_wrapper")
def request_of_queries(datasette: Datasette) -> Callable[[Application], Application]:
    """Tell queries which request they belong to."""
    return execution.track_requests


@hookimpl(tryfirst=True)
def actor_from_request(request: Request) -> None:
    """Name no actor, but remember the request: Datasette calls this for each request, and then sets its actor."""
    execution.note_request(request)


@hookimpl(optionalhook=True)
def shutdown(datasette: Datasette) -> None:
    """Finish waiting requests, then stop. Datasette 1.0 only: 0.65 has no such hook."""
    state_of(datasette).close()


@hookimpl
def prepare_connection(conn: sqlite3.Connection, datasette: Datasette) -> None:
    """Register the SQL functions, and limit the memory of queries."""
    execution.bound_queries(rules_of)  # connections may be made before startup
    sqlite_limits.limit(conn)
    state_of(datasette).sql.register(conn)
    recovery.before_reading(datasette)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add the commands of `datasette vision`."""
    cli.add_command(vision_group(command.check))


@hookimpl
def render_cell(datasette: Datasette, row: Any, value: Any, column: str, table: str | None, database: str) -> Any:
    """Show images as thumbnails, and describe embeddings."""
    return cells.render(datasette, row, value, column, table, database)


@hookimpl
def menu_links(datasette: Datasette, actor: dict[str, Any] | None) -> Any:
    """Add a link to the playground to the menu."""
    return functools.partial(links.menu, datasette, actor)


@hookimpl
def table_actions(datasette: Datasette, database: str, table: str, request: Any) -> Any:
    """Add a link to the search page to a table's actions."""
    return functools.partial(links.of_table, datasette, database, table, request)


@hookimpl(optionalhook=True)
def row_actions(datasette: Datasette, database: str, table: str, row: Any) -> Any:
    """Add a link to similar rows to a row's actions. Datasette 1.0 only: on 0.65 the row's image has the link."""
    return functools.partial(links.of_row, datasette, database, table, row)


@hookimpl(optionalhook=True)
def top_table(datasette: Datasette, database: str, table: str, request: Any) -> Any:
    """Show a search box above an embedded table. Datasette 1.0 only."""
    return functools.partial(links.search_box, datasette, database, table, request)


@hookimpl(optionalhook=True)
def register_actions() -> list[Any]:
    """Register the plugin's permissions. Datasette 1.0 only."""
    return permissions.actions()


@hookimpl(optionalhook=True)
def permission_resources_sql(datasette: Datasette, actor: dict[str, Any] | None, action: str) -> Any:
    """Decide the plugin's permissions. Datasette 1.0 only."""
    # Called when it is its turn: a coroutine would never be awaited when the request is cancelled before that.
    return functools.partial(permissions.rules_for_action, datasette, actor, action)


@hookimpl(optionalhook=True)
def permission_allowed(datasette: Datasette, actor: dict[str, Any] | None, action: str) -> bool | None:
    """Decide the plugin's permissions. Datasette 0.65 only."""
    return permissions.opinion_on_action(datasette, actor, action)


@hookimpl(optionalhook=True, specname="permission_resources_sql")
def side_table_rules(datasette: Datasette, actor: dict[str, Any] | None, action: str) -> Any:
    """Deny side tables to those who may not see their sources. Datasette 1.0 only."""
    return side_table_permissions.rules_for_tables(datasette, actor, action)


@hookimpl(optionalhook=True, specname="permission_allowed", trylast=True)  # the last result counts
def side_table_opinion(datasette: Datasette, actor: dict[str, Any] | None, action: str, resource: Any) -> Any:
    """Deny side tables to those who may not see their sources. Datasette 0.65 only."""
    return side_table_permissions.opinion_on_table(datasette, actor, action, resource)


@hookimpl(specname="asgi_wrapper")
def side_table_requests(datasette: Datasette) -> Any:
    """Check once per request who may see side tables."""
    return side_table_permissions.remember_denials


@hookimpl
def register_routes() -> list[tuple[str, Any]]:
    """Serve the HTTP API and the pages. The routes of the pages match everything that the API's do not."""
    return [*routes.as_datasette_routes(table.api_routes()), *pages.page_routes()]


@hookimpl(specname="asgi_wrapper")
def cross_origin(datasette: Datasette) -> Any:
    """Refuse other sites' requests with a visitor's cookies, and let other origins post to the API, with --cors."""
    return crossorigin.cross_origin_wrapper(datasette, table.api_routes())


@hookimpl(specname="asgi_wrapper")
def crowds(datasette: Datasette) -> Any:
    """Limit how many requests of one client run at a time."""
    return concurrency.concurrency_wrapper(datasette)


@hookimpl(specname="asgi_wrapper")
def slow_clients(datasette: Datasette) -> Any:
    """Do not hold responses in memory for clients that do not read them."""
    return slowclients.slow_clients_wrapper(datasette)


@hookimpl(optionalhook=True)
def skip_csrf(datasette: Datasette, scope: Any) -> bool:
    """Skip CSRF tokens for our routes, which cross_origin() protects. Datasette 0.65 only."""
    return crossorigin.is_ours(datasette, scope)


@hookimpl(optionalhook=True)
def register_enrichments(datasette: Datasette) -> list[Any]:
    """Register enrichments with datasette-enrichments, if it is installed. Datasette 1.0 only."""
    from datasette_vision.plugin.enrichments.enrichments import enrichments

    return enrichments()
