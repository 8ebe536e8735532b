"""Keeps embedded tables in sync while the server runs: `auto_embed` in the configuration.

One thread checks each database at intervals. Checking whether it has changed at all takes microseconds, and does not
keep the server awake. The server stays awake only while there is something to embed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datasette_vision.errors import VisionError
from datasette_vision.plugin.server.compatibility import open_reader
from datasette_vision.plugin.server.datasette_writer import DatasetteWriter
from datasette_vision.tables import side_tables
from datasette_vision.tables.rows import connected

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

    from datasette_vision.bulk.sync import SyncedColumn
    from datasette_vision.bulk.tally import Summary
    from datasette_vision.config.settings import AutoEmbed as Settings
    from datasette_vision.engine.vision import Vision
    from datasette_vision.plugin.server.activity import Activity, Application
    from datasette_vision.util.transactions import Writer

logger = logging.getLogger(__name__)

TASK_NAME = "auto_embed"
# The delay after an error doubles each time, up to this.
LONGEST_REST_S = 300.0
STOP_TIMEOUT_S = 3.0


class AutoEmbedder:
    """Keeps the tables of one Datasette in sync, from the start of its server to the end."""

    def __init__(
        self,
        datasette: Datasette,
        settings: Callable[[], Settings | None],
        activity: Activity,
        vision: Callable[[], Vision],
    ) -> None:
        """`settings` is called when the server starts: before that, the configuration has not been checked."""
        self._datasette = datasette
        self._settings = settings
        self._activity = activity
        self._vision = vision
        self._databases: dict[str, Watched] = {}
        self._left_out: dict[str, str] = {}
        self._unwritable: dict[str, bool] = {}
        self._thread: threading.Thread | None = None

    def watch(self, application: Application) -> Application:
        """Wrap an ASGI application so that the work begins when its server has started."""

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            async def sent(message: Any) -> None:
                await send(message)
                if message["type"] == "lifespan.startup.complete":
                    self.start(asyncio.get_running_loop())

            await application(scope, receive, sent if scope["type"] == "lifespan" else send)

        return watched

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread if the configuration says so. `loop` is Datasette's event loop."""
        settings = self._settings()
        if settings is not None and self._thread is None:
            self._thread = threading.Thread(
                target=self._work, args=(loop, settings), name="datasette-vision-auto-embed", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Wait for the thread, which ends with the server."""
        if self._thread is not None:
            self._activity.stopping.set()
            self._thread.join(STOP_TIMEOUT_S)

    def kept(self) -> list[tuple[str, SyncedColumn]]:
        """Return the columns that are kept in sync, with the names of their databases."""
        return [(name, kept) for name, watched in list(self._databases.items()) for kept in watched.kept()]

    def left_out(self) -> dict[str, str]:
        """Return the tables that cannot be kept in sync, as "database/table", and the databases, with the reasons."""
        return dict(self._left_out)

    # On the thread

    def _work(self, loop: asyncio.AbstractEventLoop, settings: Settings) -> None:
        stopping = self._activity.stopping
        wait_s = settings.interval
        while not stopping.wait(wait_s):
            wait_s = settings.interval
            try:
                if self._go_round(loop, settings):
                    wait_s = 0.0
            except Exception:  # nothing would restart this thread
                logger.exception("%s: internal error", TASK_NAME)
        for watched in self._databases.values():
            watched.close()

    def _go_round(self, loop: asyncio.AbstractEventLoop, settings: Settings) -> bool:
        """Visit each database, and return whether there is urgent work left."""
        databases = self._mutable()
        for name in set(self._databases) - {database.name for database in databases}:
            self._databases.pop(name).close()
        impatient = False
        for database in databases:
            watched = self._databases.get(database.name)
            if watched is None:
                writer = DatasetteWriter(database, loop)
                watched = Watched(database, writer, settings, self._activity, self._vision)
                self._databases[database.name] = watched
            impatient = watched.visit() or impatient
        self._note_left_out(settings.tables)
        return impatient

    def _mutable(self) -> list[Database]:
        """Return the databases with a writable file."""
        found = {id(database): database for database in list(self._datasette.databases.values())}.values()
        return [database for database in found if database.path and database.is_mutable]

    def _note_left_out(self, tables: tuple[str, ...] | None) -> None:
        """Record which configured tables cannot be kept in sync, and why."""
        reasons = {name: watched.error for name, watched in self._databases.items() if watched.error}
        there = {f"{database}/{kept.source.table}".lower() for database, kept in self.kept()}
        for name in self._immutable() if tables is None else tables:
            database, _, table = name.partition("/")
            if name.lower() in there or database in reasons:
                continue
            if database not in self._datasette.databases:
                reasons[name] = f"there is no database {database!r}"
            elif database not in self._databases:
                reasons[name] = f"{database} is served as immutable, or in memory, and cannot be written to"
            elif table.lower() in self._databases[database].loaded:
                reasons[name] = "its images are files: run datasette vision load again to bring it up to date"
            else:
                reasons[name] = f"it has not been embedded yet: run datasette vision embed {database}.db {table} once"
        for name, reason in reasons.items():
            if self._left_out.get(name) != reason:
                logger.warning("%s: %s is not kept in sync: %s", TASK_NAME, name, reason)
        self._left_out = reasons

    def _immutable(self) -> list[str]:
        """Return the databases that cannot be written and have embeddings."""
        for name, database in list(self._datasette.databases.items()):
            if database.path and not database.is_mutable and name not in self._unwritable:
                with contextlib.closing(open_reader(database)) as connection:
                    self._unwritable[name] = bool(side_tables.sources(connection))
        return [name for name, has_embeddings in self._unwritable.items() if has_embeddings]


class Watched:
    """One database, through a connection that notices changes by others."""

    def __init__(
        self, database: Database, writer: Writer, settings: Settings, activity: Activity, vision: Callable[[], Vision]
    ) -> None:
        self._database = database
        self._writer = writer
        self._settings = settings
        self._activity = activity
        self._vision = vision
        self._connection: Any = None
        self._version: int | None = None
        self._file: tuple[int, int] | None = None
        self._kept: dict[tuple[side_tables.EmbeddedSource, str, str], SyncedColumn] = {}
        self._errors: dict[tuple[side_tables.EmbeddedSource, str, str], int] = {}
        self.error: str | None = None
        # The tables that datasette vision load made: only load notices when a file changes.
        self.loaded: set[str] = set()

    def kept(self) -> list[SyncedColumn]:
        """Return the columns that are kept in sync."""
        return list(self._kept.values())

    def visit(self) -> bool:
        """Do the work that is due, and return whether there is urgent work left."""
        if self._activity.stopping.is_set():
            return False
        try:
            file = _identity(str(self._database.path))
            if self._connection is None:
                self._connection = connected(open_reader(self._database))
                self._file = file
            if file != self._file:
                # Datasette's connections continue to use the old file, and would write to it.
                what = "gone" if file is None else "replaced by another"
                self.error = f"{self._database.path} is {what}: restart the server"
                return False
            (version,) = self._connection.execute("pragma data_version").fetchone()
            if version != self._version:
                self._find()
                self._version = version
                for kept in self._kept.values():
                    kept.changed()
            self.error = None
        except Exception as error:  # from an SQLite module that may not be Python's own
            self.error = f"{type(error).__name__}: {error}"
            return False
        for key, kept in list(self._kept.items()):
            if self._activity.stopping.is_set():
                return False
            self._step(key, kept)
        return any(kept.impatient for kept in self._kept.values())

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _find(self) -> None:
        """Find the columns that have been embedded."""
        from datasette_vision.bulk import photos  # heavy: NumPy, Pillow
        from datasette_vision.bulk.sync import SyncedColumn, SyncResources

        sources = [each for each in side_tables.sources(self._connection) if self._is_wanted(each.table)]
        self.loaded = {each.table.lower() for each in sources if photos.base_of(self._connection, each.table)}
        found = {
            (source, column, model)
            for source in sources
            if source.table.lower() not in self.loaded
            for model, column in side_tables.pairs(self._connection, source)
        }
        resources = SyncResources(
            lambda: open_reader(self._database),
            self._writer,
            self._vision,
            lambda: self._activity.keep_awake(TASK_NAME),
            self._report,
        )
        self._kept = {key: self._kept.get(key) or SyncedColumn(*key, resources) for key in sorted(found, key=str)}

    def _is_wanted(self, table: str) -> bool:
        tables, name = self._settings.tables, f"{self._database.name}/{table}"
        return tables is None or name.lower() in map(str.lower, tables)

    def _step(self, key: tuple[side_tables.EmbeddedSource, str, str], kept: SyncedColumn) -> None:
        from datasette_vision.bulk.sync import FAILED

        try:
            kept.step(self._connection)
            self._errors.pop(key, None)
        except Exception as error:
            if self._activity.stopping.is_set():
                return
            times = self._errors[key] = self._errors.get(key, 0) + 1
            kept.changed()
            kept.rest(min(LONGEST_REST_S, self._settings.interval * 2**times))
            before, kept.report.error, kept.report.state = kept.report.error, str(error), FAILED
            if not isinstance(error, (VisionError, sqlite3.Error, self._connection.Error)):
                logger.exception("%s: %s/%s", TASK_NAME, self._database.name, kept.name)
            elif before != kept.report.error:
                logger.warning("%s: %s/%s: %s", TASK_NAME, self._database.name, kept.name, error)

    def _report(self, kept: SyncedColumn, summary: Summary) -> None:
        logger.info(
            "%s: %s/%s: %d embedded, %d removed, %d failed, in %.1f s%s",
            *(TASK_NAME, self._database.name, kept.name, summary.embedded, summary.removed, summary.failed),
            *(summary.seconds, ", stopped" if summary.stopped else ""),
        )
        for name, reason in summary.failures:
            logger.warning("%s: %s/%s: %s: %s", TASK_NAME, self._database.name, kept.name, name, reason)


def _identity(path: str) -> tuple[int, int] | None:
    """Return what distinguishes a file from another of the same name, None if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino
