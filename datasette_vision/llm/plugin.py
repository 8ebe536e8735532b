"""Embedding models for the llm tool: every installed dual encoder as vision/<name>."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING

import click
import llm

from datasette_vision.util.lazy import Lazy

if TYPE_CHECKING:
    from datasette_vision.engine.vision import Vision

MODEL_ID_PREFIX = "vision/"


def _make_vision() -> Vision:
    from datasette_vision.config.settings import Config
    from datasette_vision.engine.vision import Vision  # heavy, and llm loads its plugins for every command

    return Vision(Config(cache_mb=0))


class EmbeddingFailed(llm.ModelError, click.ClickException):
    """Names the bad items. llm's commands show a traceback for a ModelError, and click shows its own errors in one
    line.
    """


class VisionEmbeddingModel(llm.EmbeddingModel):
    """A dual encoder as an llm model: text goes to the text tower, bytes to the image tower.

    Embeddings have unit length, like those of vision_embed().
    """

    supports_text = True
    supports_binary = True
    batch_size = 32

    def __init__(self, name: str, vision: Lazy[Vision]) -> None:
        self.model_id = MODEL_ID_PREFIX + name
        self._name = name
        self._vision = vision

    def embed_batch(self, items: Iterable[str | bytes]) -> Iterator[list[float]]:
        """Yield an embedding for each text or image, in order.

        Raises llm.ModelError that names every bad item by its position and digest: llm passes no file names to a model,
        and stores nothing of a batch that fails.
        """
        from datasette_vision.errors import VisionError

        vision = self._vision.get()
        remaining = iter(items)
        while chunk := list(islice(remaining, self.batch_size)):
            try:
                texts = iter(vision.embed_texts([item for item in chunk if isinstance(item, str)], self._name))
            except VisionError as error:
                raise EmbeddingFailed(str(error)) from None
            images = vision.embed_images((item for item in chunk if isinstance(item, bytes)), self._name)
            found: list[list[float]] = []
            bad: list[str] = []
            for position, item in enumerate(chunk, start=1):
                outcome = next(texts if isinstance(item, str) else images)
                if isinstance(outcome, VisionError):
                    digest = sha256(item if isinstance(item, bytes) else item.encode()).hexdigest()
                    bad.append(f"item {position} of a batch of {len(chunk)} (SHA-256 {digest[:12]}…): {outcome}")
                else:
                    found.append(outcome.tolist())
            if bad:
                raise EmbeddingFailed("; ".join(bad))
            yield from found


@llm.hookimpl
def register_embedding_models(register: Callable[[llm.EmbeddingModel], None]) -> None:
    """Register each installed dual encoder. Unreadable models are left out: `vision_models()` lists them."""
    from datasette_vision.errors import VisionError
    from datasette_vision.models.store import ModelStore

    vision: Lazy[Vision] = Lazy(_make_vision)
    store = ModelStore()
    for name in store.names():
        try:
            makes_embeddings = store.find(name).manifest.form.embeds
        except VisionError:
            continue
        if makes_embeddings:
            register(VisionEmbeddingModel(name, vision))
