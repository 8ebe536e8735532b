"""The routes that OpenAI's clients ask for, asked by OpenAI's own client."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests import pictures
from tests.plugin.api.test_api import Api

PICTURE = pictures.png()
DATA_URI = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


def client_of(api: Api, key: str = "anything") -> openai.AsyncOpenAI:
    transport = httpx.ASGITransport(app=api.datasette.app())
    return openai.AsyncOpenAI(
        api_key=key,
        base_url="http://localhost/-/vision/v1",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=transport),
    )


@pytest.fixture
def api(fake_models: Path) -> Api:
    return Api(fake_models)


@pytest.mark.asyncio
@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_texts_and_images(api: Api, encoding: Any) -> None:
    named = {"encoding_format": encoding} if encoding else {}
    response = await client_of(api).embeddings.create(model="fake", input=["a cat", DATA_URI, ""], **named)
    assert response.object == "list"
    assert response.model == "fake"
    assert [entry.index for entry in response.data] == [0, 1, 2]
    expected = [api.vision.embed_text("a cat"), api.vision.embed_image(PICTURE), api.vision.embed_text("")]
    for entry, embedding in zip(response.data, expected, strict=True):
        # The client asks for base64 by itself, and decodes it, unless it was told what to ask for.
        found = np.frombuffer(base64.b64decode(entry.embedding), "<f4") if encoding == "base64" else entry.embedding
        assert np.array_equal(np.array(found, dtype=np.float32), embedding)
    tokens = sum(len(api.vision.services.dual_encoder("fake").tokenise(text)) for text in ("a cat", ""))
    assert (response.usage.prompt_tokens, response.usage.total_tokens) == (tokens, tokens)


@pytest.mark.asyncio
async def test_images_by_their_modality(api: Api) -> None:
    """As clients of infinity ask for them."""
    client = client_of(api)
    plain = base64.b64encode(PICTURE).decode()
    image, text = api.vision.embed_image(PICTURE), api.vision.embed_text("a cat")
    found = await client.embeddings.create(
        model="fake", input=[DATA_URI, plain], extra_body={"modality": "image"}, encoding_format="float"
    )
    assert np.allclose([entry.embedding for entry in found.data], [image, image], rtol=0, atol=1e-7)
    assert found.usage.prompt_tokens == 0
    for modality in ("text", None):
        found = await client.embeddings.create(
            model="fake", input="a cat", extra_body={"modality": modality}, encoding_format="float"
        )
        assert np.allclose(found.data[0].embedding, text, rtol=0, atol=1e-7)
    address = "http://example.org/cat.png"
    found = await client.embeddings.create(
        model="fake", input=address, extra_body={"modality": "text"}, encoding_format="float"
    )
    assert np.allclose(found.data[0].embedding, api.vision.embed_text(address), rtol=0, atol=1e-7)


@pytest.mark.asyncio
async def test_one_string_and_many(api: Api) -> None:
    client = client_of(api)
    one = await client.embeddings.create(model="fake-wide", input="x", dimensions=12, user="somebody")
    assert len(one.data[0].embedding) == 12
    many = await client.embeddings.create(model="fake", input=[str(number) for number in range(100)])
    assert len(many.data) == 100


@pytest.mark.asyncio
async def test_models(api: Api) -> None:
    client = client_of(api)
    names = [model.id async for model in client.models.list()]
    assert {"fake", "fake-wide", "fake-labels", "tiny-emoji"} == set(names)
    found = await client.models.retrieve("fake")
    assert (found.id, found.object, found.owned_by) == ("fake", "model", "datasette-vision")
    with pytest.raises(openai.NotFoundError, match="no model 'nope' is installed"):
        await client.models.retrieve("nope")


REFUSED: list[tuple[dict[str, Any], type[openai.APIStatusError], str, str | None]] = [
    ({"model": "nope", "input": "x"}, openai.NotFoundError, "no model 'nope' is installed", None),
    (
        {"model": "fake", "input": "x", "dimensions": 4},
        openai.BadRequestError,
        "dimensions: the embeddings of fake have 8 dimensions and cannot be shortened, found 4",
        "dimensions",
    ),
    ({"model": "fake", "input": [1, 2, 3]}, openai.BadRequestError, "input: expected texts, found numbers", "input"),
    ({"model": "fake", "input": [[1, 2], [3]]}, openai.BadRequestError, "input: expected texts, found num", "input"),
    ({"model": "fake", "input": []}, openai.BadRequestError, "found an empty array", "input"),
    ({"model": "fake", "input": None}, openai.BadRequestError, "expected a string or an array", "input"),
    ({"model": "fake", "input": [{"text": "x"}]}, openai.BadRequestError, "expected a string or an array", "input"),
    (
        {"model": "fake", "input": ["x", "data:image/png;base64,AAAA"]},
        openai.BadRequestError,
        "input: number 2: not an image",
        "input",
    ),
    (
        {"model": "fake", "input": "x", "encoding_format": "hex"},
        openai.BadRequestError,
        "expected float or base64",
        "encoding_format",
    ),
    (
        {"model": "fake", "input": ["http://example.org/cat.png"], "extra_body": {"modality": "image"}},
        openai.BadRequestError,
        'input: expected images as data: URIs or base64, found "http://example.org/cat.png": addresses are not fetched',
        "input",
    ),
    (
        {"model": "fake", "input": "a cat", "extra_body": {"modality": "image"}},
        openai.BadRequestError,
        "input: this text is not an image",
        "input",
    ),
    (
        {"model": "fake", "input": "x", "extra_body": {"modality": "audio"}},
        openai.BadRequestError,
        'modality: expected text or image, found "audio"',
        "modality",
    ),
    ({"model": "fake-classifier", "input": "x"}, openai.BadRequestError, "it makes no embeddings", None),
]  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize(("body", "kind", "message", "parameter"), REFUSED)
async def test_errors_in_openais_shape(
    api: Api, body: dict[str, Any], kind: type[openai.APIStatusError], message: str, parameter: str | None
) -> None:
    with pytest.raises(kind, match=message.replace("(", r"\(")) as refusal:
        await client_of(api).embeddings.create(**body)
    assert refusal.value.param == parameter
    assert refusal.value.type == "invalid_request_error"
    assert refusal.value.code == ("model_not_found" if kind is openai.NotFoundError else None)


@pytest.mark.asyncio
async def test_limits_that_the_client_knows(fake_models: Path) -> None:
    client = client_of(Api(fake_models, rate_limit=1, max_inputs=3))
    with pytest.raises(openai.APIStatusError, match="max_inputs") as refusal:
        await client.embeddings.create(model="fake", input=["x"] * 4)
    assert refusal.value.status_code == 413
    await client.embeddings.create(model="fake", input="x")
    with pytest.raises(openai.RateLimitError) as refusal:
        await client.embeddings.create(model="fake", input="x")
    assert 1 <= int(refusal.value.response.headers["retry-after"]) <= 60
    assert refusal.value.type == "rate_limit_error"


@pytest.mark.asyncio
async def test_who_may_not(fake_models: Path) -> None:
    client = client_of(Api(fake_models, allow=False))
    with pytest.raises(openai.PermissionDeniedError, match="Permission denied: vision-infer"):
        await client.embeddings.create(model="fake", input="x")
