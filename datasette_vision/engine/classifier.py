"""An image classifier with fixed labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine.encoder import LoadSession, checked
from datasette_vision.engine.runtime import Session
from datasette_vision.models.store import InstalledModel
from datasette_vision.util.lazy import Lazy
from datasette_vision.vectors.zero_shot import sigmoid, softmax


class ImageClassifier:
    """The graph of an installed classifier, loaded on first use. Thread-safe."""

    def __init__(self, model: InstalledModel, load: LoadSession) -> None:
        manifest, image = model.manifest, model.manifest.image
        self.manifest = manifest
        self.labels = tuple(label.label for label in manifest.labels)
        self.graph: Lazy[Session] = Lazy(lambda: load(model.path(image.file), (image.input,), image.output))

    def classify_pixels(self, pixels: NDArray[np.float32]) -> NDArray[np.float64]:
        """Score preprocessed images: (n, 3, h, w) float32 -> (n, labels), probabilities.

        They sum to 1 over the labels, unless the manifest's activation is sigmoid: then each is independent.
        """
        output = self.graph.get().run({self.manifest.image.input: pixels})
        logits = checked(output, (len(pixels), len(self.labels)), self.manifest.name)
        if self.manifest.activation == "none":
            return logits.astype(np.float64)
        return sigmoid(logits) if self.manifest.activation == "sigmoid" else softmax(logits)
