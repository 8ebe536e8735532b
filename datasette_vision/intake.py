"""The way from an event loop to the models' queues: nothing here waits, and everything is answered by a future.

A request costs memory long before it reaches a model: an image of 100 megapixels is 300 MB while it is decoded. So
images are decoded by a few threads, and only as many as two batches are kept decoded; what waits longer waits as it
came. Texts have a thread of their own, that a text is not kept waiting by pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from datasette_vision.errors import Busy, VisionError
from datasette_vision.imagetext import from_text
from datasette_vision.runtime import default_threads
from datasette_vision.serving import ClassifierService, Scores, Service
from datasette_vision.vectors import Vector
from datasette_vision.vision import Vision

T = TypeVar("T")

# Threads that wait for label sets to be embedded, or parse large bodies: they compute little themselves.
CALL_THREADS = 8


class Intake:
    """Takes inputs to the queues of a Vision. Thread-safe."""

    def __init__(self, vision: Vision) -> None:
        self._vision = vision
        self._texts = ThreadPoolExecutor(1, "datasette-vision-texts")
        self._images = ThreadPoolExecutor(default_threads(), "datasette-vision-images")
        self._calls = ThreadPoolExecutor(CALL_THREADS, "datasette-vision-calls")
        self._room = threading.Semaphore(2 * vision.config.max_batch_size)
        self._closed = False

    def call(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run something short that blocks, away from the event loop."""
        return _submit(self._calls, function, *arguments)

    def embed_texts(self, texts: Sequence[str], model: str | None = None) -> list[Future[Vector]]:
        """Queue texts: for each a future of its embedding, (d,) float32, *not* normalised, or of a VisionError."""
        outcomes: list[Future[Vector]] = [Future() for _ in texts]
        _submit(self._texts, self._queue_texts, list(texts), model, outcomes)
        return outcomes

    def embed_image(self, image: bytes | str, model: str | None = None) -> Future[Vector]:
        """Queue an image, or text that is one: a future of its embedding, *not* normalised, or of a VisionError."""
        outcome: Future[Vector] = Future()
        find = self._vision.services.dual_encoder
        _submit(self._images, self._queue_image, image, lambda: find(self._name(model)), outcome)
        return outcome

    def classify_image(self, image: bytes | str, model: str | None = None) -> Future[Vector | Scores]:
        """Queue an image for a classifier: a future of what Vision.label() takes, or of a VisionError."""
        outcome: Future[Vector | Scores] = Future()
        _submit(self._images, self._queue_image, image, lambda: self._vision.classifier(model), outcome)
        return outcome

    def close(self) -> None:
        """Refuse what waits here, and end the threads; what is in the queues is the queues' affair."""
        self._closed = True
        for pool in (self._texts, self._images, self._calls):
            pool.shutdown(wait=False)

    def _name(self, model: str | None) -> str:
        return model or self._vision.config.default_model

    def _queue_texts(self, texts: list[str], model: str | None, outcomes: list[Future[Vector]]) -> None:
        for text, outcome in zip(texts, outcomes, strict=True):
            try:
                self._check_open()
                service = self._vision.services.dual_encoder(self._name(model))
                key = self._vision.text_key(service, text)
                vector = self._vision.cache.get(key)
                if vector is None:
                    self._follow(service.texts.submit(service.tokenise(text)), outcome, key)
                else:
                    outcome.set_result(vector)
            except Exception as error:
                outcome.set_exception(error)

    def _queue_image(self, image: bytes | str, find: Callable[[], Service], outcome: Future[Any]) -> None:
        try:
            self._check_open()
            service = find()
            content = from_text(image) if isinstance(image, str) else image
            # Scores of classifiers are not kept: the cache is for embeddings.
            key = None if isinstance(service, ClassifierService) else self._vision.image_key(service, content)
            vector = self._vision.cache.get(key) if key is not None else None
            if vector is not None:
                outcome.set_result(vector)
                return
            self._room.acquire()
            try:
                self._check_open()
                future: Future[Any] = service.images.submit(self._vision.pixels(service, content))
            except BaseException:
                self._room.release()
                raise
            future.add_done_callback(lambda _: self._room.release())
            self._follow(future, outcome, key)
        except Exception as error:
            outcome.set_exception(error)

    def _check_open(self) -> None:
        if self._closed:
            raise Busy("the server is shutting down")

    def _follow(self, future: Future[Any], outcome: Future[Any], key: bytes | None) -> None:
        """Hand on what comes of a queue, and keep it in the cache."""

        def done(finished: Future[Any]) -> None:
            try:
                result = finished.result()
                if key is not None:
                    self._vision.cache.put(key, result)
            except BaseException as error:  # a queue that ends cancels what waits in it
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

        future.add_done_callback(done)


def _submit(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> Future[T]:
    try:
        return pool.submit(function, *arguments)
    except RuntimeError as error:  # the pool is closed, or there is no thread to be had
        raise Busy(f"nothing can be taken on now ({error}): try again in a moment") from None


def outcome_of(future: Future[Any]) -> Any:
    """Return what came of a future that is done: its result, or its VisionError. What nobody foresaw is raised."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, VisionError):
        return error
    raise error
