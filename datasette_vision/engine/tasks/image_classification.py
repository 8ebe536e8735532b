"""Classifiers with fixed labels: an image in, a score for each label out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine.batcher import Batcher
from datasette_vision.engine.classifier import ImageClassifier
from datasette_vision.engine.encoder import LoadSession
from datasette_vision.engine.tasks.task import BATCH_S, CanonicalCheck, LabelScorer, Pixels, Scores, Task
from datasette_vision.models.store import InstalledModel
from datasette_vision.models.tasks import FORMS, IMAGE_CLASSIFICATION
from datasette_vision.util.progress import OnProgress, no_progress
from datasette_vision.vectors.zero_shot import top_k


class ClassifierService:
    """A fixed-label classifier behind its queue."""

    def __init__(self, model: InstalledModel, load: LoadSession, settings: dict[str, Any]) -> None:
        self.manifest = model.manifest
        self.classifier = ImageClassifier(model, load)
        self.images: Batcher[Pixels, Scores] = Batcher(
            lambda batch: list(self.classifier.classify_pixels(np.stack(batch))),
            name=f"{self.manifest.name}-image",
            batch_s=BATCH_S,
            load=self.classifier.graph.get,
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

    def warm(self, on_progress: OnProgress[str] = no_progress) -> None:
        """Load the graph, and call `on_progress` with its name."""
        spec = self.manifest.preprocess
        self.images(np.zeros((3, spec.crop_height, spec.crop_width), dtype=np.float32))
        on_progress("image")

    @property
    def queues(self) -> dict[str, Batcher[Any, Any]]:
        """The queue of the one graph."""
        return {"image": self.images}

    def close(self) -> None:
        self.images.close()


def _label(
    vision: LabelScorer, service: ClassifierService, output: NDArray[Any], k: int | None
) -> list[dict[str, object]]:
    return top_k(service.classifier.labels, output.astype(np.float64), k)


def _checks(model: InstalledModel, load: LoadSession, picture: Pixels, text: str) -> Iterator[CanonicalCheck]:
    classifier = ImageClassifier(model, load)
    yield CanonicalCheck(
        "scores",
        "picture",
        model.manifest.image.file,
        lambda: classifier.classify_pixels(picture[None])[0].astype(np.float32),
    )


TASK = Task(FORMS[IMAGE_CLASSIFICATION], ClassifierService, np.copy, _label, _checks)
