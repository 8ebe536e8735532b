"""The page /-/vision: what the installed models say about an image. The image is not stored."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from datasette_vision import __version__
from datasette_vision.errors import InvalidArgument, VisionError
from datasette_vision.models.tasks import embeds
from datasette_vision.plugin.http import uploads
from datasette_vision.plugin.http.context import RequestContext, context_of, outcomes
from datasette_vision.plugin.http.parameters import labels_of_text
from datasette_vision.plugin.http.responses import RequestError, status_of
from datasette_vision.plugin.search import page
from datasette_vision.plugin.search.request import SearchRequest, encode_embedding
from datasette_vision.plugin.search.searchable import searchable_tables
from datasette_vision.plugin.server import permissions

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request, Response

    from datasette_vision.engine.vision import Vision

PLAYGROUND_TEMPLATE = "vision_playground.html"
TOP = 5
# The image is sent back in the page, so that people can ask more about it without JavaScript. Large ones as a copy.
KEPT_BYTES = 256 * 1024
KEPT_PIXELS = 512


async def playground(datasette: Datasette, request: Request) -> Response:
    """Serve the page, and handle the images sent from it. Raises Datasette's Forbidden."""
    from datasette.utils.asgi import Response

    for action in (permissions.VIEW_INSTANCE, permissions.INFER):
        await permissions.ensure(datasette, request.actor, action)
    context = context_of(datasette)
    await context.ready()
    status, error, answers = 200, "", None
    headers: dict[str, str] = {}
    fields: dict[str, str] = {}
    if request.method == "POST":
        try:
            async with uploads.upload(datasette, request) as sent:
                fields = sent.fields
                image = sent.image or _kept(fields.get("kept", ""))
                answers = await _ask(context, image, fields)
        except (VisionError, RequestError) as problem:
            status, headers = status_of(problem)
            error = str(problem)
        headers["cache-control"] = "no-store"  # an uploaded image is private
    models = await context.call(context.vision.models)
    tables = await searchable_tables(datasette, request.actor)
    variables = {
        "version": __version__,
        "address": datasette.urls.path("/-/vision"),
        "error": error,
        "answers": answers,
        "labels": fields.get("labels", ""),
        "sentence": fields.get("sentence", ""),
        "models": models,
        "tables": [(table, page.search_page_path(datasette, table.database, table.table)) for table in tables],
        "similar": _similar(datasette, tables, answers),
    }
    html = await datasette.render_template(PLAYGROUND_TEMPLATE, variables, request, view_name="vision_playground")
    return Response.html(html, status=status, headers=headers)


async def _ask(context: RequestContext, image: bytes, fields: dict[str, str]) -> dict[str, Any]:
    """Ask every model about an image. Raises InvalidImage, InvalidArgument or Busy."""
    from datasette_vision.images import decode as images  # heavy: Pillow

    if not image:
        raise InvalidArgument("choose an image first")
    # Raises an error if this is not an image.
    small = await context.call(context.vision.decoder.thumbnail, image, KEPT_PIXELS)
    facts = await context.call(images.info, image)
    models = await context.call(context.vision.models)
    futures = [
        context.inference.embed_image(image, str(model["name"]))
        if embeds(model.get("task"))
        else context.inference.classify_image(image, str(model["name"]))
        for model in models
    ]
    written, sentence = fields.get("labels", "").strip(), fields.get("sentence", "").strip()
    labels = labels_of_text(written) if written else ""
    kept = image if len(image) <= KEPT_BYTES else small
    if labels:  # so that _answers() does not wait for them; it reports their errors
        encoders = (str(model["name"]) for model in models if embeds(model.get("task")))
        await outcomes([context.inference.label_set(name, labels) for name in encoders])
    return {
        **await context.call(_answers, context.vision, models, await outcomes(futures), labels, sentence),
        "sentence": sentence,
        "shown": "data:image/webp;base64," + base64.b64encode(small).decode(),
        "kept": base64.b64encode(kept).decode(),
        "note": f"{facts['width']} by {facts['height']} pixels, {facts['format']}, {len(image) / 1000:,.1f} kB",
    }


def _answers(
    vision: Vision, models: list[dict[str, object]], outputs: list[Any], labels: str, sentence: str
) -> dict[str, Any]:
    """Describe what each model says about the image. Errors of one model appear beside the results of the others."""
    from datasette_vision.vectors import embedding as vectors  # heavy: NumPy

    answers: dict[str, Any] = {"classified": [], "zero_shot": [], "similarities": [], "embeddings": {}, "problems": []}
    for model, output in zip(models, outputs, strict=True):
        name = str(model["name"])
        try:
            if isinstance(output, VisionError):
                raise output
            if model["labels"]:
                answers["classified"].append((name, vision.label(output, name, TOP)))
            if not embeds(model["task"]):
                continue
            embedding = vectors.normalise(output)
            answers["embeddings"][name] = vectors.to_blob(embedding)
            if labels:
                answers["zero_shot"].append(
                    (name, vision.score(embedding, *vision.label_set(name, labels), name, None))
                )
            if sentence:
                answers["similarities"].append((name, vectors.cosine(embedding, vision.embed_text(sentence, name))))
        except VisionError as error:
            answers["problems"].append((name, str(error)))
    return answers


def _kept(text: str) -> bytes:
    """Return the image that the page carried, b"" for none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("the image in the page came back damaged: choose it again") from None


def _similar(datasette: Datasette, tables: list[Any], answers: dict[str, Any] | None) -> list[tuple[str, str]]:
    """(name, address) of the searches for rows like the image, in each table, by each model that embedded it."""
    embeddings = answers["embeddings"] if answers else {}
    links = []
    for table in tables:
        for model, column in table.pairs:
            if model in embeddings:
                asked = SearchRequest(embedding=encode_embedding(embeddings[model]), model=model, column=column)
                address = page.search_page_path(datasette, table.database, table.table)
                name = f"{table.table} by {model}" if len(embeddings) > 1 else table.table
                links.append((name, f"{address}?{asked.query_string()}"))
    return links
