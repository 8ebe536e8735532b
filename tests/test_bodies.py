"""bodies.py: the same fields out of every way to write them, and nothing worse than a 400 out of anything else."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from datasette.utils.asgi import Request

from datasette_vision.config import Config
from datasette_vision.errors import Busy
from datasette_vision.plugin import bodies
from datasette_vision.plugin.bodies import FORM, INLINE_BYTES, JSON, MULTIPART, Field, parse, read_fields
from datasette_vision.plugin.limits import Limits
from datasette_vision.plugin.responses import RequestError


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


@pytest.mark.asyncio
async def test_a_large_body_is_parsed_away_from_the_event_loop() -> None:
    called = []

    async def noted(function: Any, *arguments: Any) -> Any:
        called.append(function)
        return function(*arguments)

    with Limits(Config()).share("a") as share:
        sender = Sender(b'{"text": "' + b"x" * INLINE_BYTES + b'"}')
        fields = await read_fields(request(sender), share, noted)
    assert called == [parse]
    assert len(fields[0].value) == INLINE_BYTES


BAD = [
    (JSON, b"", "expected JSON"),
    (JSON, b"[]", "expected a JSON object"),
    (JSON, b'{"a": NaN}', "expected JSON"),
    (JSON, b'{"a": \xff}', "expected JSON"),
    (JSON, b"[" * 100_000, "expected JSON"),
    (JSON, b'{"a": ' + b"9" * 5000 + b"}", "expected JSON"),
    (FORM, b"\xff", "expected a form in UTF-8"),
    (FORM, b"a&" * 10_001, "expected at most 10,000 fields"),
    (MULTIPART, b"", "expected a boundary"),
    (f"{MULTIPART}; boundary={'x' * 1000}", b"", "expected a multipart body"),
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


@pytest.mark.asyncio
async def test_json_that_would_grow_in_memory() -> None:
    for value in (b"{},", b"[],", b"1,"):
        with pytest.raises(RequestError, match="at most 1,000,000 values in JSON") as refusal:
            await read(Sender(b'{"inputs": [' + value * 1_000_000 + b"1]}"))
        assert refusal.value.status == 413
    numbers = b",".join([b"0.123456"] * 768)
    [field] = await read(Sender(b'{"inputs": [' + b",".join([b'{"embedding": [' + numbers + b"]}"] * 1000) + b"]}"))
    assert len(field.value) == 1000


@pytest.mark.asyncio
@pytest.mark.parametrize("content_type", [None, "", "text/plain", "image/png", "application/jsonx"])
async def test_other_media_types(content_type: str | None) -> None:
    with pytest.raises(RequestError, match="expected a Content-Type") as refusal:
        await read(Sender(b"{}"), content_type)
    assert refusal.value.status == 415


@pytest.mark.asyncio
async def test_nothing_is_read_of_a_body_that_says_it_is_too_large() -> None:
    sender = Sender(b"x" * 2000)
    with pytest.raises(RequestError) as refusal:
        await read(sender, limits=Limits(Config(max_request_mb=0.001)), content_length="2000")
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
    limits = Limits(Config(max_request_mb=0.001))
    with limits.share("b") as other, limits.share("c") as third:
        other.take_bytes(1000)
        third.take_bytes(950)
        with pytest.raises(Busy):
            await read(Sender(b"x" * 100), limits=limits)


@pytest.mark.asyncio
async def test_a_client_that_goes_away_or_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="went away"):
        await read(Sender(b"{", then="http.disconnect"))

    class Silent(Sender):
        async def __call__(self) -> dict[str, Any]:
            await asyncio.sleep(60)
            raise AssertionError

    monkeypatch.setattr(bodies, "CHUNK_TIMEOUT_S", 0.01)
    with pytest.raises(RequestError, match="nothing more came") as refusal:
        await read(Silent())
    assert refusal.value.status == 408
