"""Loaded models: each with its queues, made on first use and kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from numpy.typing import NDArray

from datasette_vision.config.settings import Config
from datasette_vision.engine.batcher import Batcher
from datasette_vision.engine.encoder import LoadSession
from datasette_vision.engine.tasks.dual_encoder import EncoderService
from datasette_vision.engine.tasks.registry import task_of
from datasette_vision.engine.tasks.task import Service
from datasette_vision.errors import InvalidArgument, UnknownModel, VisionError, WrongTask
from datasette_vision.images.preprocess import Preprocess
from datasette_vision.models.store import ModelStore
from datasette_vision.models.tasks import operations
from datasette_vision.util import memory

logger = logging.getLogger(__name__)

# (threads, execution providers) -> a loader of graphs
MakeLoader = Callable[[int | None, Sequence[str]], LoadSession]


@dataclass(frozen=True)
class BulkTower:
    """A tower of a model for bulk work: call `prepare` on any thread, then the queue, then `finish`.

    `prepare` takes the bytes of an image file, or of a text in UTF-8, and raises InvalidImage or InvalidText.
    """

    model: str
    dimensions: int
    prepare: Callable[[bytes], Any]
    queue: Batcher[Any, Any]
    finish: Callable[[NDArray[Any]], NDArray[Any]]
    # The preprocessing of decoded images; None for a text tower.
    preprocess: Preprocess | None = None


class Unloader:
    """Unloads models that have not been used for a while, on a separate thread."""

    def __init__(self) -> None:
        self._watched: list[tuple[Service, float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="datasette-vision-unloader", daemon=True)

    def watch(self, service: Service, unload_after: float) -> None:
        """Unload the parts of a service that are idle for this many seconds."""
        self._watched.append((service, unload_after))
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Stop unloading."""
        self._stopped.set()

    def _work(self) -> None:
        while not self._stopped.wait(min(30.0, min(seconds for _, seconds in self._watched) / 4)):
            for service, seconds in list(self._watched):
                before = memory.resident_mib()
                if names := service.unload(seconds):
                    memory.give_back()
                    after = memory.resident_mib()
                    logger.info(
                        "%s: %s tower unloaded after %g idle seconds; resident MiB: %s, before: %s",
                        *(service.manifest.name, " and ".join(names), seconds),
                        *("unknown" if mib is None else round(mib) for mib in (after, before)),
                    )


class Services:
    """The models of a server by name. What a name means is fixed on first use. Thread-safe."""

    def __init__(self, store: ModelStore, config: Config, load: MakeLoader) -> None:
        self._store = store
        self._config = config
        self._load = load
        self._lock = threading.Lock()
        self._services: dict[str, Service] = {}
        # The only model of a task, by task.
        self._only: dict[str, str] = {}
        self._unloader: Unloader | None = None

    def get(self, name: str) -> Service:
        """Return the service of a model. Raises UnknownModel or ModelCorrupt."""
        service = self._services.get(name)
        if service is None:
            with self._lock:
                service = self._services.get(name)
                if service is None:
                    service = self._services[name] = self._make(name)
        return service

    def dual_encoder(self, name: str) -> EncoderService:
        """Return the service of a dual encoder. Raises WrongTask if the model is something else."""
        service = self.get(name)
        if not service.manifest.form.embeds:
            raise WrongTask(f"{name!r} is for {service.manifest.task}: it makes no embeddings")
        return cast(EncoderService, service)

    def for_operation(self, operation: str, name: str | None) -> Service:
        """Return the service of the model for an operation: the named one, or the only one that is installed.

        Raises UnknownModel if there is none, InvalidArgument if there are several to choose from, and WrongTask.
        """
        [form] = [form for form, each in operations() if each.name == operation]
        if name is None:
            name = self._only.get(form.task)
        if name is None:  # found once: it requires reading every manifest, and SQL calls this for each row
            names = [entry["name"] for entry in self.describe("") if entry.get("task") == form.task]
            if not names:
                raise UnknownModel(f"vision_{operation}() needs a model for {form.task}, and none is installed")
            if len(names) > 1:
                raise InvalidArgument(f"which model? {', '.join(map(str, names))} are for {form.task}")
            name = self._only[form.task] = str(names[0])
        service = self.get(name)
        if service.manifest.task != form.task:
            raise WrongTask(f"{name!r} is for {service.manifest.task}, and {operation} for {form.task}")
        return service

    def loaded(self, name: str) -> list[str]:
        """Return which parts of a model are in memory, without loading any."""
        service = self._services.get(name)
        return service.loaded() if service else []

    def running(self) -> dict[str, Service]:
        """Return the services in use, by model name."""
        with self._lock:
            return dict(self._services)

    def describe(self, default_model: str) -> list[dict[str, object]]:
        """Describe the installed models. A damaged one has an "error"."""
        result: list[dict[str, object]] = []
        for name in self._store.names():
            try:
                manifest = self._store.find(name).manifest
            except VisionError as error:
                result.append({"name": name, "error": str(error)})
                continue
            result.append(
                {
                    "name": name,
                    "task": manifest.task,
                    "dimensions": manifest.dimensions,
                    "precision": manifest.precision,
                    "labels": len(manifest.labels),
                    "default": name == default_model,
                    "loaded": self.loaded(name),
                    "description": manifest.description,
                }
            )
        return result

    def close(self) -> None:
        """Finish waiting work, then stop."""
        with self._lock:
            services = list(self._services.values())
        if self._unloader is not None:
            self._unloader.stop()
        for service in services:
            service.close()

    def _make(self, name: str) -> Service:
        model = self._store.find(name)
        chosen = self._config.for_model(name)
        settings = {
            "max_batch_size": chosen.max_batch_size,
            "max_queue": chosen.max_queue,
            "workers": chosen.replicas,
        }
        make = task_of(model.manifest.task).make
        service = make(model, self._load(chosen.threads, chosen.providers or ()), settings)
        if chosen.unload_after is not None:
            if self._unloader is None:
                self._unloader = Unloader()
            self._unloader.watch(service, chosen.unload_after)
        return service
