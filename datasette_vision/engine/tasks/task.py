"""The descriptions of tasks, and the interface of loaded models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine.batcher import Batcher
from datasette_vision.engine.encoder import LoadSession
from datasette_vision.engine.runtime import Session
from datasette_vision.models.store import InstalledModel
from datasette_vision.models.tasks import Form
from datasette_vision.util.lazy import Lazy
from datasette_vision.util.progress import OnProgress, no_progress
from datasette_vision.vectors.embedding import Matrix, Vector
from datasette_vision.vectors.zero_shot import LabelSet

Pixels = NDArray[np.float32]
Scores = NDArray[np.float64]

# New inputs wait for the running batch and join the next. This is about 20 texts of 77 tokens, with CLIP ViT-B/32 on
# one core.
BATCH_S = 0.25


class Service:
    """A model with its queues. Each graph is a tower: "image", and "text" if the task has one."""

    images: Batcher[Pixels, Any]

    def __init__(self, model: InstalledModel, towers: dict[str, Lazy[Session]], settings: dict[str, Any]) -> None:
        """`settings` are those of Batcher."""
        self.manifest = model.manifest
        self.queues: dict[str, Batcher[Any, Any]] = {}
        self._towers = towers
        self._settings = settings

    def queue(self, tower: str, run: Callable[[list[Any]], Sequence[Any]], **settings: Any) -> Batcher[Any, Any]:
        """Make the queue of a tower. `run` computes its batches."""
        settings = {"batch_s": BATCH_S, "load": self._towers[tower].get, **self._settings, **settings}
        self.queues[tower] = Batcher(run, name=f"{self.manifest.name}-{tower}", **settings)
        return self.queues[tower]

    def to_load(self, tower: str) -> Callable[[], object] | None:
        """Return a function that loads a tower, None if it is in memory."""
        return None if self._towers[tower].loaded else self._towers[tower].get

    def loaded(self) -> list[str]:
        """Return the towers that are in memory."""
        return [name for name, tower in self._towers.items() if tower.loaded]

    def unload(self, idle_s: float) -> list[str]:
        """Drop the towers that nobody used in the last `idle_s` seconds, and return their names."""
        return [name for name, tower in self._towers.items() if tower.forget(idle_s)]

    def warm(self, on_progress: OnProgress[str] = no_progress) -> None:
        """Load every tower. `on_progress` gets the name of each."""
        spec = self.manifest.preprocess
        self.images(np.zeros((3, spec.crop_height, spec.crop_width), dtype=np.float32))
        on_progress("image")

    def close(self) -> None:
        """Finish waiting work, then refuse more."""
        for queue in self.queues.values():
            queue.close()


class LabelScorer(Protocol):
    """The part of Vision that a task needs to score labels by their texts."""

    def label_set(self, model: str, text: str | None, given: LabelSet | None = None) -> tuple[LabelSet, Matrix]:
        """Return labels with the embeddings of their prompts, (n, d)."""

    def score(
        self, embedding: Vector, labels: LabelSet, prompts: Matrix, model: str, k: int | None
    ) -> list[dict[str, object]]:
        """Score a unit-length embedding against a label set: the k best, best first."""


@dataclass(frozen=True)
class CanonicalCheck:
    """One output of a model, to record in its manifest and compare later: (d,) float32.

    `key` is its key in the manifest's `canonical`, `file` the graph that computes it, and `what` the input: the
    canonical "picture" or "text".
    """

    key: str
    what: str
    file: str
    answer: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class Task:
    """A task: what its models consist of, how one is loaded and tested, and what it returns.

    `make` connects an installed model to its queues; `settings` are those of Batcher. `finish` turns an output of the
    image tower, (d,), into the value that bulk work stores. `label` names the contents of an image, given that output,
    with the model's own labels: the k best [{"label", "score"}], best first. `checks` are for a canonical image and
    text. `answers` has, for each operation, a function that turns such an output into its result: text, or a JSON
    value. It also gets the service, and runs on a thread.
    """

    form: Form
    make: Callable[[InstalledModel, LoadSession, dict[str, Any]], Service]
    finish: Callable[[NDArray[Any]], NDArray[Any]]
    label: Callable[[LabelScorer, Any, NDArray[Any], int | None], list[dict[str, object]]]
    checks: Callable[[InstalledModel, LoadSession, Pixels, str], Iterable[CanonicalCheck]]
    answers: Mapping[str, Callable[[Any, NDArray[Any]], object]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The task's name in manifests."""
        return self.form.task
