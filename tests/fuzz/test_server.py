"""Whole requests to every route: whatever they hold, the answer is no 500, and JSON where JSON is promised."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from datasette.app import Datasette
from hypothesis import example
from hypothesis import strategies as st

from datasette_vision.plugin.api.table import api_routes
from datasette_vision.plugin.http.routes import ROUTE_PREFIX, Route
from datasette_vision.plugin.server.compatibility import IS_1_0
from tests.fuzz import strategies as own
from tests.fuzz.properties import fuzz
from tests.fuzz.test_requests import BODIES, CONTENT_TYPES, NUMBERS, ROWS

Headers = Sequence[tuple[bytes, bytes]]


class Server:
    """Datasette with the demo and the fake models, asked without anything between that would tidy a request up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, database: Path, models: Path) -> None:
        own = {
            "models_dir": str(models),
            "default_classifier": "fake-classifier",
            "max_image_megapixels": 2,
            "max_request_mb": 2,
        }
        whole = {"plugins": {"datasette-vision": own}}
        named: dict[str, Any] = {"config": whole} if IS_1_0 else {"metadata": whole}
        self.loop = loop
        self.datasette = Datasette([str(database)], **named)
        loop.run_until_complete(self.datasette.invoke_startup())
        self.application = self.datasette.app()

        def prepare(connection: Any) -> None:
            connection.execute("create virtual table emoji_fts using fts5 (name, content='emoji')")
            connection.execute("create table notes (id integer primary key, emoji text references emoji (hexcode))")

        loop.run_until_complete(self.datasette.get_database("demo").execute_write_fn(prepare))

    def ask(
        self, method: str, path: str, query: bytes = b"", headers: Headers = (), body: bytes = b""
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """(status, headers, body) of an answer."""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": quote(path, safe="/~%").encode(), "root_path": "", "query_string": query,
            "headers": [(b"host", b"localhost"), *headers], "client": ("127.0.0.1", 1), "server": ("localhost", 80),
        }  # fmt: skip
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        self.loop.run_until_complete(self.application(scope, receive, send))
        start = next(message for message in sent if message["type"] == "http.response.start")
        return (
            start["status"],
            {name.lower(): value for name, value in start["headers"]},
            b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body"),
        )


@pytest.fixture(scope="module")
def server(
    demo_path: Path, fake_models: Path, tmp_path_factory: pytest.TempPathFactory, errors_alone: None
) -> Iterator[Server]:
    loop = asyncio.new_event_loop()
    database = tmp_path_factory.mktemp("server") / "demo.db"
    shutil.copyfile(demo_path, database)
    yield Server(loop, database, fake_models)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def check(answer: tuple[int, dict[bytes, bytes], bytes], *, api: bool = True) -> None:
    status, headers, body = answer
    assert status < 500, body[:2000].decode("utf-8", "replace")
    if headers.get(b"content-type", b"").startswith(b"application/json") and body:
        value = json.loads(body, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
        if api and status >= 400 and "error" in value:
            assert "ok" not in value or (value["ok"], value["status"]) == (False, status)


BY_NAME = {route.name: route for route in api_routes()}

# Paths

SEGMENTS = st.sampled_from(["demo", "emoji", "_vision_emoji", "image", "1F600", "fake", "tiny-emoji", "nowhere",
    "_internal", "~00", "~ff", "~", "%2F", "..", "."]) | own.plain_texts  # fmt: skip


def path_of(draw: st.DrawFn, route: Route) -> str:
    path = ROUTE_PREFIX + route.path
    while "{" in path:
        before, _, rest = path.partition("{")
        name, _, after = rest.partition("}")
        usual = {"database": "demo", "table": "emoji", "column": "image", "row": "1F600", "model": "fake"}.get(
            name, "x"
        )
        path = (
            before + (usual if draw(st.integers(0, 4)) else draw(SEGMENTS).replace("{", "").replace("/", "~2F")) + after
        )
    return path


# Queries

FILTERS = st.sampled_from([
    "name__contains", "name__in", "name__gt", "name__nope", "name", "hexcode__isnull", "name__arraycontains",
    "image__exact", "rowid",
    "_where", "_search", "_search_name", "_search_nope", "_searchx", "_searchmode", "_fts_table", "_through",
    "_filter_column", "_filter_op", "_filter_value", "_sort", "_sort_desc", "_facet",
    "_next", "_nocol", "_col", "_json", "_labels", "_nofacet", "_trace", "_ttl", "_extra", "_shape", "_size",
    "_page", "_timelimit",
])  # fmt: skip
PARAMETERS = st.sampled_from(["text", "image", "embedding", "query", "labels", "k", "model", "encoding_format",
    "inputs", "input", "q", "_not",
                              "_like", "_unlike", "_embedding", "_model", "_column", "_threshold",
                              "_q_weight"])  # fmt: skip
VALUES = (
    NUMBERS
    | ROWS
    | own.plain_texts
    | own.good_images.flatmap(own.as_text)
    | own.embeddings(256).map(lambda blob: base64.b64encode(blob).decode())
    | own.json_texts(own.json_values)
    | st.sampled_from(["fake", "tiny-emoji", "cat", "1F600", "image", "select 1", "1=1", "²", "9" * 30, "1e999",
        "name = ", "'", "(", "zeroblob(10)", "abs(-9223372036854775808)",
                       '{"table":"emoji","column":"name","value":"x"}', '{"table":"notes","column":"id","value":1}',
                       '{"table":"notes","column":"id","value":[1]}',
                       '{"table":"notes","column":"\\ud800","value":"\\ud800"}',
                       f'{{"table":"notes","column":"id","value":{10**30}}}', '{"table":"emoji"}', "{}", "[]",
                       "array", "objects", "*", '"', "a*", "AND"])
)  # fmt: skip
PAIRS = st.lists(st.tuples(FILTERS | PARAMETERS | own.texts, VALUES), max_size=6)


def query_of(pairs: list[tuple[str, str]]) -> bytes:
    return urlencode(pairs, errors="surrogatepass").encode()[:60_000]


QUERIES = PAIRS.map(query_of) | st.binary(max_size=40) | st.just(b"")
# In ASCII: on others the protection of Datasette 0.65 against forged requests (asgi_csrf) fails.
HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"accept", b"cookie", b"authorization", b"origin", b"x-forwarded-for", b"if-none-match",
            b"range", b"content-encoding",
                         b"accept-encoding", b"transfer-encoding", b"expect", b"sec-fetch-site", b"referer",
                         b"content-length"]),
        st.text(st.characters(max_codepoint=126), max_size=20).map(str.encode) | st.sampled_from([b"ds_actor=x",
            b"Bearer x", b"Bearer dstok_x", b"null", b"gzip", b"1.2.3.4, ::1", b"identity", b"bytes=0-"]),
    ),
    max_size=3,
)  # fmt: skip

ENTRY = own.plain_texts | st.fixed_dictionaries({"text": own.texts}) | own.json_values
API_BODIES = own.objects(
    text=own.texts | st.lists(own.texts, max_size=3),
    image=own.good_images.flatmap(own.as_text) | own.texts,
    embedding=own.float32s(256) | own.float32s(8),
    inputs=st.lists(ENTRY, max_size=4),
    input=own.texts | st.lists(own.texts, max_size=3),
    query=ENTRY,
    labels=st.lists(own.texts, max_size=4),
    model=st.sampled_from(["fake", "fake-wide", "fake-labels", "fake-classifier", "tiny-emoji", "nope", ""]),
    k=own.INTEGERS,
    encoding_format=st.sampled_from(["float", "base64"]),
    dimensions=own.INTEGERS,
)


@pytest.mark.parametrize("name", BY_NAME)
@fuzz(
    st.data(),
    st.sampled_from(["GET", "POST", "POST", "HEAD", "OPTIONS", "PUT", "get", "A" * 300]),
    QUERIES,
    HEADERS,
    weight=0.25,
)
def test_any_request(
    server: Server, name: str, data: st.DataObject, method: str, query: bytes, headers: Headers
) -> None:
    path = data.draw(st.composite(path_of)(BY_NAME[name]))
    body, content_type = b"", ""
    if method == "POST":
        if data.draw(st.booleans()):
            body = json.dumps(data.draw(API_BODIES)).encode()
            content_type = "application/json"
        else:
            body, content_type = data.draw(BODIES), data.draw(CONTENT_TYPES)
        headers = [*headers, (b"content-type", content_type.encode("latin-1"))]
    check(server.ask(method, path, query, headers, body))


@pytest.mark.parametrize("name", ["embed", "classify", "zero_shot", "similarity", "openai_embeddings", "search"])
@fuzz(API_BODIES, weight=0.4)
@example({"input": 10**4000})
def test_any_json(server: Server, name: str, body: dict[str, Any]) -> None:
    path = ROUTE_PREFIX + BY_NAME[name].path.format(database="demo", table="emoji")
    written = json.dumps(body).encode()
    check(server.ask("POST", path, b"", [(b"content-type", b"application/json")], written))


@pytest.mark.parametrize("path", ["/-/vision/search/demo/emoji", "/-/vision/demo/emoji"])
@fuzz(PAIRS, weight=1)
@example([("_through", "{}")])
@example([("_through", '{"table":"notes","column":"id","value":[1]}')])
@example([("_through", f'{{"table":"notes","column":"id","value":{10**30}}}')])
@example([("_through", '{"table":"notes","column":"id","value":"\\ud800"}')])
@example([("_searchx", "cat")])
@example([("name__gt", "²")])
@example([("name__gt", "9" * 30)])
@example([("_page", "00000000000000000001" + "9" * 30)])
def test_any_search(server: Server, path: str, pairs: list[tuple[str, str]]) -> None:
    check(server.ask("GET", path, query_of(pairs)))


@pytest.mark.parametrize(
    "template",
    [
        "/-/vision/picture/demo/{}/{}/{}",
        "/-/vision/search/{}/{}",
        "/-/vision/{}/{}",
        "/-/vision/v1/models/{}",
        "/-/vision/{}",
    ],
)
@fuzz(st.lists(SEGMENTS, min_size=3, max_size=3), QUERIES, weight=0.4)
def test_any_path(server: Server, template: str, segments: list[str], query: bytes) -> None:
    check(server.ask("GET", template.format(*(segment.replace("/", "~2F") for segment in segments)), query))


@pytest.mark.parametrize("path", ["/-/vision/demo/emoji", "/-/vision", "/-/vision/docs"])
@fuzz(BODIES, CONTENT_TYPES, QUERIES, weight=0.4)
def test_any_upload(server: Server, path: str, body: bytes, content_type: str, query: bytes) -> None:
    check(server.ask("POST", path, query, [(b"content-type", content_type.encode("latin-1"))], body))


@pytest.mark.parametrize("path", ["/-/vision/demo/emoji", "/-/vision"])
@fuzz(own.good_images | own.any_image | st.binary(max_size=100), own.plain_texts, PAIRS.map(query_of))
def test_any_picture_uploaded(server: Server, path: str, image: bytes, text: str, query: bytes) -> None:
    sent = httpx.Request("POST", "http://x", files={"image": ("x", image)}, data={"text": text, "task": text})
    check(server.ask("POST", path, query, [(b"content-type", sent.headers["content-type"].encode())], sent.read()))
