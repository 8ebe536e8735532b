"""The page /-/vision: what the installed models make of a picture. It is looked at, answered, and let go."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any

from datasette_vision import __version__
from datasette_vision.errors import InvalidArgument, VisionError
from datasette_vision.plugin import permissions, search_page, uploads
from datasette_vision.plugin.desk import desk_of
from datasette_vision.plugin.responses import RequestError, status_of
from datasette_vision.plugin.search_request import SearchRequest, encode_embedding
from datasette_vision.plugin.searchable import searchable_tables

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request, Response

    from datasette_vision.vision import Vision

TEMPLATE = "vision_playground.html"
TOP = 5
# The picture goes back into the page, so that more can be asked of it without a script: larger ones as a copy.
KEPT_BYTES = 256 * 1024
KEPT_PIXELS = 512


async def playground(datasette: Datasette, request: Request) -> Response:
    """Answer the page, and the pictures that are sent from it. Raises Datasette's Forbidden."""
    from datasette.utils.asgi import Response

    await permissions.ensure(datasette, request.actor, permissions.INFER)
    desk = desk_of(datasette)
    await desk.ready()
    status, error, answers = 200, "", None
    headers: dict[str, str] = {}
    fields: dict[str, str] = {}
    if request.method == "POST":
        try:
            async with uploads.upload(datasette, request) as sent:
                fields = sent.fields
                picture = sent.picture or _kept(fields.get("kept", ""))
                answers = await sent.call(_ask, desk.vision, picture, fields)
        except (VisionError, RequestError) as problem:
            status, headers = status_of(problem)
            error = str(problem)
        headers["cache-control"] = "no-store"  # a picture that somebody sent is nobody else's
    models = await desk.call(desk.vision.models)
    tables = await searchable_tables(datasette, request.actor)
    context = {
        "version": __version__,
        "address": datasette.urls.path("/-/vision"),
        "error": error,
        "answers": answers,
        "labels": fields.get("labels", ""),
        "sentence": fields.get("sentence", ""),
        "models": models,
        "tables": [(table, search_page.path(datasette, table.database, table.table)) for table in tables],
        "similar": _similar(datasette, tables, answers),
    }
    html = await datasette.render_template(TEMPLATE, context, request, view_name="vision_playground")
    return Response.html(html, status=status, headers=headers)


def _ask(vision: Vision, picture: bytes, fields: dict[str, str]) -> dict[str, Any]:
    """Ask every model what it can tell of a picture. Raises InvalidImage, InvalidArgument or InvalidLabels."""
    from datasette_vision import images, vectors  # heavy: NumPy, Pillow

    if not picture:
        raise InvalidArgument("choose a picture first")
    small = images.thumbnail(picture, KEPT_PIXELS, vision.limits)  # raises for what is no picture at all
    labels, sentence = _labels(fields.get("labels", "")), fields.get("sentence", "").strip()
    answers: dict[str, Any] = {"classified": [], "zero_shot": [], "similarities": [], "embeddings": {}, "problems": []}
    for model in vision.models():
        name = str(model["name"])
        try:
            if "error" in model:
                raise VisionError(str(model["error"]))
            if model["labels"]:
                answers["classified"].append((name, vision.classify(picture, name, TOP)))
            if model["task"] == "dual-encoder":
                embedding = vision.embed_image(picture, name)
                answers["embeddings"][name] = vectors.encode(embedding)
                if labels:
                    answers["zero_shot"].append((name, vision.zero_shot(picture, labels, name)))
                if sentence:
                    similarity = vectors.cosine(embedding, vision.embed_text(sentence, name))
                    answers["similarities"].append((name, similarity))
        except VisionError as error:
            answers["problems"].append((name, str(error)))
    kept = picture if len(picture) <= KEPT_BYTES else small
    facts = images.info(picture)
    return {
        **answers,
        "sentence": sentence,
        "shown": "data:image/webp;base64," + base64.b64encode(small).decode(),
        "kept": base64.b64encode(kept).decode(),
        "note": f"{facts['width']} by {facts['height']} pixels, {facts['format']}, {len(picture) / 1000:,.1f} kB",
    }


def _labels(text: str) -> str:
    """Return labels as the JSON that zero_shot() takes, "" for none: JSON itself, or a label a line or comma."""
    text = text.strip()
    if text.startswith(("[", "{")):
        return text
    labels = dict.fromkeys(label.strip() for label in re.split(r"[\n,]", text) if label.strip())
    return json.dumps(list(labels)) if labels else ""


def _kept(text: str) -> bytes:
    """Return the picture that the page carried, b"" for none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("the picture that the page carried came back damaged: choose it again") from None


def _similar(datasette: Datasette, tables: list[Any], answers: dict[str, Any] | None) -> list[tuple[str, str]]:
    """(what, address) of the searches for what is like the picture, in each table by each model that embedded it."""
    embeddings = answers["embeddings"] if answers else {}
    links = []
    for table in tables:
        for column, model in table.sources:
            if model in embeddings:
                asked = SearchRequest(embedding=encode_embedding(embeddings[model]), model=model, column=column)
                address = search_page.path(datasette, table.database, table.table)
                name = f"{table.table} by {model}" if len(embeddings) > 1 else table.table
                links.append((name, f"{address}?{asked.query_string()}"))
    return links
