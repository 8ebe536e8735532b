"""bodies.py: the same fields out of every way to write them, and nothing worse than a 400 out of anything else."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any
from urllib.parse import parse_qsl, unquote

import httpx
import pytest
from datasette.utils.asgi import Request
from hypothesis import given
from hypothesis import strategies as st

from datasette_vision.config.settings import Config
from datasette_vision.errors import Busy
from datasette_vision.plugin.http.bodies import (
    ESCAPED_STEP,
    FORM,
    INLINE_BYTES,
    JSON,
    MAX_HEADER_BYTES,
    MAX_JSON_ESCAPES,
    MULTIPART,
    Field,
    memory_of,
    parse_body,
    read_fields,
)
from datasette_vision.plugin.http.limits import REQUEST_BYTES, Limits
from datasette_vision.plugin.http.responses import RequestError


class Sender:
    """A client that sends a body in chunks, and notes how much of it was asked for."""

    def __init__(self, *chunks: bytes, then: str = "http.request") -> None:
        self.chunks = list(chunks)
        self.sent = 0
        self.then = then

    async def __call__(self) -> dict[str, Any]:
        if not self.chunks:
            return {"type": self.then}
        chunk = self.chunks.pop(0)
        self.sent += len(chunk)
        more = bool(self.chunks) or self.then != "http.request"
        return {"type": "http.request", "body": chunk, "more_body": more}


def request(sender: Sender, content_type: str | None = JSON, query: str = "", **headers: str) -> Request:
    pairs = {**headers, **({"content-type": content_type} if content_type else {})}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in pairs.items()],
    }
    return Request(scope, sender)


async def offload(function: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


async def read(sender: Sender, *arguments: Any, limits: Limits | None = None, **headers: str) -> list[Field]:
    with (limits or Limits(Config())).share("a") as share:
        return await read_fields(request(sender, *arguments, **headers), share, offload)


@pytest.mark.asyncio
async def test_the_same_fields_in_every_form() -> None:
    as_form = await read(Sender(b"text=a+b&text=%C3%A9&k=5"), FORM)
    message = httpx.Request(
        "POST", "http://x", files=[("text", (None, "a b")), ("text", (None, "é")), ("k", (None, "5"))]
    )
    as_multipart = await read(Sender(message.read()), message.headers["content-type"])
    in_address = await read(Sender(b"{}"), JSON, "text=a+b&text=%C3%A9&k=5&_shape=x&csrftoken=y")
    assert as_form == as_multipart == in_address == [Field("text", "a b"), Field("text", "é"), Field("k", "5")]
    as_json = await read(Sender('{"text": ["a b", "é"], "k": 5}'.encode()), "application/json; charset=utf-8")
    assert as_json == [Field("text", ["a b", "é"], True), Field("k", 5, True)]


@pytest.mark.asyncio
async def test_files_are_bytes_whatever_is_in_them() -> None:
    content = bytes(range(256)) * 3 + b"\r\n--boundary\r\n"
    message = httpx.Request("POST", "http://x", files={"image": ("a b.png", content), "empty": ("e", b"")})
    body = message.read()
    fields = await read(
        Sender(*(body[start : start + 7] for start in range(0, len(body), 7))), message.headers["content-type"]
    )
    assert fields == [Field("image", content), Field("empty", b"")]


def test_as_long_as_the_headers_of_a_part_may_be() -> None:
    left = MAX_HEADER_BYTES - len('Content-Dispositionform-data; name="a"' + "XYZ") - 2 * 2700
    head = b'name="a"\r\nX: ' + b"x" * 2700 + b"\r\nY: " + b"y" * 2700 + b"\r\nZ: "
    body, longer = (part(head + b"z" * length, b"b") + b"--x--\r\n" for length in (left, left + 1))
    assert parse_body(body, MULTIPART, f"{MULTIPART}; boundary=x") == [Field("a", "b")]
    with pytest.raises(RequestError, match=r"expected at most 8,192 bytes of headers in a part, found more"):
        parse_body(longer, MULTIPART, f"{MULTIPART}; boundary=x")


@pytest.mark.asyncio
async def test_a_large_body_is_parsed_away_from_the_event_loop() -> None:
    called = []

    async def noted(function: Any, *arguments: Any) -> Any:
        called.append(function)
        return function(*arguments)

    with Limits(Config()).share("a") as share:
        sender = Sender(b'{"text": "' + b"x" * INLINE_BYTES + b'"}')
        fields = await read_fields(request(sender), share, noted)
    assert called == [memory_of, parse_body]
    assert len(fields[0].value) == INLINE_BYTES


BAD = [
    (JSON, b"", "expected JSON"),
    (JSON, b"[]", "expected a JSON object"),
    (JSON, b'{"a": NaN}', "expected JSON"),
    (JSON, b'{"a": \xff}', "expected JSON"),
    (JSON, b"[" * 100_000, "expected JSON"),
    (JSON, b'{"a": ' + b"9" * 5000 + b"}", "expected JSON"),
    (FORM, b"\xff", "expected a form in UTF-8"),
    (JSON, '{"a": "b"}'.encode("utf-16"), "expected JSON"),
    (JSON, b"{" + b",".join(b'"%d":1' % number for number in range(10_001)) + b"}", "expected at most 10,000 fields"),
    (FORM, b"a&" * 10_001, "expected at most 10,000 fields"),
    (MULTIPART, b"", "expected a boundary"),
    (f"{MULTIPART}; boundary={'x' * 71}", b"", "expected a multipart body whose boundary has at most 70 characters"),
    (f"{MULTIPART}; boundary={'x' * 1000}", b"", "expected a multipart body"),
    (f"{MULTIPART}; boundary=x", b"--x\r\nA" + b"a" * 10_000 + b": b\r\n\r\n\r\n--x--", "header"),
    (f"{MULTIPART}; boundary=x", b"--x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n\r\n--x--", "header"),
    (f"{MULTIPART}; boundary=x", b"", "ends too early"),
    (f"{MULTIPART}; boundary=x", b"nonsense", "expected a multipart body"),
    (f"{MULTIPART}; boundary=x", b"--x\r\n\r\nno name\r\n--x--\r\n", "expected a name"),
    (f"{MULTIPART}; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ncut', "ends too early"),
    (
        f"{MULTIPART}; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--x--\r\n',
        "expected fields in UTF-8",
    ),
    (
        f"{MULTIPART}; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 10_001 + b"--x--\r\n",
        "expected at most 10,000 fields",
    ),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("content_type", "body", "message"), BAD)
async def test_bad_bodies(content_type: str, body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        await read(Sender(body), content_type)
    assert refusal.value.status == 400


def part(head: bytes, content: bytes) -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + content + b"\r\n"


TEN = 10_000
SIZE = 300_000
EMOJI = "\U0001f600".encode()
# Bodies whose values are many times as large as they are, and plain ones.
GROWING: dict[str, tuple[str, bytes]] = {
    "plain form": (FORM, b"text=" + b"A" * SIZE),
    "escapes": (FORM, b"text=" + b"%41" * TEN * 10),
    "escapes apart": (FORM, b"text=" + b"%41a" * TEN * 10),
    "plus signs": (FORM, b"text=" + b"+" * SIZE),
    "wide form": (FORM, b"text=" + b"A" * SIZE + EMOJI),
    "escaped wide form": (FORM, b"text=" + b"A" * SIZE + b"%F0%9F%98%80"),
    "tiny fields": (FORM, b"a=&" * (TEN - 1)),
    "one string": (JSON, b'{"image":"' + b"A" * SIZE + b'"}'),
    "wide string": (JSON, b'{"text":"' + b"A" * SIZE + EMOJI + b'"}'),
    "wide string of two bytes": (JSON, b'{"text":"' + b"A" * SIZE + "\u4e00".encode() + b'"}'),
    "escaped wide string": (JSON, b'{"text":"' + b"A" * SIZE + b'\\ud83d\\ude00"}'),
    "escaped string of two bytes": (JSON, b'{"text":"' + b"A" * SIZE + b'\\u4E00"}'),
    "escaped line ends": (JSON, b'{"text":"' + b"\\n" * SIZE + b'"}'),
    "objects": (JSON, b'{"inputs":[' + b"{}," * TEN * 5 + b"1]}"),
    "objects of one": (JSON, b'{"inputs":[' + b'{"a":1},' * TEN * 5 + b"1]}"),
    "objects of their own keys": (
        JSON, b'{"inputs":[' + b",".join(b'{"%x":1}' % number for number in range(TEN * 5)) + b"]}"
    ),
    "keys": (JSON, b'{"a":{' + b",".join(b'"%x":1' % number for number in range(TEN * 5)) + b"}}"),
    "arrays": (JSON, b'{"inputs":[' + b"[]," * TEN * 5 + b"1]}"),
    "arrays of one": (JSON, b'{"inputs":[' + b"[1]," * TEN * 5 + b"1]}"),
    "strings": (JSON, b'{"inputs":[' + b'"ab",' * TEN * 5 + b"1]}"),
    "strings of two bytes": (JSON, b'{"inputs":[' + '"\u4e00\u4e00",'.encode() * TEN * 5 + b"1]}"),
    "floats": (JSON, b'{"inputs":[' + b"0.5," * TEN * 5 + b"1]}"),
    "whole numbers": (JSON, b'{"inputs":[' + b"12345678901234567890," * TEN + b"1]}"),
    "a long number": (JSON, b'{"a":0.' + b"1" * SIZE + b"}"),
    "the same key again": (JSON, b"{" + b'"a":"bcd",' * TEN * 5 + b'"a":1}'),
    "a file": (MULTIPART, part(b'name="image"; filename="a"', b"A" * SIZE) + b"--x--\r\n"),
    "a file of line ends": (MULTIPART, part(b'name="image"; filename="a"', b"\r\n-" * TEN * 10) + b"--x--\r\n"),
    "files": (MULTIPART, part(b'name="image"; filename="a"', b"A") * (TEN - 1) + b"--x--\r\n"),
    "texts": (MULTIPART, part(b'name="text"', EMOJI) * (TEN - 1) + b"--x--\r\n"),
    "a wide text": (MULTIPART, part(b'name="text"', b"A" * SIZE + EMOJI) + b"--x--\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", GROWING)
def test_the_memory_of_a_body_is_known_before_it_is_parsed(name: str) -> None:
    media_type, body = GROWING[name]
    parse_body(body, media_type, f"{media_type}; boundary=x")  # what is imported and cached at the first use
    known = memory_of(body, media_type)
    tracemalloc.start()
    try:
        fields = parse_body(body, media_type, f"{media_type}; boundary=x")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fields
    assert held <= known + REQUEST_BYTES
    # Beside the values, the text of the body as one str, and another copy of what is being read.
    width = 4 if "wide" in name else 2 if "two bytes" in name else 1
    assert peak <= known + (width + 1) * len(body) + 100_000


@pytest.mark.parametrize("letter", ["A", "é", "\\u00e9"])
def test_a_text_of_latin_letters_takes_no_more_than_its_body(letter: str) -> None:
    body = f'{{"text":"{letter * SIZE}"}}'.encode()
    assert len(body) <= memory_of(body, JSON) < len(body) + 1000


@pytest.mark.asyncio
async def test_json_that_would_grow_in_memory() -> None:
    for value in (b"{},", b"[],", b"1,", b'"",'):
        with pytest.raises(RequestError, match="expected application/json whose values take at most 48,000") as refusal:
            await read(Sender(b'{"inputs": [' + value * 1_200_000 + b"1]}"))
        assert refusal.value.status == 413
    with pytest.raises(RequestError, match="whose values take at most 48,000,000 bytes of memory") as refusal:
        await read(Sender(b'{"text": "' + b"A" * 12_000_000 + EMOJI + b'"}'))
    assert refusal.value.status == 413
    numbers = b",".join([b"0.123456"] * 768)
    [field] = await read(Sender(b'{"inputs": [' + b",".join([b'{"embedding": [' + numbers + b"]}"] * 1000) + b"]}"))
    assert len(field.value) == 1000


@pytest.mark.asyncio
async def test_a_form_that_should_have_been_multipart() -> None:
    sender = Sender(*[b"text=" + b"%41" * 30_000] * 12)
    with pytest.raises(RequestError, match=r"at most 1,000,000 bytes of application/x-www.*multipart") as refusal:
        await read(sender, FORM)
    assert refusal.value.status == 413
    assert sender.sent < 1_100_000
    sender = Sender(b"x")
    with pytest.raises(RequestError, match="at most 1,000,000 bytes of application/x-www-form-urlencoded"):
        await read(sender, FORM, content_length="1000001")
    assert sender.sent == 0


@pytest.mark.asyncio
async def test_long_texts_in_multipart() -> None:
    content = f"{MULTIPART}; boundary=x"
    [field] = await read(Sender(part(b'name="image"', b"A" * 3_000_000) + b"--x--\r\n"), content)
    assert field.value == "A" * 3_000_000  # base64
    with pytest.raises(RequestError, match="at most 1,000,000 bytes of text in multipart/form-data") as refusal:
        await read(Sender(part(b'name="text"', b"A" * 600_000 + EMOJI) * 2 + b"--x--\r\n"), content)
    assert refusal.value.status == 413


@pytest.mark.asyncio
async def test_a_body_that_is_compressed() -> None:
    with pytest.raises(RequestError, match="expected a body without a Content-Encoding, found gzip") as refusal:
        await read(Sender(b"{}"), content_encoding="gzip")
    assert refusal.value.status == 415
    assert await read(Sender(b"{}"), content_encoding="identity") == []


@given(st.binary(max_size=100) | st.text("a=&+%41f\xe9;", max_size=100).map(str.encode))
def test_a_form_is_read_as_the_standard_library_reads_it(text: bytes) -> None:
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        with pytest.raises(RequestError, match="expected a form in UTF-8"):
            parse_body(text, FORM, FORM)
    else:
        expected = [Field(name, value) for name, value in parse_qsl(decoded, keep_blank_values=True)]
        assert parse_body(text, FORM, FORM) == expected


@given(st.integers(ESCAPED_STEP - 4, ESCAPED_STEP + 4), st.sampled_from(["%C3%A9", "%4", "%%41", "%zz%41", "é"]))
def test_escapes_are_not_cut_in_two(place: int, escape: str) -> None:
    text = "a" * place + escape + "b" * 10
    assert parse_body(text.encode(), FORM, FORM) == [Field(unquote(text), "")]


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters='"\\'), min_size=1),
            st.binary() | st.text(st.characters(blacklist_categories=("Cs",))),
        )
    )
)
def test_a_multipart_body_brings_back_what_was_put_in(fields: list[tuple[str, bytes | str]]) -> None:
    body = b"".join(
        part(
            f'name="{name}"'.encode() + (b'; filename="f"' if isinstance(value, bytes) else b""),
            value if isinstance(value, bytes) else value.encode(),
        ).replace(b"--x", b"--=_boundary_of_this_test", 1)
        for name, value in fields
    )
    found = parse_body(
        body + b"--=_boundary_of_this_test--\r\n", MULTIPART, f'{MULTIPART}; boundary="=_boundary_of_this_test"'
    )
    assert found == [Field(name, value) for name, value in fields]


TOKENS = [
    b"--x", b"--x--", b"\r\n", b"\r", b"\n", b"--", b"-", b"x", b": ", b";", b'"', b"\\", b"=", b"\0", b"\xff",
    b"a" * 90, b"Content-Disposition: form-data; ", b'name="a"', b'filename="b"', b"name*=utf-8''%41",
    b"{", b"}", b"[", b"]", b",", b'"a":', b"1e999", b"null", b"\\ud800", b"%", b"%4", b"%ff", b"&", b"+",
]  # fmt: skip


@given(st.sampled_from([JSON, FORM, MULTIPART]), st.lists(st.sampled_from(TOKENS), max_size=60).map(b"".join))
def test_any_bytes_are_fields_or_refused(media_type: str, body: bytes) -> None:
    status = 200
    try:
        fields = parse_body(body, media_type, f"{media_type}; boundary=x")
        assert all(isinstance(field.name, str) for field in fields)
    except RequestError as refusal:
        status = refusal.status
    assert status in (200, 400, 413)


@pytest.mark.asyncio
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
async def test_json_that_is_deep(opening: bytes, closing: bytes) -> None:
    """A thread has hardly anything on its stack, and reads what the event loop could not write in a message."""
    for levels in (51, 900, 990):
        deep = opening * (levels - 1) + b"1" + closing * (levels - 1)
        for padding in (b"", b" " * INLINE_BYTES):
            with pytest.raises(RequestError, match=r"expected JSON") as refusal:
                await read(Sender(b'{"a":' + deep + padding + b"}"))
            assert refusal.value.status == 400
    wide = b'{"a":' + opening * 49 + b"1" + closing * 49 + b"," + b'"b":[' + b"[1]," * 100 + b"1]}"
    assert len(await read(Sender(wide))) == 2


@pytest.mark.asyncio
async def test_json_of_many_escapes() -> None:
    """Each takes time with Python's lock held: 32 MB of them stopped every page for half a second."""
    (field,) = await read(Sender(b'{"text":"' + b"\\n" * MAX_JSON_ESCAPES + b'"}'))
    assert field.value == "\n" * MAX_JSON_ESCAPES
    more = Sender(b'{"text":"' + b"\\n" * (MAX_JSON_ESCAPES + 1) + b'"}')
    expected = r"^expected JSON with at most 2,000,000 escapes, found 2,000,001$"
    with pytest.raises(RequestError, match=expected) as refusal:
        await read(more)
    assert refusal.value.status == 400


@pytest.mark.asyncio
@pytest.mark.parametrize("content_type", [None, "", "text/plain", "image/png", "application/jsonx"])
async def test_other_media_types(content_type: str | None) -> None:
    with pytest.raises(RequestError, match="expected a Content-Type") as refusal:
        await read(Sender(b"{}"), content_type)
    assert refusal.value.status == 415


@pytest.mark.asyncio
@pytest.mark.parametrize("length", ["2000", "2000".zfill(20)])
async def test_nothing_is_read_of_a_body_that_says_it_is_too_large(length: str) -> None:
    sender = Sender(b"x" * 2000)
    with pytest.raises(RequestError) as refusal:
        await read(sender, limits=Limits(Config(max_request_mb=0.001)), content_length=length)
    assert refusal.value.status == 413
    assert sender.sent == 0


@pytest.mark.asyncio
async def test_no_more_is_read_than_may_be_sent() -> None:
    sender = Sender(*[b"x" * 100] * 1000)
    limits = Limits(Config(max_request_mb=0.001))
    with pytest.raises(RequestError) as refusal:
        await read(sender, limits=limits)
    assert refusal.value.status == 413
    assert sender.sent == 1100
    assert limits.bytes == 0


@pytest.mark.asyncio
async def test_bodies_held_together_are_bounded() -> None:
    limits = Limits(Config(max_request_mb=1))
    with limits.share("b") as other, limits.share("c") as third:
        other.hold(1_000_000)
        third.hold(950_000)
        with pytest.raises(Busy, match="other requests use all the memory"):
            await read(Sender(b"x" * 300_000), limits=limits)
        [field] = await read(Sender(b'{"text": "small bodies always have room"}'), limits=limits)
        assert field.name == "text"
    assert limits.bytes == 0


@pytest.mark.asyncio
async def test_what_a_body_becomes_is_held_until_its_request_is_answered() -> None:
    limits = Limits(Config())
    body = b'{"inputs": [' + b"{}," * 10_000 + b"1]}"
    with limits.share("a") as share:
        await read_fields(request(Sender(body)), share, offload)
        assert limits.bytes >= memory_of(body, JSON) > 20 * len(body)
    assert limits.bytes == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Dripping(Sender):
    """A client that takes `seconds` for each chunk."""

    def __init__(self, clock: Clock, seconds: float, *chunks: bytes) -> None:
        super().__init__(*chunks)
        self.clock, self.seconds = clock, seconds

    async def __call__(self) -> dict[str, Any]:
        self.clock.now += self.seconds
        return await super().__call__()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("seconds", "chunk", "first"),
    [(9, b" ", b""), (9, b" ", b" " * 5_000_000), (2, b" " * 32_000, b""), (0.1, b"", b"")],
    ids=["a byte now and then", "much, and then a byte now and then", "half the rate", "chunks of nothing"],
)
async def test_a_body_that_comes_too_slowly(seconds: float, chunk: bytes, first: bytes) -> None:
    clock = Clock()
    sender = Dripping(clock, seconds, first, *[chunk] * 1000)
    with pytest.raises(RequestError, match="at 32,000 bytes a second or more, found one that is 10 seconds") as refusal:
        await read(sender, limits=Limits(Config(), clock))
    assert refusal.value.status == 408
    assert clock.now <= 30


@pytest.mark.asyncio
async def test_a_body_that_comes_slowly_enough() -> None:
    clock = Clock()
    body = b'{"text": "' + b"x" * 1_600_000 + b'"}'
    chunks = [body[start : start + 160_000] for start in range(0, len(body), 160_000)]
    [field] = await read(Dripping(clock, 4.9, *chunks), limits=Limits(Config(), clock))
    assert len(field.value) == 1_600_000
    assert clock.now > 45


@pytest.mark.asyncio
async def test_a_client_that_goes_away_or_falls_silent() -> None:
    with pytest.raises(RequestError, match="went away"):
        await read(Sender(b"{", then="http.disconnect"))

    class Silent(Sender):
        async def __call__(self) -> dict[str, Any]:
            await asyncio.sleep(3600)
            raise AssertionError

    with pytest.raises(RequestError, match="expected a body that comes at") as refusal:
        await read(Silent(), limits=Limits(Config(), patience_s=0.01))
    assert refusal.value.status == 408
