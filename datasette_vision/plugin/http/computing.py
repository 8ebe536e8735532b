"""From the inputs of a request to the models' results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from datasette_vision.errors import EngineFailure, InvalidInput, VisionError
from datasette_vision.plugin.http.context import Call, outcomes
from datasette_vision.plugin.http.inputs import EMBEDDING, IMAGE, TEXT, Input

if TYPE_CHECKING:
    from datasette_vision.vectors.embedding import Vector

T = TypeVar("T")


def take(call: Call, inputs: Sequence[Input]) -> None:
    """Reserve a place for each input, and count it. Raises a 413, a 429 or Busy."""
    counts = Counter(item.kind for item in inputs)
    call.share.take_inputs(texts=len(inputs) - counts[IMAGE], images=counts[IMAGE])
    for kind, count in counts.items():
        call.context.measures.items[call.route, kind] += count


async def embed_inputs(call: Call, inputs: Sequence[Input], model: str | None) -> list[Vector | VisionError]:
    """Embed inputs: for each its unit-length embedding, (d,) float32, or its error.

    An embedding among the inputs is checked against the model and returned. Raises errors of the whole request, not of
    one input: UnknownModel, WrongTask, ModelCorrupt or Busy.
    """
    from datasette_vision.vectors import embedding as vectors  # heavy: NumPy

    inference = call.context.inference
    dimensions = (await call.context.call(call.context.encoder, model)).dimensions
    texts = iter(inference.embed_texts([str(item.content) for item in inputs if item.kind == TEXT], model))
    futures: list[Future[Any]] = [
        next(texts) if item.kind == TEXT else inference.embed_image(item.content, model)
        for item in inputs
        if item.kind != EMBEDDING
    ]
    computed = iter(await outputs(call, futures))
    found: list[Vector | VisionError] = []
    for item in inputs:
        try:
            content: Any = item.content
            vector = vectors.from_blob(content, dimensions) if item.kind == EMBEDDING else next(computed)
            found.append(vector if isinstance(vector, VisionError) else vectors.normalise(vector))
        except VisionError as error:
            call.context.measures.error(call.route, error)
            found.append(error)
    return found


async def outputs(call: Call, futures: Sequence[Future[T]]) -> list[T | VisionError]:
    """Wait for the results of inputs. Raises the first error that is not one input's own, or Busy."""
    results = await outcomes(futures)
    for result in results:
        if isinstance(result, VisionError):
            if not isinstance(result, (InvalidInput, EngineFailure)):
                raise result
            call.context.measures.error(call.route, result)
    return results
