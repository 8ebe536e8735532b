"""Who may see the plugin's own tables: a side table is visible to those who may see its source, records only to root.

An embedding reveals much about its content, and the errors and keys beside it the rest. So nobody sees a side table
without permission to see its table or view, whatever the configuration says about the side table itself. These rules
only deny: what Datasette or another plugin denies stays denied.

On 0.65 a check is for one table. On 1.0 it is not: the tables that an actor may not see are listed, for all databases
at once. Both are computed for each request, because any process may add a table at any time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasette_vision.plugin.server.compatibility import fresh_permission_checks
from datasette_vision.plugin.server.permissions import Actor, is_root, may_view_table
from datasette_vision.tables import side_tables
from datasette_vision.tables.side_tables import OWN_PREFIX, OwnTable

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

Application = Callable[[Any, Any, Any], Awaitable[None]]

VIEW_TABLE = "view-table"
PARAMETER = "datasette_vision_denied"
DENY = (
    "select json_extract(value, '$[0]') as parent, json_extract(value, '$[1]') as child, 0 as allow,"
    f" 'embeddings are visible to those who may see their source' as reason from json_each(:{PARAMETER})"
)


@dataclass
class Denials:
    """The findings of one request: our tables by database, and for each actor (as JSON) the tables to deny, as JSON."""

    tables: dict[str, list[OwnTable]] = field(default_factory=dict)
    denied: dict[str, str] = field(default_factory=dict)
    over: bool = False


_found: ContextVar[Denials | None] = ContextVar("datasette_vision_found", default=None)
# Set while we ask Datasette itself who may see the sources.
_asking: ContextVar[bool] = ContextVar("datasette_vision_asking", default=False)


def remember_denials(application: Application) -> Application:
    """Wrap an ASGI application so that a request computes only once who may see our tables."""

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        found = Denials()
        token = _found.set(found)
        try:
            await application(scope, receive, send)
        finally:
            found.over = True  # tasks that outlive the request compute it for themselves
            _found.reset(token)

    return watched


# Datasette 0.65


def opinion_on_table(datasette: Datasette, actor: Actor, action: str, resource: Any) -> Awaitable[bool | None] | None:
    """Return False for one of our tables that an actor may not see, otherwise None."""
    if action != VIEW_TABLE or not resource:
        return None
    database, table = resource
    if not table.lower().startswith(OWN_PREFIX) or database not in datasette.databases:
        return None
    return _opinion(datasette, actor, database, table)


async def _opinion(datasette: Datasette, actor: Actor, database: str, table: str) -> bool | None:
    own = await datasette.get_database(database).execute_fn(lambda connection: side_tables.own_table(connection, table))
    if own is None:
        return None
    if own.source is None:
        allowed = is_root(datasette, actor)
    else:
        allowed = await may_view_table(datasette, actor, database, own.source)
    return None if allowed else False


# Datasette 1.0


async def rules_for_tables(datasette: Datasette, actor: Actor, action: str) -> Any:
    """Return the rule that denies those of our tables that an actor may not see, or None."""
    if action != VIEW_TABLE or _asking.get():
        return None
    from datasette.permissions import PermissionSQL

    denied = await _denied(datasette, actor)
    return PermissionSQL(sql=DENY, params={PARAMETER: denied}) if denied != "[]" else None


async def _denied(datasette: Datasette, actor: Actor) -> str:
    """Return [database, table] of each of our tables that an actor may not see, as JSON."""
    found = _found.get()
    if found is None or found.over:
        found = Denials()
    key = json.dumps(actor, sort_keys=True, default=repr)
    if key not in found.denied:
        if not found.tables:
            found.tables = await _tables(datasette)
        found.denied[key] = json.dumps(await _pairs_denied(datasette, actor, found.tables))
    return found.denied[key]


async def _tables(datasette: Datasette) -> dict[str, list[OwnTable]]:
    async def of(database: Database) -> list[OwnTable]:
        return await database.execute_fn(side_tables.own_tables)

    databases = dict(datasette.databases)
    return dict(zip(databases, await asyncio.gather(*map(of, databases.values())), strict=True))


async def _pairs_denied(
    datasette: Datasette, actor: Actor, tables: dict[str, list[OwnTable]]
) -> list[tuple[str, str | None]]:
    """Return (database, table) of each of these tables that an actor may not see."""
    with_tables = [database for database, own in tables.items() if own]
    if not with_tables:
        return []
    visible = await _visible(datasette, actor, with_tables[0] if len(with_tables) == 1 else None)
    sources: dict[tuple[str, str | None], str | None] = {
        (database, table.name): table.source for database in with_tables for table in tables[database]
    }

    def allowed(database: str, source: str | None) -> bool:
        if source is None:
            return is_root(datasette, actor)
        while (database, source) in visible and (database, source) in sources:
            source = sources[database, source]  # side tables can have side tables
        return (database, source) in visible

    return [(database, name) for (database, name), source in sources.items() if not allowed(database, source)]


async def _visible(datasette: Datasette, actor: Actor, database: str | None) -> set[tuple[str, str | None]]:
    """Return (database, table or view) that an actor may see without these rules, in one database or all."""
    token = _asking.set(True)
    try:
        with fresh_permission_checks():
            sql, parameters = await datasette.allowed_resources_sql(action=VIEW_TABLE, actor=actor, parent=database)
            rows = await datasette.get_internal_database().execute(sql, parameters)
    finally:
        _asking.reset(token)
    return {(row[0], row[1]) for row in rows}
