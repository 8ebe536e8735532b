"""The JSON API in a real Datasette, 0.65 or 1.0, whichever is installed."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasette.app import Datasette

from datasette_vision.engine.vision import Vision
from datasette_vision.plugin.api.table import api_routes
from datasette_vision.plugin.http import context
from datasette_vision.plugin.http.context import context_of
from datasette_vision.plugin.http.cross_origin import is_ours
from datasette_vision.plugin.http.parameters import labels_of_form
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.plugin.server.state import state_of
from datasette_vision.util.caller import Caller, current
from tests import pictures

PICTURE = pictures.png()
BASE64 = base64.b64encode(PICTURE).decode()
DATA_URI = "data:image/png;base64," + BASE64


class Api:
    """A Datasette with the API, and its Vision to compare with."""

    def __init__(self, models: Path, cors: bool = False, instance: dict[str, Any] | None = None, **config: Any) -> None:
        own = {"models_dir": str(models), "default_model": "fake", "default_classifier": "fake-classifier", **config}
        whole = {**(instance or {}), "plugins": {"datasette-vision": own}}
        named: dict[str, Any] = {"config": whole} if IS_1_0 else {"metadata": whole}
        self.datasette = Datasette(memory=True, cors=cors, **named)

    @property
    def vision(self) -> Vision:
        return state_of(self.datasette).vision.get()

    async def get(self, name: str, **parameters: Any) -> Any:
        return await self.datasette.client.get(f"/-/vision/{name}", params=parameters)

    async def post(self, name: str, body: object = None, **named: Any) -> Any:
        if body is not None:
            named["json"] = body
        return await self.datasette.client.post(f"/-/vision/{name}", **named)


@pytest.fixture
def api(fake_models: Path) -> Api:
    return Api(fake_models)


def embeddings(response: Any) -> list[Any]:
    assert response.status_code == 200, response.text
    return [result.get("embedding") for result in response.json()["results"]]


def error(response: Any, status: int) -> str:
    """The message of an error in Datasette's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    body = response.json()
    assert body["ok"] is False
    assert body["status"] == status
    assert body["error"] == "; ".join(body["errors"])
    return body["error"]


# embed


@pytest.mark.asyncio
async def test_a_text_in_the_address(api: Api) -> None:
    response = await api.get("embed", text="purple and gold")
    assert response.json().keys() == {"ok", "model", "dimensions", "results"}
    assert response.json() | {"results": 0} == {"ok": True, "model": "fake", "dimensions": 8, "results": 0}
    [embedding] = embeddings(response)
    # The very float32 values, whatever way they were written.
    assert np.array_equal(np.array(embedding, dtype=np.float32), api.vision.embed_text("purple and gold"))


@pytest.mark.asyncio
async def test_every_way_to_send_the_same(api: Api) -> None:
    expected = [api.vision.embed_text("a b").tolist(), api.vision.embed_image(PICTURE).tolist()]
    client = api.datasette.client
    file = ("x.png", PICTURE, "image/png")
    ways = [
        await client.get("/-/vision/embed", params=[("text", "a b"), ("image", DATA_URI)]),
        await client.get("/-/vision/embed", params=[("text", "a b"), ("image", BASE64)]),
        await api.post("embed", {"inputs": ["a b", DATA_URI]}),
        await api.post("embed", {"inputs": [{"text": "a b"}, {"image": BASE64}]}),
        await api.post("embed", files=[("text", (None, "a b")), ("image", file)]),
        await api.post("embed", files=[("text", (None, "a b")), ("image", (None, DATA_URI))]),
        await api.post("embed", data={"text": "a b", "image": DATA_URI}),
        await client.post("/-/vision/embed?model=fake", json={"inputs": ["a b", {"image": DATA_URI}]}),
    ]
    for response in ways:
        assert np.allclose(embeddings(response), expected, rtol=0, atol=1e-7), response.request
    assert np.allclose(embeddings(await api.post("embed", {"text": ["a b", "a b"]})), [expected[0]] * 2, atol=1e-7)
    assert np.allclose(embeddings(await api.post("embed", {"image": [BASE64]})), [expected[1]], atol=1e-7)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (["cat,dog"], ["cat", "dog"]),
        ([" cat , dog,, cat "], ["cat", "dog"]),
        (["cat"], ["cat"]),
        (["cat\ndog, wet\r\n\n"], ["cat", "dog, wet"]),  # a comma belongs to a label that has a line of its own
        (["cat", "dog, wet"], ["cat", "dog, wet"]),  # or a field of its own
        (['["dog, wet"]'], ["dog, wet"]),
        ([' {"labels": ["dog, wet"]}'], {"labels": ["dog, wet"]}),
        (["cat", "[dog]"], ["cat", "[dog]"]),
        ([" , "], []),
        ([""], []),
    ],
)
def test_labels_written_as_text(sent: list[str], expected: object) -> None:
    assert json.loads(labels_of_form(sent)) == expected


@pytest.mark.asyncio
async def test_base64_and_other_models(api: Api) -> None:
    response = await api.post("embed", {"text": "x", "model": "fake-wide", "encoding_format": "base64"})
    assert (response.json()["model"], response.json()["dimensions"]) == ("fake-wide", 12)
    [embedding] = embeddings(response)
    assert np.array_equal(np.frombuffer(base64.b64decode(embedding), "<f4"), api.vision.embed_text("x", "fake-wide"))


@pytest.mark.asyncio
async def test_a_bad_input_is_reported_in_its_place(api: Api) -> None:
    inputs = ["cat", {"image": "nonsense"}, DATA_URI, {"text": "x" * 100_001}, "dog"]
    response = await api.post("embed", {"inputs": inputs})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [list(result) for result in results] == [
        ["embedding"],
        ["error", "status"],
        ["embedding"],
        ["error", "status"],
        ["embedding"],
    ]
    assert results[1]["error"].startswith("this text is not an image")
    assert results[3] == {
        "error": "expected at most 100,000 characters of text (max_text_chars), found 100,001",
        "status": 400,
    }


@pytest.mark.asyncio
async def test_nothing_but_bad_inputs_is_an_error(api: Api) -> None:
    response = await api.post("embed", {"image": ["nonsense", pictures.png()[:-10].hex()]})
    message = error(response, 400)
    assert message.count("this text is not an image") == 2
    assert [result["status"] for result in response.json()["results"]] == [400, 400]
    assert "truncated" in error(await api.post("embed", files={"image": ("x", PICTURE[:200])}), 400)


@pytest.mark.asyncio
async def test_many_inputs(api: Api) -> None:
    texts = [str(number) for number in range(300)]
    found = np.array(embeddings(await api.post("embed", {"text": texts})), dtype=np.float32)
    assert np.allclose(found, api.vision.embed_texts(texts), atol=1e-6)


# The others


@pytest.mark.asyncio
async def test_classify(api: Api) -> None:
    expected = api.vision.classify(PICTURE)
    assert [entry["label"] for entry in expected] != ["ant", "bee", "cat"]
    response = await api.post("classify", files={"image": ("x.png", PICTURE)})
    assert response.json() == {"ok": True, "model": "fake-classifier", "results": [{"labels": expected}]}
    two = (await api.get("classify", image=DATA_URI, k="2", model="fake-labels")).json()
    assert two["results"] == [{"labels": api.vision.classify(PICTURE, "fake-labels", 2)}]
    mixed = (await api.post("classify", {"image": [BASE64, "nonsense"], "k": 1})).json()
    assert mixed["results"][0] == {"labels": expected[:1]}
    assert mixed["results"][1]["status"] == 400
    assert "has no labels" in error(await api.post("classify", {"image": BASE64, "model": "fake"}), 400)


@pytest.mark.asyncio
@pytest.mark.parametrize("cache_mb", [0, 64])
async def test_zero_shot(fake_models: Path, cache_mb: int) -> None:
    api = Api(fake_models, cache_mb=cache_mb)
    expected = api.vision.zero_shot(PICTURE, '["ant", "bee"]')
    file = {"image": ("x.png", PICTURE)}
    embedding = api.vision.embed_image(PICTURE)
    ways = [
        await api.post("zero-shot", {"image": BASE64, "labels": ["ant", "bee"]}),
        await api.post("zero-shot", {"image": BASE64, "labels": {"labels": ["ant", "bee"]}}),
        await api.post("zero-shot", {"embedding": embedding.tolist(), "labels": ["ant", "bee"]}),
        await api.post(
            "zero-shot", {"embedding": base64.b64encode(embedding.tobytes()).decode(), "labels": ["ant", "bee"]}
        ),
        await api.post("zero-shot", files=file, data={"labels": ["ant", "bee"]}),
        await api.post("zero-shot", files=file, data={"labels": '["ant", "bee"]'}),
        await api.post("zero-shot", files=file, data={"labels": "ant, bee"}),
        await api.post("zero-shot", files=file, data={"labels": "ant\nbee\r\n"}),
        await api.get("zero-shot", image=DATA_URI, labels=["ant", "bee"]),
        await api.get("zero-shot", image=DATA_URI, labels="ant,bee"),
    ]
    for response in ways:
        assert response.status_code == 200, response.text
        assert response.json() == {"ok": True, "model": "fake", "results": [{"labels": expected}]}
    options = {"labels": ["ant", "bee"], "template": "a {}", "multi_label": True, "temperature": 2}
    response = await api.post("zero-shot", {"inputs": [DATA_URI, {"image": "no"}], "labels": options, "k": 1})
    assert response.json()["results"][0] == {"labels": api.vision.zero_shot(PICTURE, json.dumps(options), k=1)}
    assert response.json()["results"][1]["status"] == 400


@pytest.mark.asyncio
async def test_similarity(api: Api) -> None:
    query = {"image": BASE64}
    inputs = ["cat", {"embedding": api.vision.embed_text("dog").tolist()}, DATA_URI, {"embedding": [1.0, 2.0]}]
    response = await api.post("similarity", {"query": query, "inputs": inputs})
    image = api.vision.embed_image(PICTURE)
    similarities = [result.get("similarity") for result in response.json()["results"]]
    expected = [float(api.vision.embed_text(text) @ image) for text in ("cat", "dog")]
    assert np.allclose(similarities[:3], [*expected, 1.0], atol=1e-6)
    assert response.json()["results"][3] == {
        "error": "expected an embedding of 8 floats, 32 bytes, found 8 bytes",
        "status": 400,
    }
    in_address = await api.get("similarity", query="cat", text=["cat", "dog"])
    assert in_address.json()["results"][0]["similarity"] == pytest.approx(1.0, abs=1e-6)
    as_files = await api.post("similarity", files=[("query", ("x", PICTURE)), ("text", (None, "cat"))])
    assert as_files.json()["results"][0]["similarity"] == pytest.approx(expected[0], abs=1e-6)
    assert error(await api.post("similarity", {"query": {"image": "no"}, "text": "x"}), 400).startswith("query: ")


@pytest.mark.asyncio
async def test_models(api: Api) -> None:
    body = (await api.get("models")).json()
    assert body == {"ok": True, "models": api.vision.models()}
    assert "fake-wide" in [model["name"] for model in body["models"]]


# Mistakes


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("embed", {}, "expected text, image or inputs, found none"),
        ("embed", {"text": "a", "image": "b"}, "expected one of text, image, inputs, found several"),
        ("embed", {"text": 5}, "text: expected a text, found 5"),
        ("embed", {"text": ["a", None]}, "text: expected a text, found null"),
        ("embed", {"text": []}, "expected text, image or inputs, found none"),
        ("embed", {"inputs": "a"}, 'inputs: expected an array, found "a"'),
        ("embed", {"inputs": [5]}, "inputs: number 1: expected a string or an object of one of text, image"),
        ("embed", {"inputs": [{"txt": "a"}]}, 'inputs: number 1: expected one of text, image, found "txt"'),
        ("embed", {"inputs": [{"embedding": [1]}]}, 'inputs: number 1: expected one of text, image, found "embedding"'),
        ("embed", {"text": "a", "modle": "fake"}, 'unknown parameter "modle"; allowed are text, image, inputs, model,'),
        ("embed", {"text": "a", "model": 5}, "model: expected the name of a model, found 5"),
        ("embed", {"text": "a", "encoding_format": "hex"}, 'encoding_format: expected float or base64, found "hex"'),
        ("embed", {"text": "a", "encoding_format": []}, "encoding_format: expected float or base64, found []"),
        ("embed", {"text": "a", "model": "fake-classifier"}, "'fake-classifier' is for image-classification"),
        ("classify", {"text": "a"}, 'unknown parameter "text"'),
        ("classify", {"image": BASE64, "k": 0}, "k: expected a whole number from 1 to 100000, found 0"),
        ("classify", {"image": BASE64, "k": True}, "k: expected a whole number from 1 to 100000, found true"),
        ("zero-shot", {"image": BASE64}, "labels: expected labels: an array of strings, or an object, found none"),
        ("zero-shot", {"image": BASE64, "labels": 5}, "labels: expected labels"),
        ("zero-shot", {"image": BASE64, "labels": "ant"}, "labels: expected labels"),
        ("zero-shot", {"image": BASE64, "labels": []}, "labels: expected at least one label, found an empty array"),
        ("zero-shot", {"image": BASE64, "labels": ["a", "a"]}, "labels: 'a' occurs twice"),
        ("zero-shot", {"embedding": "?", "labels": ["a"]}, "embedding: expected an embedding"),
        ("zero-shot", {"embedding": [1, "a"], "labels": ["a"]}, "embedding: expected an embedding"),
        ("zero-shot", {"embedding": [10**400], "labels": ["a"]}, "embedding: expected numbers that fit a float32"),
        ("zero-shot", {"embedding": [0] * 8, "labels": ["a"]}, "expected an embedding with a direction"),
        ("similarity", {"text": "a"}, "query: expected a text, an image or an embedding, found none"),
        ("similarity", {"query": "a"}, "expected text, image, embedding or inputs, found none"),
        (
            "similarity",
            {"query": 5, "text": "a"},
            "query: expected a string or an object of one of text, image, embedding",
        ),
    ],
)
async def test_mistakes(api: Api, name: str, body: dict[str, Any], message: str) -> None:
    assert error(await api.post(name, body), 400).startswith(message)


@pytest.mark.asyncio
async def test_mistakes_of_http(api: Api) -> None:
    assert error(await api.get("embed", text="a", model="nope"), 404).startswith("no model 'nope' is installed")
    assert (
        error(await api.get("embed", text="a", model=["fake", "fake"]), 400)
        == "model: expected it once, found it 2 times"
    )
    response = await api.datasette.client.request("DELETE", "/-/vision/embed")
    assert error(response, 405) == "expected one of GET, POST, HEAD, OPTIONS, found DELETE"
    assert response.headers["allow"] == "GET, POST, HEAD, OPTIONS"
    assert error(await api.post("models", {}), 405)
    assert error(await api.post("embed", content=b"x", headers={"content-type": "text/plain"}), 415)
    head = await api.datasette.client.request("HEAD", "/-/vision/models")
    assert (head.status_code, head.content) == (200, b"")
    page = await api.datasette.client.request("PUT", "/-/vision/docs")
    assert (page.status_code, page.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert page.text == "expected one of GET, HEAD, OPTIONS, found PUT"


@pytest.mark.asyncio
async def test_what_nobody_foresaw_is_not_told(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await api.get("models")

    def fail() -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(api.vision, "models", fail)
    assert error(await api.get("models"), 500) == "internal error; see the server's log"
    assert "a secret" in caplog.text


# Limits


@pytest.mark.asyncio
async def test_413(fake_models: Path) -> None:
    api = Api(fake_models, max_request_mb=0.01, max_inputs=3)
    assert "max_request_mb" in error(await api.post("embed", {"text": "x" * 10_000}), 413)
    assert "max_inputs" in error(await api.post("embed", {"text": ["x"] * 4}), 413)
    assert len(embeddings(await api.post("embed", {"text": ["x"] * 3}))) == 3


@pytest.mark.asyncio
async def test_429(fake_models: Path) -> None:
    api = Api(fake_models, rate_limit=5)
    assert len(embeddings(await api.post("embed", {"text": ["x"] * 5}))) == 5
    response = await api.get("embed", text="x")
    assert error(response, 429).startswith("expected at most 5 inputs a minute (rate_limit)")
    assert 1 <= int(response.headers["retry-after"]) <= 12
    actor = {"ds_actor": api.datasette.sign({"a": {"id": "alice"}}, "actor")}
    alice = await api.datasette.client.get("/-/vision/embed?text=x", cookies=actor)
    assert alice.status_code == 200
    labels = [str(number) for number in range(9)]
    first = await api.datasette.client.get(
        "/-/vision/zero-shot", params={"image": DATA_URI, "labels": labels}, cookies=actor
    )
    assert first.status_code == 200  # what goes beyond is paid for afterwards
    second = await api.datasette.client.get("/-/vision/embed?text=x", cookies=actor)
    assert error(second, 429)


@pytest.mark.asyncio
async def test_503_beyond_the_queue_and_nothing_is_lost(fake_models: Path) -> None:
    """A hundred at once on a queue of twenty, of which their address has fifteen: the right answer, or a 503."""
    api = Api(fake_models, max_queue=20, cache_mb=0)
    await api.get("embed", text="warm")
    service = api.vision.services.dual_encoder("fake")
    go, original = threading.Event(), service.texts._run
    service.texts._run = lambda batch: go.wait(30) and original(batch)

    async def ask(number: int) -> tuple[int, Any]:
        return number, await api.get("embed", text=str(number))

    asked = [asyncio.ensure_future(ask(number)) for number in range(100)]
    while context_of(api.datasette).limits.inputs < 15 or sum(task.done() for task in asked) < 85:
        await asyncio.sleep(0.01)
    # Datasette answers others meanwhile.
    assert (
        await api.datasette.client.get(
            "/_memory/-/query.json" if IS_1_0 else "/_memory.json", params={"sql": "select 1"}
        )
    ).status_code == 200
    go.set()
    answered = 0
    for number, response in await asyncio.gather(*asked):
        if response.status_code == 200:
            answered += 1
            assert np.allclose(embeddings(response)[0], api.vision.embed_text(str(number)), atol=1e-6)
        else:
            assert "15 inputs are waiting already" in error(response, 503)
            assert response.headers["retry-after"] == "1"
    assert answered == 15
    limits = context_of(api.datasette).limits
    assert (limits.inputs, limits.bytes) == (0, 0)
    assert len(embeddings(await api.post("embed", {"text": ["x"] * 20}))) == 20


@pytest.mark.asyncio
async def test_busy_when_no_answer_comes(fake_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(fake_models)
    await api.get("embed", text="warm")
    monkeypatch.setattr(context, "ANSWER_TIMEOUT_S", 0.05)
    service = api.vision.services.dual_encoder("fake")
    go, original = threading.Event(), service.texts._run
    service.texts._run = lambda batch: go.wait(30) and original(batch)
    assert error(await api.get("embed", text="slow"), 503).startswith("no answer within")
    go.set()


# Who may


@pytest.mark.asyncio
async def test_who_may_not_is_refused(fake_models: Path) -> None:
    api = Api(fake_models, allow={"id": "alice"})
    for route in api_routes():
        if route.action == "vision-infer":
            response = await api.datasette.client.request(route.methods[-1], "/-/vision" + route.path)
            assert response.status_code == 403, route.path
    assert error(await api.get("embed", text="x"), 403) == "Permission denied: vision-infer"
    actor = {"ds_actor": api.datasette.sign({"a": {"id": "alice"}}, "actor")}
    response = await api.datasette.client.get("/-/vision/embed?text=x", cookies=actor)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "private, no-store"


@pytest.mark.asyncio
async def test_who_may_not_is_refused_before_the_body_is_looked_at(fake_models: Path) -> None:
    api = Api(fake_models, allow=False)
    assert error(await api.post("embed", content=b"{", headers={"content-type": "application/json"}), 403)


@pytest.mark.asyncio
async def test_tokens(fake_models: Path) -> None:
    api = Api(fake_models, allow={"id": "alice"})

    async def ask(token: str) -> Any:
        headers = {"authorization": f"Bearer {token}"}
        return await api.datasette.client.post("/-/vision/embed", json={"text": "x"}, headers=headers)

    assert error(await ask("not one of Datasette's"), 403)
    if not IS_1_0:
        return  # Datasette 0.65 has none
    await api.datasette.invoke_startup()
    assert (await ask(await api.datasette.create_token("alice"))).status_code == 200
    assert error(await ask(await api.datasette.create_token("bob")), 403)
    response = await ask("dstok_forged")
    assert response.status_code == 401
    assert response.json()["ok"] is False


FOREIGN = {"origin": "https://example.org", "sec-fetch-site": "cross-site"}


@pytest.mark.asyncio
@pytest.mark.parametrize("cors", [True, False])
async def test_a_foreign_page_with_cookies_is_refused(fake_models: Path, cors: bool) -> None:
    api = Api(fake_models, cors=cors)
    cookies = {"ds_actor": api.datasette.sign({"a": {"id": "root"}}, "actor")}
    for body in ({"json": {"text": "x"}}, {"data": {"text": "x"}}, {"files": {"text": (None, "x")}}):
        response = await api.datasette.client.post("/-/vision/embed", headers=FOREIGN, cookies=cookies, **body)
        assert response.status_code == 403, body
        assert "access-control-allow-origin" not in response.headers
    basic = {**FOREIGN, "authorization": "Basic eDp5"}
    if IS_1_0:
        assert (
            await api.datasette.client.post("/-/vision/embed", headers=basic, json={"text": "x"})
        ).status_code == 403


@pytest.mark.asyncio
async def test_a_client_without_cookies_works(fake_models: Path) -> None:
    api = Api(fake_models)
    assert (await api.post("embed", {"text": "x"})).status_code == 200
    bearer = {"authorization": "Bearer whatever"}
    assert (await api.datasette.client.post("/-/vision/embed", json={"text": "x"}, headers=bearer)).status_code == 200


@pytest.mark.asyncio
async def test_a_page_of_our_own_with_cookies_works(fake_models: Path) -> None:
    api = Api(fake_models)
    cookies = {"ds_actor": api.datasette.sign({"a": {"id": "alice"}}, "actor")}
    headers = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    for body in ({"json": {"text": "x"}}, {"data": {"text": "x"}}, {"files": {"image": ("x", PICTURE)}}):
        response = await api.datasette.client.post("/-/vision/embed", headers=headers, cookies=cookies, **body)
        assert response.status_code == 200, response.text
    # Older browsers, and clients that are none.
    for headers in ({"origin": "http://localhost"}, {}):
        response = await api.datasette.client.post(
            "/-/vision/embed", headers=headers, cookies=cookies, json={"text": "x"}
        )
        assert response.status_code == 200, response.text


@pytest.mark.asyncio
async def test_another_origin_with_cors(fake_models: Path) -> None:
    api = Api(fake_models, cors=True)
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    preflight = await api.datasette.client.request("OPTIONS", "/-/vision/embed", headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "Content-Type" in preflight.headers["access-control-allow-headers"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    for response, status in [
        (await api.datasette.client.post("/-/vision/embed", headers=FOREIGN, json={"text": "x"}), 200),
        (await api.datasette.client.get("/-/vision/embed?text=x", headers=FOREIGN), 200),
        (await api.datasette.client.post("/-/vision/embed", headers=FOREIGN, json={"text": 5}), 400),
    ]:
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers


@pytest.mark.asyncio
async def test_another_origin_without_cors(fake_models: Path) -> None:
    api = Api(fake_models)
    response = await api.datasette.client.get("/-/vision/embed?text=x", headers=FOREIGN)
    assert "access-control-allow-origin" not in response.headers
    posted = await api.datasette.client.post("/-/vision/embed", headers=FOREIGN, json={"text": "x"})
    assert posted.status_code == (403 if IS_1_0 else 200)
    assert "access-control-allow-origin" not in posted.headers


@pytest.mark.asyncio
async def test_other_addresses_keep_the_protection_of_datasette(fake_models: Path) -> None:
    api = Api(fake_models, cors=True)
    response = await api.datasette.client.post("/-/logout", headers={**FOREIGN, "cookie": "a=b"}, json={})
    assert response.status_code == 403
    assert "JSON" not in response.text


@pytest.mark.asyncio
async def test_behind_a_base_url() -> None:
    datasette = Datasette(memory=True, cors=True, settings={"base_url": "/prefix/"})
    client = datasette.client  # adds the prefix
    body = {"query": "a", "text": "a"}
    assert (await client.post("/-/vision/similarity", headers=FOREIGN, json=body)).status_code == 200
    headers = {**FOREIGN, "cookie": "a=b"}
    assert (await client.post("/-/vision/similarity", headers=headers, json=body)).status_code == 403


@pytest.mark.parametrize(
    ("path", "raw_path", "expected"),
    [
        ("/-/vision", b"/-/vision", True),
        ("/-/vision/embed", b"/-/vision/embed?x=y", True),
        ("/-/vision/embed", None, True),
        ("/-/visions", b"/-/visions", False),
        ("/-/logout", b"/-/logout", False),
        ("/x/-/vision/embed", b"/x/-/vision/embed", False),
        # Decoded it is ours, and Datasette goes by what is not decoded.
        ("/-/vision/embed", b"/%2D/vision/embed", False),
        ("/-/vision/embed", b"/-%2Fvision/embed", False),
        ("//-/vision/embed", b"//-/vision/embed", False),
    ],
)
def test_addresses_of_ours_are_those_that_datasette_routes_to_us(
    path: str, raw_path: bytes | None, expected: bool
) -> None:
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": raw_path}
    assert is_ours(Datasette(memory=True), scope) is expected
    assert not is_ours(Datasette(memory=True), {**scope, "method": "GET"})


# For whom it computes


@pytest.mark.asyncio
async def test_a_request_computes_for_its_client_until_its_time_is_up(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers: list[Caller] = []
    inference = await asyncio.to_thread(lambda: context_of(api.datasette).inference)
    for name in ("embed_texts", "label_set"):
        original = getattr(inference, name)

        def noting(*arguments: Any, original: Any = original) -> Any:
            callers.append(current())
            return original(*arguments)

        monkeypatch.setattr(inference, name, noting)
    assert (await api.post("embed", {"text": "cat"})).status_code == 200
    assert (await api.post("zero-shot", {"image": BASE64, "labels": ["cat"]})).status_code == 200
    assert len(callers) >= 2
    assert len({id(caller) for caller in callers}) >= 2
    assert {caller.client for caller in callers} == {callers[0].client}
    assert callers[0].client.startswith("address ")
    assert all(caller.deadline is not None and caller.deadline > time.monotonic() for caller in callers)


@pytest.mark.asyncio
async def test_what_a_request_has_given_up_on_is_not_computed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "ANSWER_TIMEOUT_S", 0.3)
    queue = await asyncio.to_thread(lambda: api.vision.services.dual_encoder("fake").texts)
    entered, go = threading.Event(), threading.Event()
    run = queue._run

    def held(items: list[Any]) -> Any:
        entered.set()
        assert go.wait(60)
        return run(items)

    monkeypatch.setattr(queue, "_run", held)
    first = asyncio.create_task(api.post("embed", {"text": "first"}))
    assert await asyncio.to_thread(entered.wait, 60)
    response = await api.post("embed", {"inputs": [{"text": f"text {number}"} for number in range(10)]})
    assert response.status_code == 503
    assert (await first).status_code == 503
    assert queue.waiting == 0
    go.set()
    while queue.items < 1:
        await asyncio.sleep(0.01)
    assert (await api.post("embed", {"text": "last"})).status_code == 200
    assert queue.items == 2


@pytest.mark.asyncio
async def test_a_thousand_labels_of_ten_kilobytes_are_answered(api: Api) -> None:
    labels = {"labels": [f"label {number}" for number in range(1000)], "template": "{} " + "and more words " * 700}
    response = await api.post("zero-shot", {"image": BASE64, "labels": labels})
    assert response.status_code == 200, response.text
    assert response.json()["results"][0]["labels"]
