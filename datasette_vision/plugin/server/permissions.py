"""Who may do what. The one place that knows how Datasette 0.65 and 1.0 differ in permissions.

Two actions are the plugin's own. `vision-infer` is to have a model compute, in whatever way: over HTTP, on a page, or
by a SQL function. Whoever may see the instance may, unless the configuration says otherwise. `vision-metrics` is to
read the metrics: for root alone by default. What only describes the server is for those who may see the instance, and
what is told of a table for those who may see the table.

`allow` and `allow_metrics` in the plugin's configuration decide on both lines. On 1.0, `permissions:` blocks, the
restrictions of tokens and --default-deny hold too; on 0.65, plugins' permission_allowed() hooks, and restrictions where
a plugin puts them into an actor as 1.0 does.
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
        # What Datasette 0.65 does for execute-sql: the first that has an opinion decides, and silence allows.
        allowed = await may(datasette, actor, VIEW_INSTANCE)
    return bool(allowed)


async def ensure(datasette: Datasette, actor: Actor, action: str) -> None:
    """Raise Datasette's Forbidden unless an actor may do INFER, METRICS or VIEW_INSTANCE."""
    from datasette.utils.asgi import Forbidden

    if not await may(datasette, actor, action):
        raise Forbidden(f"Permission denied: {action}")


def is_root(datasette: Datasette, actor: Actor) -> bool:
    """Say whether an actor is root by Datasette's own rule: by the name, and on 1.0 only with --root."""
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
    """Say whether an actor may run SQL of their own on a database: whether a link to a query leads anywhere."""
    return await _may_in(datasette, actor, "execute-sql", database)


async def may_download(datasette: Datasette, actor: Actor, database: Database) -> bool:
    """Say whether an actor may fetch the file of a database, with all that is in it."""
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

    Raises NotFound and Forbidden as Datasette's table page does: in that order, so that nothing is told here that is
    not told there.
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


# What the hooks answer


def actions() -> list[Any]:
    """Describe the plugin's own actions to Datasette 1.0."""
    from datasette.permissions import Action

    return [Action(name=name, description=description) for name, description in DESCRIPTIONS.items()]


def opinion_on_action(datasette: Datasette, actor: Actor, action: str) -> bool | None:
    """Return what the configuration says about one of our actions, or None when it says nothing. For 0.65."""
    from datasette.utils import actor_matches_allow

    if action not in DESCRIPTIONS:
        return None
    allow = _configured(datasette, action)
    return None if allow is None else bool(actor_matches_allow(actor, allow))


async def rules_for_action(datasette: Datasette, actor: Actor, action: str) -> Any:
    """Return the rule that the configuration or the default makes for one of our actions, or None. For 1.0."""
    if action not in DESCRIPTIONS:
        return None
    from datasette.permissions import PermissionSQL
    from datasette.utils import actor_matches_allow

    allow = _configured(datasette, action)
    if allow is not None:
        reason = f"plugins.datasette-vision decides on {action}"
        return PermissionSQL.allow(reason) if actor_matches_allow(actor, allow) else PermissionSQL.deny(reason)
    # What a token may do is restricted for each action by itself: here it counts who it is of.
    holder = {name: value for name, value in actor.items() if name != "_r"} if actor else None
    if not await may(datasette, holder, VIEW_INSTANCE):
        # Others are denied by there being no rule, so that a `permissions:` block can allow them.
        return PermissionSQL.deny("root may not view the instance") if is_root(datasette, actor) else None
    if action == INFER and not datasette.default_deny:
        return PermissionSQL.allow(f"default allow for {INFER} to those who may view the instance")
    return None


def _configured(datasette: Datasette, action: str) -> Any:
    """Return the allow block of the plugin's configuration for one of our actions, None where there is none."""
    config = state_of(datasette).config
    return config.allow if action == INFER else config.allow_metrics
