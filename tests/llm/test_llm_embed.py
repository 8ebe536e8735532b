"""The drop-in for datasette-llm-embed, in a real Datasette, with models of the llm tool."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llm")

from datasette.app import Datasette

from datasette_vision.plugin.server.compatibility import IS_1_0
from tests.llm_demo_models import EmbedDemo, demo_models  # noqa: F401 (a fixture)


def make_datasette(**plugins: Any) -> Datasette:
    named: dict[str, Any] = {"plugins": plugins}
    return Datasette(memory=True, **({"config": named} if IS_1_0 else {"metadata": named}))


async def value(datasette: Datasette, expression: str) -> Any:
    path = "/_memory/-/query.json" if IS_1_0 else "/_memory.json"
    response = await datasette.client.get(path, params={"sql": f"select hex({expression}) as x", "_shape": "array"})
    if response.status_code != 200:
        return response.json()["error"]
    return bytes.fromhex(response.json()[0]["x"])


def floats(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // 4}f", data)


@pytest.mark.asyncio
async def test_a_model_of_llm_by_name_and_by_alias() -> None:
    datasette = make_datasette()
    expected = (6.0, 5.0, *[0.0] * 14)
    assert floats(await value(datasette, "llm_embed('embed-demo', 'purple heart')")) == expected
    assert floats(await value(datasette, "llm_embed('demo-alias', 'purple heart')")) == expected


@pytest.mark.asyncio
async def test_a_model_of_llm_is_found_once_and_kept(demo_models: EmbedDemo, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    import llm

    asked: list[str] = []
    original = llm.get_embedding_model
    monkeypatch.setattr(llm, "get_embedding_model", lambda name: asked.append(name) or original(name))
    datasette = make_datasette()
    for text in ("one", "two", "three"):
        await value(datasette, f"llm_embed('embed-demo', '{text}')")
    assert asked == ["embed-demo"]
    assert demo_models.embedded == ["one", "two", "three"]


@pytest.mark.asyncio
async def test_keys_are_those_of_datasette_llm_embed_s_configuration() -> None:
    datasette = make_datasette(**{"datasette-llm-embed": {"keys": {"embed-key-demo": "secret"}}})
    assert floats(await value(datasette, "llm_embed('embed-key-demo', 'a')"))[-1] == len("secret")
    message = await value(make_datasette(), "llm_embed('embed-key-demo', 'a')")
    assert message.startswith("llm_embed(): the llm model 'embed-key-demo' failed with NeedsKey")


@pytest.mark.asyncio
async def test_our_models_come_first_then_those_of_llm_then_an_error(fake_models: Path) -> None:
    datasette = make_datasette(**{"datasette-vision": {"models_dir": str(fake_models)}})
    assert len(await value(datasette, "llm_embed('fake', 'a')")) == 32
    assert len(await value(datasette, "llm_embed('vision/fake', 'a')")) == 32
    assert len(await value(datasette, "llm_embed('embed-demo', 'a')")) == 64
    message = await value(datasette, "llm_embed('nope', 'a')")
    assert message.startswith("llm_embed(): no model 'nope' is installed, and llm has none; installed are: fake")


@pytest.mark.asyncio
async def test_a_model_of_llm_that_fails_is_an_error_that_shows_nothing_of_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    message = await value(make_datasette(), "llm_embed('embed-fails', 'a')")
    assert message == "llm_embed(): the llm model 'embed-fails' failed with RuntimeError; see the server's log"
    assert "secret /etc/passwd" in caplog.text


@pytest.mark.asyncio
async def test_cosine_decode_and_average_agree_with_llm() -> None:
    import llm

    datasette = make_datasette()
    one, other = llm.encode([1.0, 2.0, -0.5]), llm.encode([0.25, 1.5, 3.0])
    a, b = f"x'{one.hex()}'", f"x'{other.hex()}'"
    found = float(await value(datasette, f"cast(llm_embed_cosine({a}, {b}) as text)"))
    assert found == pytest.approx(llm.cosine_similarity(llm.decode(one), llm.decode(other)), abs=1e-7)
    assert await value(datasette, f"llm_embed_decode({a})") == b"[1.0, 2.0, -0.5]"
    rows = f"(select llm_embed_average(e) from (select {a} as e union all select {b}))"
    assert floats(await value(datasette, rows)) == (0.625, 1.75, 1.25)
