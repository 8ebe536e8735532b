"""What an HTTP request may hold: bodies of every media type, inputs, parameters, and the arguments of a search."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote_plus, urlencode

import httpx
import pytest
from datasette.utils.asgi import Request
from hypothesis import example
from hypothesis import strategies as st

from datasette_vision.config.settings import Config
from datasette_vision.errors import InvalidArgument, InvalidInput, VisionError
from datasette_vision.plugin.api.openai import read_input
from datasette_vision.plugin.http.bodies import FORM, INLINE_BYTES, JSON, MULTIPART, Field, read_fields
from datasette_vision.plugin.http.inputs import EMBEDDING, IMAGE, TEXT, input_of, read_inputs
from datasette_vision.plugin.http.limits import Limits
from datasette_vision.plugin.http.parameters import (
    ENCODING_FORMAT,
    K_PARAMETER,
    LABELS,
    MODEL_PARAMETER,
    quoted_value,
    refuse_unknown,
)
from datasette_vision.plugin.http.responses import RequestError
from datasette_vision.plugin.search.request import SearchRequest
from tests.fuzz import strategies as own
from tests.fuzz.properties import assert_linear, fuzz

KINDS = (TEXT, IMAGE, EMBEDDING)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


class Reader:
    """Reads bodies as a route does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def __call__(
        self, chunks: list[bytes], content_type: str, query: bytes = b"", length: str | None = None
    ) -> list[Field]:
        left = list(chunks)

        async def receive() -> dict[str, Any]:
            chunk = left.pop(0) if left else b""
            return {"type": "http.request", "body": chunk, "more_body": bool(left)}

        async def offload(function: Any, *arguments: Any) -> Any:
            return await asyncio.to_thread(function, *arguments)

        headers = [(b"content-type", content_type.encode("latin-1", "replace"))]
        if length is not None:
            headers.append((b"content-length", length.encode("latin-1", "replace")))
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": query, "headers": headers}

        async def read() -> list[Field]:
            limits = Limits(Config(max_request_mb=2))
            with limits.share("a") as share:
                return await read_fields(Request(scope, receive), share, offload)

        return self.loop.run_until_complete(read())


@pytest.fixture(scope="module")
def read(loop: asyncio.AbstractEventLoop) -> Reader:
    return Reader(loop)


def refused(error: Exception) -> None:
    """An error that its sender has to mend, and can understand."""
    assert isinstance(error, (RequestError, VisionError))
    status = error.status if isinstance(error, RequestError) else error.http_status
    assert 400 <= status < 500
    assert 5 < len(str(error)) < 400


BOUNDARY = "b"
CONTENT_TYPES = st.sampled_from([
    JSON, FORM, f"{MULTIPART}; boundary={BOUNDARY}", f"{JSON}; charset=utf-16",
        f'{MULTIPART};boundary="b"', MULTIPART,
    f"{MULTIPART}; boundary=", f"{MULTIPART}; boundary=" + "x" * 300, f"{FORM};charset=\xff", "text/plain", "", ";",
    "APPLICATION/JSON",
])  # fmt: skip
PARTS = st.sampled_from([
    b"--b\r\n", b"--b--\r\n", b"--b", b"\r\n", b"\n", b'Content-Disposition: form-data; name="text"\r\n\r\n',
    b"\r\n\r\n",
    b'Content-Disposition: form-data; name="image"; filename="x.png"\r\n', b"Content-Disposition: form-data\r\n",
    b"content-disposition:",
    b'Content-Disposition: form-data; name*=utf-8\'\'a%ff; filename*0="x"\r\n', b"Content-Type: image/png\r\n",
    b"X: " + b"y" * 300 + b"\r\n",
    b"\0", b"\xff", b"--", b"text=", b"&", b"=", b"%", b"%zz", b"+", b'{"text":', b"[", b"]", b"}", b'"', b",", b"a",
])  # fmt: skip
BODIES = st.lists(PARTS | st.binary(max_size=12), max_size=25).map(b"".join)


@fuzz(
    BODIES
    | own.json_texts(st.dictionaries(own.texts, own.json_values)).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    ),
    CONTENT_TYPES,
    st.binary(max_size=20),
    st.sampled_from([None, "0", "5", "-1", "1e3", "\xb2", "99999999999999999999", "a"]),
    weight=3,
)
@example(b"", JSON, b"", "\xb2")
def test_any_body(read: Reader, body: bytes, content_type: str, query: bytes, length: str | None) -> None:
    try:
        fields = read([body], content_type, query, length)
    except (RequestError, VisionError) as error:
        refused(error)
        return
    for field in fields:
        assert isinstance(field.name, str)
        quoted_value(field.value)


@fuzz(st.lists(st.tuples(own.plain_texts, own.plain_texts), max_size=6), st.data())
def test_the_same_fields_however_they_are_sent_and_cut(
    read: Reader, pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    expected = [Field(name, value) for name, value in pairs if name != "csrftoken" and not name.startswith("_")]
    encoded = urlencode(pairs).encode()
    assert read([b""], FORM, encoded) == expected
    ways = [(encoded, FORM)]
    if expected and not any(not name.isprintable() or set(name) & set('"\\') for name, _ in pairs):
        message = httpx.Request("POST", "http://x", files=[(name, (None, value)) for name, value in pairs])
        ways.append((message.read(), message.headers["content-type"]))
    for body, content_type in ways:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
        chunks = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        assert read(chunks, content_type) == expected


@fuzz(st.binary(max_size=200), st.sampled_from(["x.png", 'a"b', "", "\u732b.jpg"]), st.data())
def test_files_come_as_they_were_sent(read: Reader, content: bytes, name: str, data: st.DataObject) -> None:
    message = httpx.Request("POST", "http://x", files={"image": (name or "x", content)})
    body = message.read()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    chunks = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert read(chunks, message.headers["content-type"]) == [Field("image", content)]


@fuzz(st.dictionaries(own.plain_texts, own.json_values, max_size=5))
def test_json_comes_as_it_was_sent(read: Reader, value: dict[str, Any]) -> None:
    text = json.dumps(value)
    try:
        fields = read([text.encode()], JSON)
    except RequestError as error:
        assert "NaN" in text or "Infinity" in text or any(len(part) > 4000 for part in text.split()), error
        return
    named = {name: inner for name, inner in value.items() if name != "csrftoken" and not name.startswith("_")}
    assert json.dumps({field.name: field.value for field in fields}) == json.dumps(named)


@fuzz(
    st.sampled_from([JSON, FORM, f"{MULTIPART}; boundary=b"]),
    st.sampled_from(
        [b"", b'{"a":', b'{"a":"', b"--b\r\n", b"a=", b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n']
    ),
    PARTS,
    weight=1.5,
)
def test_reading_a_body_takes_time_in_proportion(
    read: Reader, content_type: str, prefix: bytes, repeated: bytes
) -> None:
    def work(count: int) -> None:
        try:
            read([prefix + repeated * count], content_type)
        except (RequestError, VisionError) as error:
            refused(error)

    assert_linear(work, 100_000 // len(repeated))


# What the fields mean

names = st.sampled_from([*KINDS, "inputs", "query", "model", "k", "labels", "encoding_format"]) | own.texts
json_fields = st.builds(
    Field, names, own.json_values | own.float32s(8) | st.sampled_from(["data:,x", "AAAA"]), st.just(True)
)
form_fields = st.builds(Field, names, own.texts | st.binary(max_size=20), st.just(False))


@fuzz(st.lists(json_fields | form_fields, max_size=5), weight=2)
def test_fields(fields: list[Field]) -> None:
    check_fields(fields)


def check_fields(fields: list[Field]) -> None:
    attempts = [
        lambda: read_inputs(fields, KINDS),
        lambda: read_inputs(fields, (IMAGE,)),
        lambda: refuse_unknown(fields, KINDS),
    ]
    attempts += [
        lambda parameter=parameter: parameter.value(fields)
        for parameter in (MODEL_PARAMETER, K_PARAMETER, LABELS, ENCODING_FORMAT)
    ]
    for field in fields:
        attempts.append(lambda field=field: read_input(field.value))
        attempts.append(lambda field=field: input_of(field.value, KINDS, "query"))
    for attempt in attempts:
        try:
            found = attempt()
        except InvalidInput as error:
            refused(error)
            continue
        for item in found if isinstance(found, list) else []:
            assert item.kind in KINDS
            assert isinstance(item.content, (str, bytes))
            if item.kind == EMBEDDING:
                assert isinstance(item.content, bytes)


@fuzz(own.depths, st.sampled_from([("[", "]"), ('{"text":', "}")]), names, st.booleans())
def test_values_as_deep_as_can_be_read(
    read: Reader, depth: int, brackets: tuple[str, str], name: str, is_large: bool
) -> None:
    """What is read, on a thread where it is large, others deeper in the stack can pass on and quote."""
    opening, closing = brackets
    body = f"{{{json.dumps(name)}: {own.nested(depth, opening, closing)}}}{' ' * INLINE_BYTES * is_large}".encode()
    try:
        fields = read([body], JSON)
    except RequestError as error:
        refused(error)
        return
    check_fields(fields)


# Searches

NUMBERS = st.sampled_from(["0", "1", "-1", "0.5", "1e3", "1e-7", "nan", "inf", "-inf", "1_0", "²", "0x1",
    "max", "1000000", "1001",
                           "00000000000000000001" + "9" * 30, "0" * 5000 + "1", "9" * 5000, "\u0661", " 1", "1 ",
                           "", "-0", "1e400"]) | own.FLOATS.map(repr)  # fmt: skip
ROWS = own.texts | st.builds("{}:{}".format, st.sampled_from(["1", "a~2Fb", "1,2", ""]), NUMBERS)
search_arguments = st.lists(
    st.tuples(st.sampled_from(["_q_weight", "_threshold", "_page", "_size"]), NUMBERS)
    | st.tuples(st.sampled_from(["_like", "_unlike"]), ROWS)
    | st.tuples(
        st.sampled_from(["q", "_not", "_model", "_column", "name__contains", "_where", "_search", "_shape"]),
        own.any_text,
    )
    | st.tuples(
        st.just("_embedding"),
        own.texts | own.embeddings(8).map(lambda blob: __import__("base64").b64encode(blob).decode()),
    )
    | st.tuples(own.texts, own.texts),
    max_size=8,
)


@fuzz(search_arguments, weight=3)
@example([("_page", "00000000000000000001" + "9" * 30)])
@example([("_size", "0" * 5000 + "1")])
def test_searches(arguments: list[tuple[str, str]]) -> None:
    try:
        found = SearchRequest.read(arguments)
    except InvalidArgument as error:
        refused(error)
        return
    assert 1 <= found.page <= 1_000_000
    assert 1 <= found.size <= 1000
    assert all(math.isfinite(example.weight) and example.weight for example in found.examples)
    assert found.threshold is None or 0 < found.threshold <= 1000
    # Written and read it is the same search, to the six digits of its weights; and from then on the very same.
    again = SearchRequest.read(found.arguments())
    assert (again.q, again.but_not, again.embedding, again.filters) == (
        found.q,
        found.but_not,
        found.embedding,
        found.filters,
    )
    assert (again.page, again.size, again.model, again.column) == (found.page, found.size, found.model, found.column)
    assert [each.row for each in again.examples] == [each.row for each in found.examples]
    for before, after in zip(found.examples, again.examples, strict=True):
        assert after.weight == pytest.approx(before.weight, rel=1e-5)
    assert SearchRequest.read(again.arguments()) == again
    try:
        query = again.query_string()
    except UnicodeEncodeError:  # half a character: no address holds one
        assert any("\ud800" <= letter <= "\udfff" for pair in again.arguments() for text in pair for letter in text)
    else:
        assert SearchRequest.read(parse_qsl(query, keep_blank_values=True)) == again
        quote_plus(query)
