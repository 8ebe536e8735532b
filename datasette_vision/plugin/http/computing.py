"""From the inputs of a request to what the models make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from datasette_vision.errors import EngineFailure, InvalidInput, VisionError
from datasette_vision.plugin.http.context import Call, outcomes
from datasette_vision.plugin.http.inputs import IMAGE, TEXT, Input

if TYPE_CHECKING:
    from datasette_vision.vectors.embedding import Vector

T = TypeVar("T")


def take(call: Call, inputs: Sequence[Input]) -> None:
    """Hold a place for each input, and count it. Raises a 413, a 429 or Busy."""
    counts = Counter(item.kind for item in inputs)
    call.share.take_inputs(texts=len(inputs) - counts[IMAGE], images=counts[IMAGE])
    for kind, count in counts.items():
        call.desk.measures.items[call.route, kind] += count


async def embed(call: Call, inputs: Sequence[Input], model: str | None) -> list[Vector | VisionError]:
    """Embed inputs: for each its unit-length embedding, (d,) float32, or why there is none.

    An embedding among the inputs is what it is, once it proves to be one of the model's. Raises what is wrong with the
    request and not with one of its inputs: UnknownModel, WrongTask, ModelCorrupt or Busy.
    """
    from datasette_vision.vectors import embedding as vectors  # heavy: NumPy

    intake = call.desk.intake
    dimensions = (await call.desk.call(call.desk.encoder, model)).dimensions
    texts = iter(intake.embed_texts([str(item.content) for item in inputs if item.kind == TEXT], model))
    futures: list[Future[Any]] = []
    for item in inputs:
        if item.kind == TEXT:
            futures.append(next(texts))
        elif item.kind == IMAGE:
            futures.append(intake.embed_image(item.content, model))
        else:
            futures.append(_done(vectors.decode, item.content, dimensions))
    found: list[Vector | VisionError] = []
    for outcome in in_place(call, await outcomes(futures)):
        try:
            found.append(outcome if isinstance(outcome, VisionError) else vectors.normalise(outcome))
        except VisionError as error:
            found.append(error)
    return found


def _done(function: Any, *arguments: Any) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(function(*arguments))
    except VisionError as error:
        future.set_exception(error)
    return future


def in_place(call: Call, results: Sequence[T | VisionError]) -> list[T | VisionError]:
    """Return the results. Raises the first error that is not one input's own."""
    for result in results:
        if isinstance(result, VisionError):
            if not isinstance(result, (InvalidInput, EngineFailure)):
                raise result
            call.desk.measures.error(call.route, result)
    return list(results)
