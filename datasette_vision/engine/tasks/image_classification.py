"""Classifiers with fixed labels: from an image to a score for each label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine.batcher import Batcher
from datasette_vision.engine.classifier import ImageClassifier
from datasette_vision.engine.encoder import LoadSession
from datasette_vision.engine.tasks.task import CanonicalCheck, LabelScorer, Pixels, Scores, Service, Task
from datasette_vision.models.store import InstalledModel
from datasette_vision.models.tasks import FORMS, IMAGE_CLASSIFICATION
from datasette_vision.vectors.zero_shot import top_k


class ClassifierService(Service):
    """A fixed-label classifier with its queue."""

    def __init__(self, model: InstalledModel, load: LoadSession, settings: dict[str, Any]) -> None:
        classifier = self.classifier = ImageClassifier(model, load)
        super().__init__(model, {"image": classifier.graph}, settings)
        self.images: Batcher[Pixels, Scores] = self.queue(
            "image", lambda batch: list(classifier.classify_pixels(np.stack(batch)))
        )


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
