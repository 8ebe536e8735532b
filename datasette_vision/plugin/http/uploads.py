"""Images uploaded with the forms of our pages. Nothing is stored, not even in a temporary file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasette_vision.plugin.http.bodies import MULTIPART, read_form
from datasette_vision.plugin.http.context import context_of
from datasette_vision.plugin.http.responses import RequestError

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.utils.asgi import Request


@dataclass(frozen=True)
class Upload:
    """The contents of a form: its fields, and the image (empty if there is none)."""

    fields: dict[str, str]
    image: bytes


@asynccontextmanager
async def upload(datasette: Datasette, request: Request) -> AsyncIterator[Upload]:
    """Read a form, within the limits of the API. The block holds its share until the response is made.

    Raises RequestError or Busy.
    """
    context = context_of(datasette)
    await context.ready()
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != MULTIPART:
        raise RequestError(415, f"expected a form of {MULTIPART}")
    with context.limits.share(context.clients.name(request)) as share:
        found = await read_form(request, share, context.call, MULTIPART)
        share.take_inputs(images=1)
        files = [field.value for field in found if isinstance(field.value, bytes) and field.value]
        fields = {field.name: field.value for field in found if isinstance(field.value, str)}
        yield Upload(fields, files[0] if files else b"")
