"""Models ready to answer: each with its queues, made at first use and kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from datasette_vision.config.settings import Config
from datasette_vision.engine.batcher import ANSWER_TIMEOUT_S, Batcher
from datasette_vision.engine.classifier import ImageClassifier
from datasette_vision.engine.encoder import DualEncoder, LoadSession
from datasette_vision.errors import Busy, VisionError, WrongTask
from datasette_vision.models.manifest import DUAL_ENCODER
from datasette_vision.models.store import InstalledModel, ModelStore
from datasette_vision.util import memory
from datasette_vision.util.caller import current
from datasette_vision.vectors.embedding import Vector

logger = logging.getLogger(__name__)

T = TypeVar("T")
Pixels = NDArray[np.float32]
Scores = NDArray[np.float64]
# (threads, execution providers) -> a loader of graphs
MakeLoader = Callable[[int | None, Sequence[str]], LoadSession]


# Whoever comes waits for the batch in hand and is in the next. CLIP ViT-B/32 on one core: some 20 texts of 77 tokens.
BATCH_S = 0.25


@dataclass(frozen=True)
class Tower:
    """A tower of a model as bulk work sees it: `prepare` on any thread, then the queue, then `finish`.

    `prepare` takes the bytes of an image file, or of a text in UTF-8, and raises InvalidImage or InvalidText.
    """

    model: str
    dimensions: int
    prepare: Callable[[bytes], Any]
    queue: Batcher[Any, Any]
    finish: Callable[[NDArray[Any]], NDArray[Any]]


class EncoderService:
    """A dual encoder behind a queue for each tower."""

    def __init__(self, model: InstalledModel, load: LoadSession, settings: dict[str, Any]) -> None:
        self.manifest = model.manifest
        self.encoder = DualEncoder(model, load)
        self._towers = {"text": self.encoder.text_tower, "image": self.encoder.image_tower}
        name = self.manifest.name
        self.texts: Batcher[list[int], Vector] = Batcher(
            lambda batch: list(self.encoder.encode_tokens(batch)),
            name=f"{name}-text",
            batch_s=BATCH_S,
            size=self.encoder.padded_length,
            ready=self._load_text,
            **settings,
        )
        self.images: Batcher[Pixels, Vector] = Batcher(
            lambda batch: list(self.encoder.encode_pixels(np.stack(batch))),
            name=f"{name}-image",
            batch_s=BATCH_S,
            ready=self.encoder.image_tower.get,
            **settings,
        )

    def tokenise(self, text: str) -> list[int]:
        """Return what `texts` takes. The tokenizer is loaded first if need be.

        Raises DeadlineExceeded when the caller's time is up before it is; the loading goes on.
        """
        tokenizer = self.encoder.tokenizer
        return (tokenizer.get() if tokenizer.loaded else within_deadline(tokenizer.get)).encode(text)

    def to_load(self, tower: str) -> Callable[[], object] | None:
        """Return what loads the "text" or the "image" tower, None when it is in memory."""
        if tower == "image":
            return None if self.encoder.image_tower.loaded else self.encoder.image_tower.get
        there = self.encoder.text_tower.loaded and self.encoder.tokenizer.loaded
        return None if there else self._load_text

    def _load_text(self) -> None:
        self.encoder.tokenizer.get()
        self.encoder.text_tower.get()

    def loaded(self) -> list[str]:
        """Return the towers that are in memory."""
        return [name for name, tower in self._towers.items() if tower.loaded]

    def unload(self, idle_s: float) -> list[str]:
        """Drop the towers that nobody asked for in the last `idle_s` seconds, and return their names."""
        return [name for name, tower in self._towers.items() if tower.forget(idle_s)]

    def warm(self, ready: Callable[[str], None] = lambda part: None) -> None:
        """Load both towers, the text tower first: it is what most first requests ask for. `ready` is told of each."""
        self.texts(self.tokenise("warm"))
        ready("text")
        spec = self.manifest.preprocess
        self.images(np.zeros((3, spec.crop_height, spec.crop_width), dtype=np.float32))
        ready("image")

    @property
    def queues(self) -> dict[str, Batcher[Any, Any]]:
        """The queue of each tower."""
        return {"text": self.texts, "image": self.images}

    def close(self) -> None:
        self.texts.close()
        self.images.close()


class ClassifierService:
    """A fixed-label classifier behind its queue."""

    def __init__(self, model: InstalledModel, load: LoadSession, settings: dict[str, Any]) -> None:
        self.manifest = model.manifest
        self.classifier = ImageClassifier(model, load)
        self.images: Batcher[Pixels, Scores] = Batcher(
            lambda batch: list(self.classifier.classify_pixels(np.stack(batch))),
            name=f"{self.manifest.name}-image",
            batch_s=BATCH_S,
            ready=self.classifier.graph.get,
            **settings,
        )

    def to_load(self, tower: str) -> Callable[[], object] | None:
        """Return what loads the graph, None when it is in memory."""
        return None if self.classifier.graph.loaded else self.classifier.graph.get

    def loaded(self) -> list[str]:
        """Return ["image"] when the graph is in memory, else nothing."""
        return ["image"] if self.classifier.graph.loaded else []

    def unload(self, idle_s: float) -> list[str]:
        """Drop the graph if nobody asked for it in the last `idle_s` seconds, and return its name if so."""
        return ["image"] if self.classifier.graph.forget(idle_s) else []

    def warm(self, ready: Callable[[str], None] = lambda part: None) -> None:
        """Load the graph, and tell `ready` of it."""
        spec = self.manifest.preprocess
        self.images(np.zeros((3, spec.crop_height, spec.crop_width), dtype=np.float32))
        ready("image")

    @property
    def queues(self) -> dict[str, Batcher[Any, Any]]:
        """The queue of the one graph."""
        return {"image": self.images}

    def close(self) -> None:
        self.images.close()


def within_deadline(make: Callable[[], T]) -> T:
    """Return what `make()` does. A caller with a deadline stops waiting at that; `make` goes on, for others.

    Raises DeadlineExceeded, and what `make` raises.
    """
    caller = current()
    if caller.deadline is None:
        return make()
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=work, name="datasette-vision-load", daemon=True).start()
    except RuntimeError:
        raise Busy("the system has no thread left to load a model: try again in a moment") from None
    while not wait([future], caller.seconds_left(ANSWER_TIMEOUT_S)).done:
        pass
    return future.result()


Service: TypeAlias = EncoderService | ClassifierService


class Unloader:
    """Lets models leave memory when nobody has asked for them in a while, on a thread of its own."""

    def __init__(self) -> None:
        self._watched: list[tuple[Service, float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="datasette-vision-unloader", daemon=True)

    def watch(self, service: Service, unload_after: float) -> None:
        """Unload the parts of a service that are idle for so many seconds."""
        self._watched.append((service, unload_after))
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> None:
        """Unload no more."""
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
    """The models of a server by name. What a name means is fixed at its first use. Thread-safe."""

    def __init__(self, store: ModelStore, config: Config, load: MakeLoader) -> None:
        self._store = store
        self._config = config
        self._load = load
        self._lock = threading.Lock()
        self._services: dict[str, Service] = {}
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
        """Return the service of a dual encoder. Raises WrongTask when the model is something else."""
        service = self.get(name)
        if not isinstance(service, EncoderService):
            raise WrongTask(f"{name!r} is for {service.manifest.task}: it makes no embeddings")
        return service

    def loaded(self, name: str) -> list[str]:
        """Return which parts of a model are in memory, without loading any."""
        service = self._services.get(name)
        return service.loaded() if service else []

    def running(self) -> dict[str, Service]:
        """Return the services that were asked for, by the name of their model."""
        with self._lock:
            return dict(self._services)

    def describe(self, default_model: str) -> list[dict[str, object]]:
        """Describe the installed models; one that is damaged says so under "error"."""
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
        """Answer what waits, then stop."""
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
        kind = EncoderService if model.manifest.task == DUAL_ENCODER else ClassifierService
        service = kind(model, self._load(chosen.threads, chosen.providers or ()), settings)
        if chosen.unload_after is not None:
            if self._unloader is None:
                self._unloader = Unloader()
            self._unloader.watch(service, chosen.unload_after)
        return service
