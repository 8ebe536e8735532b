"""From an event loop to the models' queues: nothing here blocks, and every result is a future.

A request costs memory long before it reaches a model: an image of 100 megapixels is 300 MB while it is decoded. So
images are decoded by a few threads, and only as many are kept decoded as a model's queue has room for; what waits
longer waits as it came. Texts have threads of their own, so that a text is not kept waiting by pictures. On all of
these threads clients take turns.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, TypeVar

import numpy as np

from datasette_vision.engine.batcher import ANSWER_TIMEOUT_S
from datasette_vision.engine.runtime import default_threads
from datasette_vision.engine.tasks.task import Scores, Service
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import Busy, VisionError
from datasette_vision.images.data_uri import from_text
from datasette_vision.util.caller import acting, current
from datasette_vision.util.fair_queues import FairPool
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.embedding import Matrix, Vector
from datasette_vision.vectors.zero_shot import LabelSet, parse_labels

T = TypeVar("T")

# Threads that parse bodies and labels, and resize images.
CALL_THREADS = 8
# One would be enough, except for a text that is made to take long.
TEXT_THREADS = 2
# Texts tokenised in one turn: this many texts, or this many characters. It takes some milliseconds.
TURN_TEXTS = 64
TURN_CHARS = 10_000


class Inference:
    """Sends inputs to the queues of a Vision, for the current caller (caller.py). Thread-safe.

    The caller's `admit` is called once for each turn's inputs that the cache does not hold, before they are tokenised
    or decoded. Inputs that are cancelled, or past the caller's deadline, are not computed.
    """

    def __init__(self, vision: Vision) -> None:
        self._vision = vision
        self._texts = FairPool(TEXT_THREADS, "datasette-vision-texts")
        self._images = FairPool(default_threads(), "datasette-vision-images")
        self._calls = FairPool(CALL_THREADS, "datasette-vision-calls")
        self._closed = False

    def call(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run a short blocking function, away from the event loop."""
        return self._calls.submit(function, *arguments)

    def embed_texts(self, texts: Sequence[str], model: str | None = None) -> list[Future[Vector]]:
        """Queue texts: returns for each a future of its embedding, (d,) float32, *not* normalised, or of a
        VisionError.
        """
        outcomes: list[Future[Vector]] = [Future() for _ in texts]
        for start, end in _turns(texts):
            self._texts.submit(self._queue_texts, list(texts[start:end]), model, outcomes[start:end])
        return outcomes

    def embed_image(self, image: bytes | str, model: str | None = None) -> Future[Vector]:
        """Queue an image, or its text form: returns a future of its embedding, *not* normalised, or of a
        VisionError.
        """
        return self._image(image, lambda: self._vision.services.dual_encoder(self._name(model)))

    def classify_image(self, image: bytes | str, model: str | None = None) -> Future[Vector | Scores]:
        """Queue an image for a classifier: returns a future of the input for Vision.label(), or of a VisionError."""
        return self._image(image, lambda: self._vision.classifier(model))

    def ask(self, operation: str, image: bytes | str, model: str | None = None) -> Future[Any]:
        """Queue an image for an operation of a task: returns a future of the input for Vision.answer(), or of a
        VisionError.
        """
        return self._image(image, lambda: self._vision.services.for_operation(operation, model))

    def label_set(self, model: str, text: str) -> Future[tuple[LabelSet, Matrix]]:
        """Queue the prompts of labels: returns a future of the result of Vision.label_set(), which is cached, or of
        a VisionError.
        """
        outcome: Future[tuple[LabelSet, Matrix]] = Future()
        self._calls.submit(self._queue_labels, model, text, outcome)
        return outcome

    def close(self) -> None:
        """Refuse waiting inputs, and stop the threads. Inputs in the queues are left to the queues."""
        self._closed = True
        for pool in (self._texts, self._images, self._calls):
            pool.close()

    def _image(self, image: bytes | str, find: Callable[[], Service]) -> Future[Any]:
        outcome: Future[Any] = Future()
        self._images.submit(self._queue_image, image, find, outcome)
        return outcome

    def _name(self, model: str | None) -> str:
        return model or self._vision.config.default_model

    def _queue_texts(self, texts: list[str], model: str | None, outcomes: list[Future[Vector]]) -> None:
        waiting: list[tuple[str, bytes, Future[Vector]]] = []
        try:
            self._check()
            service = self._vision.services.dual_encoder(self._name(model))
            for text, outcome in zip(texts, outcomes, strict=True):
                with _errors_to(outcome):
                    key = self._vision.text_key(service, text)
                    vector = self._vision.cache.get(key)
                    if vector is None:
                        waiting.append((text, key, outcome))
                    else:
                        outcome.set_result(vector)
            if waiting:
                current().admit(texts=len(waiting), load=service.to_load("text"))
        except Exception as error:
            for outcome in outcomes:
                _fail(outcome, error)
            return
        for text, key, outcome in waiting:
            if not outcome.cancelled():
                with _errors_to(outcome):
                    self._check()
                    _follow(service.texts.submit(service.tokenise(text), self._vision.keeping(key)), outcome)

    def _queue_image(self, image: bytes | str, find: Callable[[], Service], outcome: Future[Any]) -> None:
        if outcome.cancelled():
            return
        with _errors_to(outcome):
            self._check()
            service = find()
            content = from_text(image) if isinstance(image, str) else image
            # Scores of classifiers are not cached: the cache is for embeddings.
            key = self._vision.image_key(service, content) if service.manifest.form.embeds else None
            vector = self._vision.cache.get(key) if key is not None else None
            if vector is not None:
                outcome.set_result(vector)
                return
            current().admit(images=1, load=service.to_load("image"))
            room = service.images.room
            if not room.acquire(timeout=current().seconds_left(ANSWER_TIMEOUT_S)):
                current().seconds_left(ANSWER_TIMEOUT_S)  # raises if it was the caller's own time
                raise Busy("other images are being embedded: try again in a moment")
            try:
                self._check()
                keep: Any = None if key is None else self._vision.keeping(key)
                future: Future[Any] = service.images.submit(self._vision.pixels(service, content), keep)
            except BaseException:
                room.release()
                raise
            future.add_done_callback(lambda _: room.release())
            _follow(future, outcome)

    def _queue_labels(self, model: str, text: str, outcome: Future[tuple[LabelSet, Matrix]]) -> None:
        with _errors_to(outcome):
            self._check()
            found = self._vision.label_sets.get((model, text))
            if found is not None:
                outcome.set_result(found)
                return
            labels = parse_labels(text, self._vision.config.max_labels)
            self._next_prompts(model, text, labels, [], outcome)

    def _next_prompts(
        self,
        model: str,
        text: str,
        labels: LabelSet,
        done: list[Vector],
        outcome: Future[tuple[LabelSet, Matrix]],
    ) -> None:
        """Queue the prompts that come after those done, a part at a time: a label set may be longer than the queue.

        The last of them, or the first that fails, sets the outcome.
        """
        start = len(done)
        ahead = self._vision.services.dual_encoder(model).texts.ahead
        part = labels.prompts[start : start + ahead]
        futures = self.embed_texts(part, model)
        caller, finished = current(), itertools.count(1)

        def go_on() -> None:
            with _errors_to(outcome):
                done.extend(future.result() for future in futures)
                if len(done) < len(labels.prompts):
                    self._check()
                    self._next_prompts(model, text, labels, done, outcome)
                    return
                prompts = vectors.normalise(np.stack(done))
                self._vision.label_sets.put((model, text), labels, prompts)
                outcome.set_result((labels, prompts))

        def step(_: Future[Vector]) -> None:
            if next(finished) == len(futures):
                with _errors_to(outcome), acting(caller):
                    self._calls.submit(go_on)

        for future in futures:
            future.add_done_callback(step)
        outcome.add_done_callback(lambda given_up: _cancel(futures) if given_up.cancelled() else None)

    def _check(self) -> None:
        """Raise Busy at shutdown, and DeadlineExceeded if the caller's time is up."""
        if self._closed:
            raise Busy("the server is shutting down")
        current().seconds_left(ANSWER_TIMEOUT_S)


def _turns(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Split texts into parts that take some milliseconds to tokenise: (start, end) of each."""
    start = characters = 0
    for position, text in enumerate(texts):
        if position > start and (characters + len(text) > TURN_CHARS or position - start == TURN_TEXTS):
            yield start, position
            start, characters = position, 0
        characters += len(text)
    if start < len(texts):
        yield start, len(texts)


@contextlib.contextmanager
def _errors_to(outcome: Future[Any]) -> Iterator[None]:
    """Make an exception in the block the outcome. Ignored if the outcome was cancelled."""
    try:
        yield
    except InvalidStateError:
        if not outcome.cancelled():
            raise
    except Exception as error:
        _fail(outcome, error)


def _fail(outcome: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):
        outcome.set_exception(error)


def _cancel(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        future.cancel()


def _follow(future: Future[Any], outcome: Future[Any]) -> None:
    """Pass on a queue's result, and pass back a cancellation."""

    def done(finished: Future[Any]) -> None:
        with contextlib.suppress(InvalidStateError):
            try:
                result = finished.result()
            except CancelledError:
                outcome.cancel()
            except BaseException as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

    future.add_done_callback(done)
    outcome.add_done_callback(lambda given_up: future.cancel() if given_up.cancelled() else None)


def outcome_of(future: Future[Any]) -> Any:
    """Return the result of a finished future, or its VisionError. Other exceptions are raised."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, VisionError):
        return error
    raise error
