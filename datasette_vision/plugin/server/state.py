"""The plugin's state for each Datasette: its checked configuration and its Vision."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from datasette.utils import StartupError

from datasette_vision.config.settings import Config
from datasette_vision.errors import ConfigError, VisionError
from datasette_vision.plugin.queries import execution, sql_errors
from datasette_vision.plugin.server import activity
from datasette_vision.plugin.server.auto_embed import AutoEmbedder
from datasette_vision.plugin.server.shutdown import Shutdown
from datasette_vision.plugin.server.startup_timeline import Timeline
from datasette_vision.sql import registration as sql
from datasette_vision.util.lazy import Lazy

if TYPE_CHECKING:
    from datasette.app import Datasette

    from datasette_vision.engine.vision import Vision

logger = logging.getLogger(__name__)

STATE_ATTRIBUTE = "_datasette_vision"

# pysqlite3 releases the functions of a closed connection without holding the GIL, together with the last of its
# statements. If that were the last reference, the process would abort: so this one always exists. A process has one
# Datasette.
_kept: list[sql.Registration] = []


class StopStart(StartupError, click.ClickException):
    """Stops the start with one line. Datasette 1.0 catches the first base, click the second."""


class PluginState:
    """The plugin's state for one Datasette. Vision, and NumPy with it, are loaded on first use."""

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette
        self.timeline = Timeline("models", "server")
        self.timeline.mark("Datasette imported")
        self._config: Lazy[Config] = Lazy(self._read_config)
        self._foreign: Lazy[Any] = Lazy(self._make_foreign)
        # (database, table) -> (until when, facts): see table_facts.py
        self.table_facts: dict[tuple[str, str], tuple[float, Any]] = {}
        self.vision: Lazy[Vision] = Lazy(self._make_vision)
        # Called at shutdown, before the models are closed.
        self.before_close: list[Callable[[], None]] = []
        self.activity = activity.Activity(lambda: activity.silence_begins(datasette))
        self.auto_embed = AutoEmbedder(datasette, lambda: self.config.auto_embed, self.activity, self.vision.get)
        self._ending = Shutdown(
            datasette, self.activity, self.close, lambda: self.config.shutdown_seconds, self._started
        )
        self.sql = sql.Registration(
            self.vision.get,
            drop_in=not self.has_llm_embed_plugin,
            foreign_embed=self.foreign_embed,
            on_error=sql_errors.remember,
            stop=execution.stop,
            # Part of a query's time is needed for the search itself.
            search_wait_s=0.6 * datasette.setting("sql_time_limit_ms") / 1000,
            keep_awake=self.activity.keep_awake,
        )
        _kept.append(self.sql)

    @property
    def config(self) -> Config:
        """The checked configuration. Raises ConfigError."""
        return self._config.get()

    @property
    def has_llm_embed_plugin(self) -> bool:
        """Whether datasette-llm-embed is installed and serves llm_embed() itself."""
        from datasette.plugins import pm

        return any(distribution.project_name == "datasette-llm-embed" for _, distribution in pm.list_plugin_distinfo())

    def start(self) -> None:
        """Check the configuration and begin to preload. Raises StopStart."""
        try:
            config = self.config
            if config.named_models() != Config().named_models():
                self.vision.get().check_models()
        except ConfigError as error:
            raise StopStart(str(error)) from None
        except VisionError as error:
            raise StopStart(f"plugins.datasette-vision: {error}") from None
        activity.guard_exit(lambda datasette: state_of(datasette).activity)
        if config.preload:
            threading.Thread(target=self._preload, name="datasette-vision-preload", daemon=True).start()
        else:
            self.timeline.over("models")

    def watch(self, application: activity.Application) -> activity.Application:
        """Wrap Datasette's ASGI application: stay awake while there is work, keep tables in sync, shut down in good
        order.
        """
        return self._ending.watch(self.auto_embed.watch(self.activity.watch(application)))

    def close(self) -> None:
        """Finish waiting work, then stop."""
        for first in self.before_close:
            first()
        self.auto_embed.close()
        if self.vision.loaded:
            self.vision.get().close()

    def foreign_embed(self, model: str, value: str | bytes) -> Any:
        """Embed with a model of the llm tool: llm_embed() for names that are not ours."""
        return self._foreign.get().embed(model, value)

    def _read_config(self) -> Config:
        return Config.from_mapping(self._datasette.plugin_config("datasette-vision"))

    def _make_vision(self) -> Vision:
        from datasette_vision.engine.vision import Vision  # heavy: NumPy, Pillow

        return Vision(self.config)

    def _make_foreign(self) -> Any:
        from datasette_vision.llm.models import LlmModels

        settings = self._datasette.plugin_config("datasette-llm-embed") or {}
        return LlmModels(self.vision.get().store.names, settings.get("keys") or {})

    def _preload(self) -> None:
        try:
            self.vision.get().preload(self.timeline.mark)
        except VisionError as error:
            logger.error("preload: %s", error)
        self.timeline.over("models")

    def _started(self) -> None:
        self.timeline.mark("server started")
        self.timeline.over("server")


def state_of(datasette: Datasette) -> PluginState:
    """Return the plugin's state for this Datasette, made on the first call."""
    state = getattr(datasette, STATE_ATTRIBUTE, None)
    if state is None:
        # setdefault on the instance dictionary is atomic: connections are prepared on several threads.
        state = vars(datasette).setdefault(STATE_ATTRIBUTE, PluginState(datasette))
    return state
