"""The JSON API under /-/vision/: embed, classify, zero-shot, similarity, models."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from datasette_vision.errors import VisionError
from datasette_vision.plugin.api.examples import RequestExample
from datasette_vision.plugin.http import schemas
from datasette_vision.plugin.http.computing import embed_inputs as embed_inputs
from datasette_vision.plugin.http.computing import outputs, take
from datasette_vision.plugin.http.context import Call, outcomes
from datasette_vision.plugin.http.inputs import EMBEDDING, IMAGE, TEXT, input_of, read_inputs
from datasette_vision.plugin.http.parameters import ENCODING_FORMAT, K_PARAMETER, LABELS, MODEL_PARAMETER, Parameter
from datasette_vision.plugin.http.responses import answer, dumps, error_body
from datasette_vision.plugin.http.routes import GET, Route
from datasette_vision.plugin.server import permissions

if TYPE_CHECKING:
    from datasette.utils.asgi import Response

    from datasette_vision.vectors.embedding import Vector

# More embeddings than this are written as text on a thread, away from the event loop.
INLINE_EMBEDDINGS = 32


async def handle_embed(call: Call) -> Response:
    """Return the embeddings of texts and images."""
    model, encoding = MODEL_PARAMETER.value(call.fields), ENCODING_FORMAT.value(call.fields)
    inputs = read_inputs(call.fields, EMBED.kinds)
    take(call, inputs)
    found = await embed_inputs(call, inputs, model)
    manifest = call.context.encoder(model)
    return await results_response(
        call,
        {"model": manifest.name, "dimensions": manifest.dimensions},
        found,
        lambda vector: f'{{"embedding":{written_embedding(vector, encoding)}}}',
        on_thread=len(found) > INLINE_EMBEDDINGS,
    )


async def classify(call: Call) -> Response:
    """Return the best labels of images, from the labels that a model includes."""
    model, k = MODEL_PARAMETER.value(call.fields), K_PARAMETER.value(call.fields) or 5
    inputs = read_inputs(call.fields, CLASSIFY.kinds)
    take(call, inputs)
    vision, inference = call.context.vision, call.context.inference
    name = (await call.context.call(vision.classifier, model)).manifest.name
    found = await outputs(call, [inference.classify_image(item.content, name) for item in inputs])
    return await results_response(
        call, {"model": name}, found, lambda output: dumps({"labels": vision.label(output, name, k)}), on_thread=True
    )


async def zero_shot(call: Call) -> Response:
    """Return the scores of the request's labels."""
    model, k, text = (parameter.value(call.fields) for parameter in (MODEL_PARAMETER, K_PARAMETER, LABELS))
    inputs = read_inputs(call.fields, ZERO_SHOT.kinds)
    take(call, inputs)
    context, vision = call.context, call.context.vision
    name = (await context.call(context.encoder, model)).name
    count_labels(call, name, text)
    (label_set,) = await outcomes([context.inference.label_set(name, text)])
    if isinstance(label_set, VisionError):
        raise label_set
    labels, prompts = label_set
    found = await embed_inputs(call, inputs, name)
    return await results_response(
        call,
        {"model": name},
        found,
        lambda embedding: dumps({"labels": vision.score(embedding, labels, prompts, name, k)}),
    )


async def similarity(call: Call) -> Response:
    """Return the cosine of the query with each input."""
    from datasette_vision.vectors import embedding as vectors  # heavy: NumPy

    model, query = MODEL_PARAMETER.value(call.fields), QUERY.value(call.fields)
    inputs = [input_of(query, SIMILARITY.kinds, "query"), *read_inputs(call.fields, SIMILARITY.kinds)]
    take(call, inputs)
    first, *others = await embed_inputs(call, inputs, model)
    if isinstance(first, VisionError):
        raise type(first)(f"query: {first}")
    head = {"model": call.context.encoder(model).name}
    return await results_response(call, head, others, lambda other: dumps({"similarity": vectors.cosine(first, other)}))


async def handle_models(call: Call) -> Response:
    """Return the installed models."""
    return answer(call.datasette, {"ok": True, "models": await call.context.call(lambda: call.context.vision.models())})


def count_labels(call: Call, model: str, text: str) -> None:
    """Count new labels against the client's rate. Raises a 429, or InvalidLabels."""
    from datasette_vision.vectors.zero_shot import parse_labels  # heavy: NumPy

    vision = call.context.vision
    if vision.label_sets.get((model, text)) is None:
        call.share.charge(texts=len(parse_labels(text, vision.config.max_labels).labels))


async def results_response(
    call: Call,
    head: dict[str, Any],
    found: Sequence[Any],
    write: Callable[[Any], str],
    *,
    on_thread: bool = False,
) -> Response:
    """Return the response to several inputs, in their order: for each the JSON from `write`, or its VisionError.

    If there are only errors, the whole response is an error with the status of the first. `on_thread` is for work that
    would block the event loop.
    """

    def written() -> str:
        return ",".join(
            dumps({"error": str(each), "status": each.http_status}) if isinstance(each, VisionError) else write(each)
            for each in found
        )

    errors = [each for each in found if isinstance(each, VisionError)]
    status = 200
    whole: dict[str, Any] = {"ok": True, **head}
    if len(errors) == len(found):
        status = errors[0].http_status
        whole = error_body([str(error) for error in errors], status)
    # Results that are already JSON are not parsed and written again: embeddings are long.
    listed = await call.context.call(written) if on_thread else written()
    return answer(call.datasette, f'{dumps(whole)[:-1]},"results":[{listed}]}}', status)


def written_embedding(vector: Vector, encoding: str) -> str:
    """Return an embedding, (d,) float32, as JSON: an array of numbers, or base64 of its bytes."""
    if encoding == "base64":
        return f'"{base64.b64encode(vector.astype("<f4").tobytes()).decode()}"'
    # Nine digits identify every float32, and take a third of the time of the shortest representation.
    return "[" + ",".join(["%.9g" % value for value in vector.tolist()]) + "]"  # noqa: UP031


QUERY = Parameter(
    "query",
    "What to compare the inputs with: a text, an image or an embedding. In a query string or a form: a text, a"
    " data: URI,"
    " or a file.",
    schemas.input_schema((TEXT, IMAGE, EMBEDDING)),
    "a text, an image or an embedding",
    lambda value: value,
    required=True,
)
EMBED = Route(
    "embed",
    "/embed",
    "Embed texts and images",
    "Embeddings of unit length. The cosine of two embeddings from one model says how well they match.",
    handle_embed,
    kinds=(TEXT, IMAGE),
    parameters=(MODEL_PARAMETER, ENCODING_FORMAT),
    answer=schemas.results_schema(schemas.EMBEDDED, model=schemas.ANSWERING_MODEL, dimensions=schemas.COUNT),
    example=RequestExample(query=[("text", "purple heart")]),
)
CLASSIFY = Route(
    "classify",
    "/classify",
    "Classify images",
    "The best labels of each image, from the labels that a model includes: a classifier's, or those of a dual"
    " encoder with"
    " labels in its manifest.",
    classify,
    kinds=(IMAGE,),
    parameters=(MODEL_PARAMETER, K_PARAMETER),
    answer=schemas.results_schema(schemas.LABELLED, model=schemas.ANSWERING_MODEL),
    example=RequestExample(form=[("image", "@apple.webp"), ("k", "3")]),
)
ZERO_SHOT = Route(
    "zero_shot",
    "/zero-shot",
    "Choose among your own labels",
    "The score of each label for each image or image embedding, best first.",
    zero_shot,
    kinds=(IMAGE, EMBEDDING),
    parameters=(LABELS, MODEL_PARAMETER, K_PARAMETER),
    answer=schemas.results_schema(schemas.LABELLED, model=schemas.ANSWERING_MODEL),
    example=RequestExample(form=[("image", "@apple.webp"), ("labels", "fruit"), ("labels", "animal")]),
)
SIMILARITY = Route(
    "similarity",
    "/similarity",
    "Compare",
    "The cosine of the query with each input, from -1 to 1.",
    similarity,
    kinds=(TEXT, IMAGE, EMBEDDING),
    parameters=(QUERY, MODEL_PARAMETER),
    answer=schemas.results_schema(schemas.COMPARED, model=schemas.ANSWERING_MODEL),
    example=RequestExample(form=[("query", "@apple.webp"), ("text", "red apple"), ("text", "fire engine")]),
)
MODELS_ROUTE = Route(
    "models",
    "/models",
    "List the installed models",
    "Each with its task, its dimensions, and the parts that are in memory.",
    handle_models,
    methods=(GET,),
    action=permissions.VIEW_INSTANCE,
    answer=schemas.MODEL_LIST,
    example=RequestExample(),
)
ROUTES = (EMBED, CLASSIFY, ZERO_SHOT, SIMILARITY, MODELS_ROUTE)
