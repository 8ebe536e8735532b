"""Vision: configuration, models, queues and cache in one object. Every adapter calls it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.config.settings import Config
from datasette_vision.engine import services
from datasette_vision.engine.cache import EmbeddingCache, LabelSets
from datasette_vision.engine.encoder import load_on
from datasette_vision.engine.services import BulkTower, Services
from datasette_vision.engine.tasks.dual_encoder import EncoderService
from datasette_vision.engine.tasks.registry import task_of
from datasette_vision.engine.tasks.task import Pixels, Scores, Service
from datasette_vision.errors import InvalidText, VisionError, WrongTask
from datasette_vision.images import budget
from datasette_vision.images import decode as images
from datasette_vision.images.decoder import Decoder
from datasette_vision.models.store import ModelStore
from datasette_vision.util import memory
from datasette_vision.util.caller import current
from datasette_vision.util.progress import OnProgress, no_progress
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.embedding import Matrix, Vector
from datasette_vision.vectors.zero_shot import LabelSet, parse_labels, scores, top_k

# The part of cache_mb for label sets. The rest is for embeddings.
LABEL_SETS_SHARE = 0.25


class Vision:
    """Embeds, compares and classifies, with the installed models. Thread-safe.

    Work is done for the current caller (caller.py). Its `admit` is called once for all inputs of a call that the cache
    does not hold, before they are tokenised or decoded. When its deadline passes, DeadlineExceeded is raised, and
    inputs that are not being computed yet are dropped; finished embeddings are in the cache for the next attempt.

    `load` makes a loader of graphs for a number of threads and execution providers. Tests pass their own.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        store: ModelStore | None = None,
        load: services.MakeLoader = load_on,
    ) -> None:
        self.config = config or Config()
        models_dir = Path(self.config.models_dir).expanduser() if self.config.models_dir else None
        self.store = store or ModelStore(models_dir)
        self.limits = images.ImageLimits(
            max_bytes=int(self.config.max_image_mb * 1_000_000),
            max_pixels=int(self.config.max_image_megapixels * 1_000_000),
        )
        memory.return_large_blocks()
        decode_mb = self.config.image_memory_mb
        decode_bytes = budget.default_bytes(memory.available_bytes()) if decode_mb is None else decode_mb * 1_000_000
        self.decoder = Decoder(self.limits, budget.DecodeBudget(decode_bytes))
        cache_bytes = self.config.cache_mb * 1_000_000
        self.cache = EmbeddingCache(int(cache_bytes * (1 - LABEL_SETS_SHARE)))
        self.label_sets = LabelSets(int(cache_bytes * LABEL_SETS_SHARE))
        self.services = Services(self.store, self.config, load)

    # Embeddings

    def embed_text(self, text: str, model: str | None = None, *, normalised: bool = True) -> Vector:
        """Embed a text: -> (d,) float32, of unit length unless `normalised` is False.

        Raises InvalidText, UnknownModel, WrongTask, ModelCorrupt, Busy or EngineFailure.
        """
        service = self._dual_encoder(model)
        key = self.text_key(service, text)
        vector = self.cache.get(key)
        if vector is None:
            current().admit(texts=1, load=service.to_load("text"))
            vector = service.texts(service.tokenise(text), self.keeping(key))
        return vectors.normalise(vector) if normalised else vector

    def embed_texts(self, texts: Sequence[str], model: str | None = None) -> Matrix:
        """Embed n texts in batches: -> (n, d) float32, of unit length. Raises the first error, as embed_text() does."""
        service = self._dual_encoder(model)
        keys = [self.text_key(service, text) for text in texts]
        found = [self.cache.get(key) for key in keys]
        missing = [position for position, vector in enumerate(found) if vector is None]
        if missing:
            current().admit(texts=len(missing), load=service.to_load("text"))
        outcomes = service.texts.map(
            (service.tokenise(texts[position]) for position in missing),
            lambda number, vector: self.cache.put(keys[missing[number]], vector),
        )
        with contextlib.closing(outcomes):
            for position, outcome in zip(missing, outcomes, strict=True):
                if isinstance(outcome, VisionError):
                    raise outcome
                found[position] = outcome
        matrix = np.empty((len(texts), service.manifest.dimensions), dtype=np.float32)
        for row, vector in enumerate(found):
            matrix[row] = vector
        return vectors.normalise(matrix)

    def has_texts(self, texts: Iterable[str], model: str | None = None) -> bool:
        """Say whether the cache holds the embeddings of these texts. Raises InvalidText, UnknownModel or WrongTask."""
        service = self._dual_encoder(model)
        return all(self.cache.get(self.text_key(service, text)) is not None for text in texts)

    def embed_image(self, image: bytes, model: str | None = None, *, normalised: bool = True) -> Vector:
        """Embed the bytes of an image file: -> (d,) float32, of unit length unless `normalised` is False.

        Raises InvalidImage, and the errors of embed_text().
        """
        service = self._dual_encoder(model)
        key = self.image_key(service, image)
        vector = self.cache.get(key)
        if vector is None:
            current().admit(images=1, load=service.to_load("image"))
            vector = service.images(self.pixels(service, image), self.keeping(key))
        return vectors.normalise(vector) if normalised else vector

    def embed_images(self, sources: Iterable[bytes], model: str | None = None) -> Iterator[Vector | VisionError]:
        """Embed many images: yields for each, in order, its unit-length embedding or its error.

        For bulk work: it keeps at most `ahead` of them in the queue, so that others are served beside it, and leaves
        the cache alone.
        """
        service = self._dual_encoder(model)
        failed: dict[int, VisionError] = {}

        def decoded() -> Iterator[Pixels]:
            for position, source in enumerate(sources):
                current().admit(images=1, load=service.to_load("image"))
                try:
                    pixels = self.pixels(service, source)
                except VisionError as error:
                    failed[position] = error
                else:
                    yield pixels

        position = 0
        for outcome in service.images.map(decoded()):
            while position in failed:
                yield failed.pop(position)
                position += 1
            yield outcome if isinstance(outcome, VisionError) else vectors.normalise(outcome)
            position += 1
        yield from (failed[position] for position in sorted(failed))

    def embed_image_or_embedding(self, value: bytes, model: str | None = None) -> Vector:
        """Return the unit-length embedding of `value`, which is an image file or already an embedding of the model.

        vectors.embedding.unless_image() decides which. Raises its errors and those of embed_image().
        """
        embedding = vectors.unless_image(value, self._dual_encoder(model).manifest.dimensions)
        return self.embed_image(value, model) if embedding is None else embedding

    # Bulk work: see pipeline.py

    def image_tower(self, model: str | None = None) -> BulkTower:
        """Return the tower that turns images into unit-length embeddings, (d,) float32, or into a classifier's scores.

        Raises UnknownModel or ModelCorrupt.
        """
        service = self.services.get(model or self.config.default_model)
        manifest = service.manifest
        finish = task_of(manifest.task).finish

        def prepare(image: bytes) -> Pixels:
            return self.pixels(service, image)

        spec = manifest.preprocess
        return BulkTower(manifest.name, manifest.dimensions, prepare, service.images, finish, spec)

    def text_tower(self, model: str | None = None) -> BulkTower:
        """Return the tower that turns texts into unit-length embeddings. Also raises WrongTask."""
        service = self._dual_encoder(model)

        def prepare(content: bytes) -> list[int]:
            text = content.decode("utf-8", "replace")
            self._check_text(text)
            return service.tokenise(text)

        manifest = service.manifest
        return BulkTower(manifest.name, manifest.dimensions, prepare, service.texts, vectors.normalise)

    # Classification

    def classify(self, image: bytes, model: str | None = None, k: int | None = 5) -> list[dict[str, object]]:
        """Return the k best [{"label", "score"}] for an image, best first, from the labels that the model includes.

        Scores are over all labels, whatever k. The model is a fixed-label classifier, or a dual encoder with labels in
        its manifest. Raises the errors of embed_image().
        """
        service = self.classifier(model)
        if service.manifest.form.embeds:
            return self.label(self.embed_image(image, service.manifest.name), model, k)
        return self.label(self._output(service, image), model, k)

    def classifier(self, model: str | None = None) -> Service:
        """Return the service that classify() uses. Raises UnknownModel, ModelCorrupt, or WrongTask if it has no
        labels.
        """
        name = model or self.config.default_classifier or self.config.default_model
        service = self.services.get(name)
        if not service.manifest.labels:
            raise WrongTask(f"{name!r} has no labels of its own: pass labels to vision_zero_shot()")
        return service

    def label(self, output: Vector | Scores, model: str | None = None, k: int | None = 5) -> list[dict[str, object]]:
        """Return the result of classify(), given the model's output for the image: (d,), an embedding or scores."""
        service = self.classifier(model)
        return task_of(service.manifest.task).label(self, service, output, k)

    def ask(self, operation: str, image: bytes, model: str | None = None) -> object:
        """Return a model's result for an operation of its task: see models/tasks.py.

        Without `model`, use the only one installed for that task. Raises InvalidArgument if there are several,
        WrongTask, and the errors of embed_image().
        """
        service = self.services.for_operation(operation, model)
        return self.answer(service, operation, self._output(service, image))

    def answer(self, service: Service, operation: str, output: NDArray[Any]) -> object:
        """Return the result of ask(), given the model's output for the image."""
        return task_of(service.manifest.task).answers[operation](service, output)

    def _output(self, service: Service, image: bytes) -> NDArray[Any]:
        current().admit(images=1, load=service.to_load("image"))
        output: NDArray[Any] = service.images(self.pixels(service, image))
        return output

    def zero_shot(
        self, value: bytes, labels: str, model: str | None = None, k: int | None = None
    ) -> list[dict[str, object]]:
        """Score an image or image embedding against labels: returns the k best [{"label", "score"}], best first.

        `labels` is JSON for vectors.zero_shot.parse_labels(). Raises InvalidLabels, and the errors of embed_image().
        """
        name = model or self.config.default_model
        self._dual_encoder(name)
        chosen, prompts = self.label_set(name, labels)
        return self.score(self.embed_image_or_embedding(value, name), chosen, prompts, name, k)

    def label_set(self, model: str, text: str | None, given: LabelSet | None = None) -> tuple[LabelSet, Matrix]:
        """Return labels with the embeddings of their prompts, (n, d), cached for the next row of the same query.

        They are read from `text`, as in zero_shot(). Without `text`, they are the model's own labels.
        """
        found = self.label_sets.get((model, text))
        if found is None:
            labels = given or parse_labels(text or "", self.config.max_labels)
            found = labels, self.embed_texts(labels.prompts, model)
            self.label_sets.put((model, text), *found)
        return found

    def score(
        self, embedding: Vector, labels: LabelSet, prompts: Matrix, model: str, k: int | None
    ) -> list[dict[str, object]]:
        """Score a unit-length embedding against a label set: returns the k best [{"label", "score"}], best first."""
        manifest = self._dual_encoder(model).manifest
        values = scores(
            prompts @ embedding,
            logit_scale=manifest.logit_scale,
            logit_bias=manifest.logit_bias,
            temperature=labels.temperature,
            multi_label=labels.multi_label or manifest.activation == "sigmoid",
        )
        return top_k(labels.labels, values, k)

    # Models

    def models(self) -> list[dict[str, object]]:
        """Describe the installed models. A damaged one has an "error"."""
        return self.services.describe(self.config.default_model)

    def check_models(self) -> None:
        """Raise UnknownModel, ModelCorrupt or WrongTask if a model that the configuration names cannot be used."""
        for name in self.config.named_models():
            self.store.find(name)
        self._dual_encoder(None)
        classifier = self.config.default_classifier
        if classifier is not None and not self.store.find(classifier).manifest.labels:
            raise WrongTask(f"default_classifier: {classifier!r} has no labels of its own")

    def preload(self, on_progress: OnProgress[str] = no_progress) -> None:
        """Load the models in the configuration's `preload`. `on_progress` gets the name of each part: "clip text"."""
        for name in self.config.preload:
            self.services.get(name).warm(lambda part, name=name: on_progress(f"{name} {part}"))  # type: ignore[misc]

    def close(self) -> None:
        """Finish waiting work, then refuse more."""
        self.services.close()

    def __enter__(self) -> Vision:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _dual_encoder(self, model: str | None) -> EncoderService:
        return self.services.dual_encoder(model or self.config.default_model)

    # Inputs of the queues, and keys of the cache

    def pixels(self, service: Service, image: bytes) -> Pixels:
        """Decode an image for a model, once there is memory for it. Raises InvalidImage or Busy."""
        spec = service.manifest.preprocess
        return self.decoder.decode(image, spec, spec.target)

    def keeping(self, key: bytes) -> Callable[[Vector], None]:
        """Return a function that caches an embedding: for a queue, which calls it even if nobody waits any more."""
        return functools.partial(self.cache.put, key)

    def image_key(self, service: Service, image: bytes) -> bytes:
        """Return the cache key of an image's embedding."""
        return _key(service, b"image", image)

    def text_key(self, service: EncoderService, text: str) -> bytes:
        """Return the cache key of a text's embedding. Raises InvalidText."""
        self._check_text(text)
        return _key(service, b"text", text.encode("utf-8", "surrogatepass"))

    def _check_text(self, text: str) -> None:
        if len(text) > self.config.max_text_chars:
            raise InvalidText(
                f"expected at most {self.config.max_text_chars:,} characters of text (max_text_chars),"
                f" found {len(text):,}"
            )


def _key(service: Service, kind: bytes, content: bytes) -> bytes:
    """Return a key of everything that determines an embedding: the model, the tower and the whole input."""
    digest = hashlib.sha256(service.manifest.identity.encode() + b"\0" + kind + b"\0")
    digest.update(content)
    return digest.digest()
