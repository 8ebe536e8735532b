"""A deployment: the arguments of `datasette serve`, databases, models and memory, and the permissions of anonymous
clients.

It is examined without a server: Datasette is created as by `datasette serve`, and asked for permissions. No model is
loaded, and nothing is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datasette_vision.config.settings import Config
from datasette_vision.errors import ConfigError, VisionError
from datasette_vision.models.store import InstalledModel, ModelStore
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.plugin.server.permissions import (
    INFER,
    METRICS,
    VIEW_INSTANCE,
    may,
    may_download,
    may_execute_sql,
    may_view_table,
)
from datasette_vision.plugin.server.state import StopStart
from datasette_vision.tables.schema import LOADS, SIDE_TABLE_PREFIX
from datasette_vision.util.sql_names import quote

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

NAME = "datasette-vision"


@dataclass
class Access:
    """The permissions of a client without an actor. Tables are "database/table".

    `hidden` are the tables and views that the client may not see, `sql` the databases on which it may run SQL, and
    `downloads` those whose file it may download. Side tables are left out: they follow their sources.
    """

    instance: bool = False
    infer: bool = False
    metrics: bool = False
    visible: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    sql: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)


@dataclass
class DatabaseFile:
    """A database file: whether this user, and so Datasette, may write to it."""

    path: Path
    writable: bool
    mutable: bool


@dataclass
class Deployment:
    """What `datasette serve` would run with these arguments, on this machine.

    `serve` holds its parameters by their names in Python. `memory_bytes` is the memory that the process may use, None
    if unknown. `kill_after_s` is how long the platform waits after SIGTERM. `embedded` are the tables with embeddings,
    `originals` those made by load that keep the original files, `located` those that contain the places of photos, and
    `unreadable` are (database, reason).
    """

    serve: Mapping[str, Any]
    config: Config = field(default_factory=Config)
    config_error: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    plugins: frozenset[str] = frozenset()
    plugin_config: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    access: Access = field(default_factory=Access)
    files: list[DatabaseFile] = field(default_factory=list)
    embedded: list[str] = field(default_factory=list)
    originals: list[str] = field(default_factory=list)
    located: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    models_dir: Path | None = None
    models_dir_writable: bool = False
    weights: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int | None = None
    kill_after_s: float | None = None
    superuser: bool = False
    is_1_0: bool = IS_1_0

    @property
    def hides(self) -> bool:
        """Whether anything is hidden from anonymous clients."""
        return bool(self.access.hidden) or not self.access.instance

    def named_weights(self) -> int:
        """Return the bytes of the models that the configuration names."""
        return sum(self.weights.get(name, 0) for name in self.config.named_models())


def read_deployment(
    arguments: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    *,
    memory_bytes: int | None = None,
    kill_after_s: float | None = None,
) -> Deployment:
    """Read what `datasette serve ARGUMENTS` would run. Raises click's errors for invalid arguments."""
    from datasette.cli import serve

    given = [*arguments]
    if given[:1] == ["serve"]:
        given = given[1:]
    context = serve.make_context("serve", given)
    deployment = Deployment(
        context.params,
        environ=environ,
        memory_bytes=memory_bytes,
        kill_after_s=kill_after_s,
        superuser=hasattr(os, "geteuid") and os.geteuid() == 0,
    )
    with context:
        datasette = context.invoke(serve, **(context.params | {"return_instance": True}))
    try:
        asyncio.run(_read(deployment, datasette))
    finally:
        with contextlib.suppress(Exception):
            datasette.close() if hasattr(datasette, "close") else None
    return deployment


async def _read(deployment: Deployment, datasette: Datasette) -> None:
    deployment.settings = {name: datasette.setting(name) for name in datasette.settings_dict()}
    deployment.plugins = frozenset(plugin["name"] for plugin in datasette._plugins(all=True))
    deployment.plugin_config = {name: datasette.plugin_config(name) or {} for name in deployment.plugins}
    try:
        deployment.config = Config.from_mapping(datasette.plugin_config(NAME))
    except ConfigError as error:
        deployment.config_error = str(error)
        return
    _read_models(deployment)
    for name, database in list(datasette.databases.items()):
        try:
            await database.execute_fn(lambda connection: connection.execute("pragma schema_version").fetchall())
        except Exception as error:  # from an SQLite module that may not be Python's own
            deployment.unreadable.append((name, str(error)))
            datasette.remove_database(name)
    if IS_1_0:
        # Permissions are known only after startup, but models need not be loaded for that.
        ((datasette.config or {}).get("plugins", {}).get(NAME) or {}).pop("preload", None)
        try:
            await datasette.invoke_startup()
        except (StopStart, click.ClickException) as error:
            deployment.config_error = str(error)
            return
    access = deployment.access
    access.infer = await may(datasette, None, INFER)
    access.metrics = await may(datasette, None, METRICS)
    for database in datasette.databases.values():
        await _read_database(deployment, datasette, database)
    access.instance = await may(datasette, None, VIEW_INSTANCE)


async def _read_database(deployment: Deployment, datasette: Datasette, database: Database) -> None:
    access = deployment.access
    if database.path and not database.is_memory:
        path = Path(database.path)
        writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
        deployment.files.append(DatabaseFile(path, writable, bool(database.is_mutable)))
        if await may_download(datasette, None, database):
            access.downloads.append(database.name)
    names = [*await database.table_names(), *await database.view_names()]
    for name in names:
        seen = await may_view_table(datasette, None, database.name, name)
        if SIDE_TABLE_PREFIX + name in names:
            deployment.embedded.append(f"{database.name}/{name}")
        if not name.startswith(("_vision", "sqlite_")):
            (access.visible if seen else access.hidden).append(f"{database.name}/{name}")
    if LOADS in names:
        for table, pictures in await _rows(database, f"select name, pictures from {LOADS}"):
            deployment.originals += [f"{database.name}/{table}"] if pictures == "originals" else []
            if await _rows(database, f"select 1 from {quote(table)} where latitude is not null limit 1"):
                deployment.located.append(f"{database.name}/{table}")
    if await may_execute_sql(datasette, None, database.name):
        access.sql.append(database.name)


async def _rows(database: Database, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query, none if load did not make the table."""
    from datasette.database import QueryInterrupted
    from datasette.utils.sqlite import sqlite3

    try:
        return [tuple(row) for row in (await database.execute(sql)).rows]
    except (sqlite3.OperationalError, QueryInterrupted):
        return []


def _read_models(deployment: Deployment) -> None:
    config = deployment.config
    store = ModelStore(Path(config.models_dir).expanduser() if config.models_dir else None)
    deployment.models_dir = store.models_dir
    deployment.models_dir_writable = store.models_dir.is_dir() and os.access(store.models_dir, os.W_OK)
    weights = {}
    for name in store.names():
        with contextlib.suppress(VisionError):
            weights[name] = _weights(store.find(name))
    deployment.weights = weights
    missing = [name for name in config.named_models() if name not in weights]
    if missing:
        deployment.config_error = (
            f"no model {', '.join(missing)} is installed in {store.models_dir}; installed are: {', '.join(weights)}"
        )


def _weights(model: InstalledModel) -> int:
    return sum(file.size for file in model.manifest.files)
