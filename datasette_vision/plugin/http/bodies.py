"""Reads the fields of a request from its query string, JSON, a form, or a form with files.

No body takes more memory than the limits allow, whatever it contains. JSON can grow to forty times its size when
parsed, an escaped form to eighty times. So the memory for the values of a body is estimated before it is parsed, and
held by the request's share.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from datasette_vision.plugin.http.limits import REQUEST_BYTES, Share
from datasette_vision.plugin.http.responses import RequestError, too_large
from datasette_vision.plugin.http.transfer_rate import LEAST_RATE, PATIENCE_S, Pace, TooSlow

if TYPE_CHECKING:
    from datasette.utils.asgi import Request

# Larger bodies are parsed on a thread, one at a time. Parsing this much JSON takes about a millisecond.
INLINE_BYTES = 262_144
MAX_PARTS = 10_000
# An urlencoded form holds texts. Images belong in multipart/form-data, where they need no escaping.
MAX_FORM_BYTES = 1_000_000
# The headers of one part of a multipart body, which contain its name.
MAX_HEADER_BYTES = 8_192
# RFC 2046, section 5.1.1
MAX_BOUNDARY = 70
# The memory that a value in JSON takes at most on CPython 3.10 to 3.14, by its punctuation character: a float and its
# place in an array; an entry of an object, while the object grows; an object or array; half a string, without its
# characters.
JSON_BYTES = {b",": 40, b":": 100, b"{": 136, b"[": 64, b'"': 30}
# The memory that a field of a form takes, without its characters.
FIELD_BYTES = 300
# No request needs more than five levels.
MAX_JSON_DEPTH = 50
# Parsing escapes holds the GIL: a million takes 25 ms. 32 MB of base64 in lines of 64 characters, each ending in \r\n,
# has a million.
MAX_JSON_ESCAPES = 2_000_000
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
# Fields to ignore: the CSRF token of Datasette 0.65's forms, and Datasette's own arguments.
IGNORED = ("csrftoken",)
ESCAPED = re.compile(rb"(?:%[0-9A-Fa-f]{2})+")
# Text is unescaped in pieces of this size: the strings that re.sub() joins take fifty times as much.
ESCAPED_STEP = 16_384
# Escapes of characters beyond Latin-1, and of surrogate pairs, beyond the basic plane.
WIDE_ESCAPE = re.compile(rb"\\u(?!00)")
WIDER_ESCAPE = re.compile(rb"\\u[dD][89abAB]")
# The first bytes of these characters in UTF-8.
WIDE_BYTE = re.compile(rb"[\xc4-\xff]")
WIDER_BYTE = re.compile(rb"[\xf0-\xff]")


Offload = Callable[..., Awaitable[Any]]
Body: TypeAlias = bytes | bytearray


@dataclass(frozen=True, slots=True)
class Field:
    """A name and a value. In a form or a query string the value is str, or bytes for a file. In JSON it is any JSON
    value.
    """

    name: str
    value: Any
    is_json: bool = False


async def read_fields(request: Request, share: Share, offload: Offload) -> list[Field]:
    """Return the fields of a request, in order: those of its query string, and those of its body if it is a POST.

    A large body is parsed by `offload(function, *arguments)`, away from the event loop. Raises RequestError or Busy.
    """
    fields = [Field(name, value) for name, value in _pairs(request.query_string.encode())]
    if request.method == "POST":
        content_type = request.headers.get("content-type", "")
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type not in (JSON, FORM, MULTIPART):
            raise RequestError(
                415, f"expected a Content-Type of {JSON}, {MULTIPART} or {FORM}, found {media_type[:100] or 'none'}"
            )
        fields += await read_form(request, share, offload, media_type)
    return [field for field in fields if field.name not in IGNORED and not field.name.startswith("_")]


async def read_form(request: Request, share: Share, offload: Offload, media_type: str) -> list[Field]:
    """Return the fields of a body of this media type. Raises RequestError or Busy."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise RequestError(415, f"expected a body without a Content-Encoding, found {encoding[:100]}")
    body = await read_body(request, share, media_type)
    try:
        is_large = len(body) > INLINE_BYTES
        taken = await offload(memory_of, body, media_type) if is_large else memory_of(body, media_type)
        if taken > share.max_held_bytes:
            raise too_large(
                f"expected {media_type} whose values take at most {share.max_held_bytes:,} bytes of memory, found"
                f" {len(body):,} bytes that would take {taken:,}: send less at a time, and images as {MULTIPART}"
            )
        share.hold(max(share.bytes, taken + REQUEST_BYTES))
        arguments = body, media_type, request.headers.get("content-type", "")
        if not is_large:
            return parse_body(*arguments)
        # The memory that parsing needs is bounded, because one body is parsed at a time.
        async with share.parsing:
            fields: list[Field] = await offload(parse_body, *arguments)
        return fields
    finally:
        with contextlib.suppress(BufferError):  # cancelled, while a thread still reads it
            body.clear()


async def read_body(request: Request, share: Share, media_type: str) -> bytearray:
    """Read the body of a request. `share` holds its memory as it arrives.

    Raises RequestError if it is too large or too slow, and Busy if there is no memory for it.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        _expect(int(length[:20]), media_type, share)
    body = bytearray()
    share.hold(REQUEST_BYTES)
    pace = Pace(share.patience_s, share.clock)
    more = True
    while more:
        try:
            message = await pace.wait(request.receive())
            chunk = message.get("body", b"")
            pace.moved(len(chunk))
        except TooSlow:
            raise RequestError(
                408,
                f"expected a body that comes at {LEAST_RATE:,} bytes a second or more, found one that is"
                f" {PATIENCE_S:g} seconds late",
            ) from None
        if message["type"] == "http.disconnect":
            raise RequestError(400, "the client went away")
        _expect(len(body) + len(chunk), media_type, share)
        share.hold(share.bytes + len(chunk))
        body += chunk
        more = message.get("more_body", False)
    return body


def _expect(count: int, media_type: str, share: Share) -> None:
    """Raise a 413 for a body that is larger than its kind may be."""
    share.expect_bytes(count)
    if media_type == FORM and count > MAX_FORM_BYTES:
        raise too_large(
            f"expected at most {MAX_FORM_BYTES:,} bytes of {FORM}, found more: send images as {MULTIPART} or {JSON}"
        )


def memory_of(body: Body, media_type: str) -> int:
    """Return the maximum memory in bytes of the values of a body, once it is parsed."""
    if media_type == JSON:
        return len(body) * _width(body) + sum(body.count(sign) * size for sign, size in JSON_BYTES.items())
    if media_type == FORM:
        # A character takes up to 4 bytes if its text has one that needs them.
        return 4 * len(body) + FIELD_BYTES * (body.count(b"&") + 1)
    # Text that is not ASCII is limited like that of a form.
    parts = min(MAX_PARTS, body.count(b"\n--"))
    return len(body) + 3 * min(len(body), MAX_FORM_BYTES) + FIELD_BYTES * parts


def _width(body: Body) -> int:
    """Return the bytes per character of a str that holds a whole JSON body."""
    if body.isascii() and b"\\u" not in body:
        return 1
    if WIDER_BYTE.search(body) or WIDER_ESCAPE.search(body):
        return 4
    return 2 if WIDE_BYTE.search(body) or WIDE_ESCAPE.search(body) else 1


def parse_body(body: Body, media_type: str, content_type: str) -> list[Field]:
    """Return the fields of a body. Raises RequestError if it does not match its media type."""
    if media_type == JSON:
        values = parse_json(body)
        if len(values) > MAX_PARTS:
            raise RequestError(400, f"expected at most {MAX_PARTS:,} fields, found {len(values):,}")
        return [Field(name, value, True) for name, value in values.items()]
    if media_type == FORM:
        try:
            return [Field(name, value) for name, value in _pairs(body, "strict")]
        except UnicodeDecodeError:
            raise RequestError(400, "expected a form in UTF-8, found other bytes") from None
    return _parse_multipart(body, content_type)


def parse_json(body: Body) -> dict[str, Any]:
    """Return the JSON object in a body. Raises RequestError for anything else, NaN included."""
    escapes = body.count(b"\\")
    if escapes > MAX_JSON_ESCAPES:
        raise RequestError(400, f"expected JSON with at most {MAX_JSON_ESCAPES:,} escapes, found {escapes:,}")
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        detail = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestError(400, f"expected JSON, found a body that is not{detail}") from None
    if not isinstance(value, dict):
        raise RequestError(400, "expected a JSON object, found something else")
    _check_depth(body, value)
    return value


def _check_depth(body: Body, value: dict[str, Any]) -> None:
    """Raise RequestError for JSON so deep that it could not be written again deeper in the stack."""
    if body.count(b"{") + body.count(b"[") <= MAX_JSON_DEPTH:
        return
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise RequestError(400, f"expected JSON of at most {MAX_JSON_DEPTH} levels, found more")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _pairs(query: Body, errors: str = "replace") -> list[tuple[str, str]]:
    """Return the names and values of an urlencoded text, like urllib.parse.parse_qsl(), which takes 80 times the memory
    for escapes.

    `errors` says how to handle bytes that are not UTF-8, in the text itself and not in its escapes.
    """
    if query.count(b"&") >= MAX_PARTS:
        raise RequestError(400, f"expected at most {MAX_PARTS:,} fields, found more")
    pairs = []
    for pair in query.split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            pairs.append((_unescaped(name, errors), _unescaped(value, errors)))
    return pairs


def _unescaped(text: Body, errors: str) -> str:
    text = text.replace(b"+", b" ")
    if b"%" not in text:
        return text.decode("utf-8", errors)
    text.decode("utf-8", errors)
    plain = bytearray()
    start = 0
    while start < len(text):
        end = start + ESCAPED_STEP
        cut = text.rfind(b"%", end - 2, end)
        if end < len(text) and cut != -1:
            end = cut  # keep an escape whole
        plain += ESCAPED.sub(lambda run: bytes.fromhex(run[0].replace(b"%", b"").decode()), text[start:end])
        start = end
    return plain.decode("utf-8", "replace")


def _parse_multipart(body: Body, content_type: str) -> list[Field]:
    from python_multipart.exceptions import FormParserError  # not needed at start
    from python_multipart.multipart import parse_options_header

    boundary = parse_options_header(content_type[:MAX_HEADER_BYTES])[1].get(b"boundary")
    if not boundary:
        raise RequestError(400, "expected a boundary in the Content-Type of a multipart body, found none")
    if len(boundary) > MAX_BOUNDARY:
        raise RequestError(
            400,
            f"expected a multipart body whose boundary has at most {MAX_BOUNDARY} characters, found {len(boundary)}",
        )
    parts = _Parts()
    try:
        parts.parse(body, boundary)
    except FormParserError as error:
        raise RequestError(400, f"expected a multipart body, found one that is not: {error}") from None
    return parts.fields


class _Parts:
    """Collects the parts of a multipart body, files as bytes. Nothing is written to disk."""

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self._header = (bytearray(), bytearray())
        self._header_bytes = 0
        self._disposition = b""
        self._data: list[bytes] = []
        self._ended = False
        self._wide_bytes = 0

    def parse(self, body: Body, boundary: bytes) -> None:
        from python_multipart.multipart import MultipartParser

        def begin() -> None:
            self._disposition, self._data, self._header_bytes = b"", [], 0
            if len(self.fields) >= MAX_PARTS:
                raise RequestError(400, f"expected at most {MAX_PARTS:,} fields, found more")

        def written(place: int) -> Callable[[bytes, int, int], None]:
            def write(data: bytes, start: int, end: int) -> None:
                self._header_bytes += end - start
                if self._header_bytes > MAX_HEADER_BYTES:
                    raise RequestError(
                        400, f"expected at most {MAX_HEADER_BYTES:,} bytes of headers in a part, found more"
                    )
                self._header[place].extend(data[start:end])

            return write

        def header() -> None:
            name, value = self._header
            if name.lower() == b"content-disposition":
                self._disposition = bytes(value)
            name.clear()
            value.clear()

        def finish() -> None:
            self._ended = True

        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_part_data": lambda data, start, end: self._data.append(bytes(memoryview(data)[start:end])),
                "on_part_end": self._add,
                "on_header_field": written(0),
                "on_header_value": written(1),
                "on_header_end": header,
                "on_end": finish,
            },
        )
        parser.write(body)  # type: ignore[arg-type]  # it reads a bytearray as well, and copies nothing
        parser.finalize()
        if not self._ended:
            raise RequestError(400, "expected a multipart body, found one that ends too early")

    def _add(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise RequestError(400, "expected a name for each part of a multipart body, found one without")
        content = b"".join(self._data)
        self._data = []
        value = content if b"filename" in options else self._text(content)
        self.fields.append(Field(options[b"name"].decode("utf-8", "replace"), value))

    def _text(self, content: bytes) -> str:
        if not content.isascii():
            self._wide_bytes += len(content)
            if self._wide_bytes > MAX_FORM_BYTES:
                raise too_large(
                    f"expected at most {MAX_FORM_BYTES:,} bytes of text in {MULTIPART}, other than ASCII, found more:"
                    f" send texts as {JSON}"
                )
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise RequestError(400, "expected fields in UTF-8, found other bytes") from None
