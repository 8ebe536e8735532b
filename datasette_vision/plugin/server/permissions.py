"""Permissions, and how Datasette 0.65 and 1.0 differ in them.

The plugin has two actions. `vision-infer` is to run a model, in any way: over HTTP, on a page, or in a SQL function. By
default, everyone who may see the instance may do it. `vision-metrics` is to read the metrics, by default only for root.
Descriptions of the server are for those who may see the instance, and information about a table for those who may see
the table.

`allow` and `allow_metrics` in the plugin's configuration apply to both versions. On 1.0, `permissions:` blocks,
restricted tokens and --default-deny apply too. On 0.65, plugins' permission_allowed() hooks do, and restrictions if a
plugin puts them into an actor as 1.0 does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.plugin.server.state import state_of

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

Actor = dict[str, Any] | None

INFER = "vision-infer"
METRICS = "vision-metrics"
VIEW_INSTANCE = "view-instance"
DESCRIPTIONS = {INFER: "Embed and classify with vision models", METRICS: "Read the metrics of vision models"}


async def may(datasette: Datasette, actor: Actor, action: str) -> bool:
    """Say whether an actor (None: anonymous) may do INFER, METRICS or VIEW_INSTANCE."""
    if IS_1_0:
        return bool(await datasette.allowed(action=action, actor=actor))
    if action == VIEW_INSTANCE:
        return bool(await datasette.permission_allowed(actor, VIEW_INSTANCE, default=True))
    restrictions = (actor or {}).get("_r")
    if restrictions is not None and action not in restrictions.get("a", ()):
        return False
    allowed = await datasette.permission_allowed(actor, action, default=None)
    if allowed is None and (action == INFER or is_root(datasette, actor)):
        # As Datasette 0.65 does for execute-sql: the first opinion decides, and no opinion allows.
        allowed = await may(datasette, actor, VIEW_INSTANCE)
    return bool(allowed)


async def ensure(datasette: Datasette, actor: Actor, action: str) -> None:
    """Raise Datasette's Forbidden unless an actor may do INFER, METRICS or VIEW_INSTANCE."""
    from datasette.utils.asgi import Forbidden

    if not await may(datasette, actor, action):
        raise Forbidden(f"Permission denied: {action}")


def is_root(datasette: Datasette, actor: Actor) -> bool:
    """Say whether an actor is root by Datasette's own rule: by the id, and on 1.0 only with --root."""
    return (actor or {}).get("id") == "root" and bool(getattr(datasette, "root_enabled", True))


async def may_view_table(datasette: Datasette, actor: Actor, database: str, table: str) -> bool:
    """Say whether an actor may see a table or view, given the database's name and not its route."""
    return await _may_in(datasette, actor, "view-table", database, table)


async def ensure_view_table(datasette: Datasette, actor: Actor, database: str, table: str) -> None:
    """Raise Forbidden, with Datasette's own message, unless an actor may see a table or view."""
    from datasette.utils.asgi import Forbidden

    if not await may_view_table(datasette, actor, database, table):
        raise Forbidden("You do not have permission to view this table")


async def may_execute_sql(datasette: Datasette, actor: Actor, database: str) -> bool:
    """Say whether an actor may run their own SQL on a database, so that a link to a query works."""
    return await _may_in(datasette, actor, "execute-sql", database)


async def may_download(datasette: Datasette, actor: Actor, database: Database) -> bool:
    """Say whether an actor may download the file of a database."""
    if not datasette.setting("allow_download") or database.is_mutable or database.is_memory:
        return False
    return await _may_in(datasette, actor, "view-database-download", database.name)


async def _may_in(datasette: Datasette, actor: Actor, action: str, database: str, table: str | None = None) -> bool:
    """Say whether an actor may do something of Datasette's own with a database, or with a table of it."""
    if IS_1_0:
        from datasette.resources import DatabaseResource, TableResource

        resource = DatabaseResource(database) if table is None else TableResource(database, table)
        return bool(await datasette.allowed(action=action, resource=resource, actor=actor))
    what = database if table is None else (database, table)
    visible, _ = await datasette.check_visibility(
        actor, permissions=[(action, what), ("view-database", database), "view-instance"]
    )
    return bool(visible)


async def viewable_table(datasette: Datasette, actor: Actor, database_route: str, table: str) -> Database:
    """Return the database of a table or view that an actor may see, both named as in an address, decoded.

    Raises NotFound and Forbidden in the same order as Datasette's table page, so that nothing more is revealed here.
    """
    from datasette.utils.asgi import NotFound

    try:
        database = datasette.get_database(route=database_route)
    except KeyError:
        raise NotFound("Database not found") from None
    if not await database.table_exists(table) and await database.get_view_definition(table) is None:
        raise NotFound("Table not found")
    await ensure_view_table(datasette, actor, database.name, table)
    return database


# Results of the hooks


def actions() -> list[Any]:
    """Return the plugin's actions for Datasette 1.0."""
    from datasette.permissions import Action

    return [Action(name=name, description=description) for name, description in DESCRIPTIONS.items()]


def opinion_on_action(datasette: Datasette, actor: Actor, action: str) -> bool | None:
    """Return the configuration's decision about one of our actions, or None if it has none. For 0.65."""
    from datasette.utils import actor_matches_allow

    if action not in DESCRIPTIONS:
        return None
    allow = _configured(datasette, action)
    return None if allow is None else bool(actor_matches_allow(actor, allow))


async def rules_for_action(datasette: Datasette, actor: Actor, action: str) -> Any:
    """Return the rule from the configuration or the default for one of our actions, or None. For 1.0."""
    if action not in DESCRIPTIONS:
        return None
    from datasette.permissions import PermissionSQL
    from datasette.utils import actor_matches_allow

    allow = _configured(datasette, action)
    if allow is not None:
        reason = f"plugins.datasette-vision decides on {action}"
        return PermissionSQL.allow(reason) if actor_matches_allow(actor, allow) else PermissionSQL.deny(reason)
    # A token's restrictions apply to each action separately: here, only the actor counts.
    holder = {name: value for name, value in actor.items() if name != "_r"} if actor else None
    if not await may(datasette, holder, VIEW_INSTANCE):
        # Others are denied because there is no rule, so that a `permissions:` block can allow them.
        return PermissionSQL.deny("root may not view the instance") if is_root(datasette, actor) else None
    if action == INFER and not datasette.default_deny:
        return PermissionSQL.allow(f"default allow for {INFER} to those who may view the instance")
    return None


def _configured(datasette: Datasette, action: str) -> Any:
    """Return the allow block in the plugin's configuration for one of our actions, None if there is none."""
    config = state_of(datasette).config
    return config.allow if action == INFER else config.allow_metrics
