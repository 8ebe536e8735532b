"""CLIP and similar models: an image tower and a text tower whose embeddings can be compared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine.batcher import ANSWER_TIMEOUT_S, Batcher
from datasette_vision.engine.encoder import DualEncoder, LoadSession
from datasette_vision.engine.tasks.task import CanonicalCheck, LabelScorer, Pixels, Service, Task
from datasette_vision.errors import Busy, ModelCorrupt
from datasette_vision.models.store import InstalledModel
from datasette_vision.models.tasks import DUAL_ENCODER, FORMS
from datasette_vision.util.caller import current
from datasette_vision.util.progress import OnProgress, no_progress
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.embedding import Vector
from datasette_vision.vectors.zero_shot import LabelSet

T = TypeVar("T")


class EncoderService(Service):
    """A dual encoder with a queue for each tower."""

    def __init__(self, model: InstalledModel, load: LoadSession, settings: dict[str, Any]) -> None:
        encoder = self.encoder = DualEncoder(model, load)
        super().__init__(model, {"text": encoder.text_tower, "image": encoder.image_tower}, settings)
        self.texts: Batcher[list[int], Vector] = self.queue(
            "text",
            lambda batch: list(encoder.encode_tokens(batch)),
            size=encoder.padded_length,
            load=self._load_text,
        )
        self.images: Batcher[Pixels, Vector] = self.queue(
            "image", lambda batch: list(encoder.encode_pixels(np.stack(batch)))
        )

    def tokenise(self, text: str) -> list[int]:
        """Return the input for `texts`. Loads the tokenizer first if necessary.

        Raises DeadlineExceeded if the caller's time is up before that; the loading continues.
        """
        tokenizer = self.encoder.tokenizer
        return (tokenizer.get() if tokenizer.loaded else within_deadline(tokenizer.get)).encode(text)

    def to_load(self, tower: str) -> Callable[[], object] | None:
        """Return a function that loads the "text" or the "image" tower, None if it is in memory."""
        if tower == "text" and not self.encoder.tokenizer.loaded:
            return self._load_text
        return super().to_load(tower)

    def _load_text(self) -> None:
        self.encoder.tokenizer.get()
        self.encoder.text_tower.get()

    def warm(self, on_progress: OnProgress[str] = no_progress) -> None:
        """Load both towers, the text tower first: most first requests need it. `on_progress` gets the name of each."""
        self.texts(self.tokenise("warm"))
        on_progress("text")
        super().warm(on_progress)


def within_deadline(make: Callable[[], T]) -> T:
    """Return the result of `make()`. A caller with a deadline stops waiting then; `make` continues, for others.

    Raises DeadlineExceeded, and the errors of `make`.
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


def _label(
    vision: LabelScorer, service: EncoderService, output: NDArray[Any], k: int | None
) -> list[dict[str, object]]:
    name, entries = service.manifest.name, service.manifest.labels
    labels = LabelSet(tuple(entry.label for entry in entries), tuple(entry.prompt for entry in entries))
    return vision.score(vectors.normalise(output), *vision.label_set(name, None, labels), name, k)


def _checks(model: InstalledModel, load: LoadSession, picture: Pixels, text: str) -> Iterator[CanonicalCheck]:
    manifest, encoder = model.manifest, DualEncoder(model, load)
    assert manifest.text is not None, "a dual encoder's manifest has a text tower"

    def of_picture() -> NDArray[np.float32]:
        return _unit(encoder.encode_pixels(picture[None])[0])

    def of_text() -> NDArray[np.float32]:
        return _unit(encoder.encode_tokens([encoder.tokenizer.get().encode(text)])[0])

    yield CanonicalCheck("embedding", "text", manifest.text.file, of_text)
    yield CanonicalCheck("image_embedding", "picture", manifest.image.file, of_picture)


def _unit(vector: Vector) -> Vector:
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm) or norm == 0:
        raise ModelCorrupt("the model returns an embedding of length zero")
    return (vector / norm).astype(np.float32)


TASK = Task(FORMS[DUAL_ENCODER], EncoderService, vectors.normalise, _label, _checks)
