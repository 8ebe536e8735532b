"""What a request says, whichever way it is written: in its address, as JSON, as a form, or as files in a form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from datasette_vision.plugin.limits import Share
from datasette_vision.plugin.responses import RequestError, too_large

if TYPE_CHECKING:
    from datasette.utils.asgi import Request

CHUNK_TIMEOUT_S = 30.0
# Bodies larger than this are parsed on a thread: this much JSON takes about a millisecond.
INLINE_BYTES = 262_144
MAX_PARTS = 10_000
# Values in JSON take up to 25 times the memory that they take in the body: "{}," becomes 72 bytes. Pictures hold none
# of the characters that are counted, and 1,000 embeddings of 768 floats are below this.
MAX_JSON_VALUES = 1_000_000
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
# Fields that are not ours: the token of Datasette 0.65's forms, and Datasette's own, as in its addresses.
IGNORED = ("csrftoken",)


Offload = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Field:
    """A name and a value. In a form or an address the value is str, or bytes of a file; in JSON, what JSON can say."""

    name: str
    value: Any
    is_json: bool = False


async def read_fields(request: Request, share: Share, offload: Offload) -> list[Field]:
    """Return the fields of a request, in order: those of its address, and of its body when it is posted.

    The body is never read further than it may be long; a large one is parsed by `offload(function, *arguments)`, away
    from the event loop. Raises RequestError or Busy.
    """
    fields = [Field(name, value) for name, value in _pairs(request.query_string)]
    if request.method == "POST":
        media_type, _, _ = request.headers.get("content-type", "").partition(";")
        media_type = media_type.strip().lower()
        if media_type not in (JSON, FORM, MULTIPART):
            raise RequestError(
                415, f"expected a Content-Type of {JSON}, {MULTIPART} or {FORM}, found {media_type or 'none'}"
            )
        body = await read_body(request, share)
        arguments = body, media_type, request.headers.get("content-type", "")
        fields += parse(*arguments) if len(body) <= INLINE_BYTES else await offload(parse, *arguments)
    return [field for field in fields if field.name not in IGNORED and not field.name.startswith("_")]


async def read_body(request: Request, share: Share) -> bytes:
    """Return the body of a request, counted by `share` as it comes in. Raises RequestError or Busy."""
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        share.expect_bytes(int(length))
    chunks = []
    more = True
    while more:
        try:
            message = await asyncio.wait_for(request.receive(), CHUNK_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise RequestError(408, f"nothing more came for {CHUNK_TIMEOUT_S:.0f} seconds") from None
        if message["type"] == "http.disconnect":
            raise RequestError(400, "the client went away")
        chunk = message.get("body", b"")
        share.take_bytes(len(chunk))
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def parse(body: bytes, media_type: str, content_type: str) -> list[Field]:
    """Return the fields of a body. Raises RequestError when it is not what its media type says."""
    if media_type == JSON:
        return [Field(name, value, True) for name, value in parse_json(body).items()]
    if media_type == FORM:
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError:
            raise RequestError(400, "expected a form in UTF-8, found other bytes") from None
        return [Field(name, value) for name, value in _pairs(text)]
    return _parse_multipart(body, content_type)


def parse_json(body: bytes) -> dict[str, Any]:
    """Return the object that a body is, in JSON. Raises RequestError for anything else, NaN included."""
    if len(body) > INLINE_BYTES and sum(map(body.count, (b"{", b"[", b","))) > MAX_JSON_VALUES:
        raise too_large(f"expected at most {MAX_JSON_VALUES:,} values in JSON, found more")
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        detail = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestError(400, f"expected JSON, found a body that is not{detail}") from None
    if not isinstance(value, dict):
        raise RequestError(400, "expected a JSON object, found something else")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_PARTS)
    except ValueError:
        raise RequestError(400, f"expected at most {MAX_PARTS:,} fields, found more") from None


def _parse_multipart(body: bytes, content_type: str) -> list[Field]:
    from python_multipart.exceptions import FormParserError  # not needed at start
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise RequestError(400, "expected a boundary in the Content-Type of a multipart body, found none")
    parts = _Parts()
    try:
        parts.parse(body, boundary)
    except FormParserError as error:
        raise RequestError(400, f"expected a multipart body, found one that is not: {error}") from None
    return parts.fields


class _Parts:
    """Collects the parts of a multipart body, files as bytes: nothing is ever written to a disk."""

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self._header: list[bytes] = [b"", b""]
        self._disposition = b""
        self._data: list[bytes] = []
        self._ended = False

    def parse(self, body: bytes, boundary: bytes) -> None:
        from python_multipart.multipart import MultipartParser

        def begin() -> None:
            self._disposition, self._data = b"", []
            if len(self.fields) >= MAX_PARTS:
                raise RequestError(400, f"expected at most {MAX_PARTS:,} fields, found more")

        def name(data: bytes, start: int, end: int) -> None:
            self._header[0] += data[start:end]

        def value(data: bytes, start: int, end: int) -> None:
            self._header[1] += data[start:end]

        def header() -> None:
            if self._header[0].lower() == b"content-disposition":
                self._disposition = self._header[1]
            self._header = [b"", b""]

        def finish() -> None:
            self._ended = True

        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
                "on_part_end": self._add,
                "on_header_field": name,
                "on_header_value": value,
                "on_header_end": header,
                "on_end": finish,
            },
        )
        parser.write(body)
        parser.finalize()
        if not self._ended:
            raise RequestError(400, "expected a multipart body, found one that ends too early")

    def _add(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise RequestError(400, "expected a name for each part of a multipart body, found one without")
        content: bytes | str = b"".join(self._data)
        if b"filename" not in options:
            try:
                content = content.decode("utf-8")  # type: ignore[union-attr]
            except UnicodeDecodeError:
                raise RequestError(400, "expected fields in UTF-8, found other bytes") from None
        self.fields.append(Field(options[b"name"].decode("utf-8", "replace"), content))
