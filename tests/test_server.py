"""A real server in a process of its own, asked by real clients from another origin."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from datasette_vision.engine.vision import Vision
from datasette_vision.plugin.api.table import api_routes
from datasette_vision.plugin.http.routes import ROUTE_PREFIX
from tests import pictures
from tests.paths import ROOT
from tests.servers import serving

README = (ROOT / "README.md").read_text("utf-8")
QUERY = urllib.parse.urlencode(
    {"sql": "select hex(llm_embed('tiny-emoji',:q)) as x", "q": "purple and gold", "_shape": "array"}
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, demo_path: Path) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("server"), demo_path, allow_metrics=True) as address:
        yield address


@pytest.fixture(scope="module")
def expected(vision: Vision) -> list[dict[str, str]]:
    embedding = vision.embed_text("purple and gold", normalised=False)
    return [{"x": embedding.astype("<f4").tobytes().hex().upper()}]


def test_the_query_of_today_answers_over_cors(address: str, expected: list[dict[str, str]]) -> None:
    request = urllib.request.Request(f"{address}/_memory.json?{QUERY}", headers={"Origin": "https://example.org"})
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert json.load(response) == expected


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_as_in_the_readme(address: str, expected: list[dict[str, str]]) -> None:
    url = f"{address}/_memory.json?sql=select+hex(llm_embed('tiny-emoji',:q))+as+x&q=purple+and+gold&_shape=array"
    result = subprocess.run(["curl", "-sSL", url], capture_output=True, check=True, timeout=60)
    assert json.loads(result.stdout) == expected


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_fetch_in_node_as_in_a_notebook(address: str, expected: list[dict[str, str]]) -> None:
    script = """
    const response = await fetch(process.argv[1], {headers: {Origin: "https://observablehq.com"}});
    console.log(JSON.stringify([response.status, response.headers.get("access-control-allow-origin"),
      await response.json()]));
    """
    command = ["node", "--input-type=module", "-e", script, f"{address}/_memory.json?{QUERY}"]
    result = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True)
    assert json.loads(result.stdout) == [200, "*", expected]


def test_an_error_over_cors_is_readable_too(address: str) -> None:
    query = urllib.parse.urlencode({"sql": "select vision_embed('x', 'nope')"})
    with pytest.raises(urllib.error.HTTPError) as failure:
        urllib.request.urlopen(f"{address}/_memory.json?{query}", timeout=60)
    with failure.value as response:
        assert response.code == 400
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert json.load(response)["error"].startswith("vision_embed(): no model 'nope' is installed")


def test_the_openai_client_unmodified(address: str, vision: Vision) -> None:
    client = openai.OpenAI(base_url=f"{address}/-/vision/v1", api_key="anything")
    picture = pictures.png()
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    response = client.embeddings.create(model="tiny-emoji", input=["purple and gold", uri])
    expected = [vision.embed_text("purple and gold"), vision.embed_image(picture)]
    assert np.allclose([entry.embedding for entry in response.data], expected, rtol=0, atol=1e-5)
    assert [model.id for model in client.models.list()] == ["tiny-emoji"]


POST_FROM_A_NOTEBOOK = """
const [address, image] = process.argv.slice(1);
const origin = {Origin: "https://observablehq.com", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"};
const preflight = await fetch(`${address}/-/vision/similarity`, {
  method: "OPTIONS",
  headers: {...origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
});
const response = await fetch(`${address}/-/vision/similarity`, {
  method: "POST",
  headers: {...origin, "Content-Type": "application/json"},
  body: JSON.stringify({query: `data:image/png;base64,${image}`, inputs: ["red apple", "fire engine"]})
});
console.log(JSON.stringify({
  preflight: [preflight.status, ...["origin", "methods", "headers"].map(
    (name) => preflight.headers.get(`access-control-allow-${name}`))],
  status: response.status,
  origin: response.headers.get("access-control-allow-origin"),
  body: await response.json()
}));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_an_image_posted_by_fetch_from_another_origin(address: str, vision: Vision) -> None:
    picture = pictures.png()
    command = ["node", "--input-type=module", "-e", POST_FROM_A_NOTEBOOK, address, base64.b64encode(picture).decode()]
    result = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True)
    found = json.loads(result.stdout)
    assert found["preflight"] == [204, "*", "GET, POST, HEAD, OPTIONS", "Authorization, Content-Type, *"]
    assert (found["status"], found["origin"]) == (200, "*")
    image = vision.embed_image(picture)
    expected = [float(image @ vision.embed_text(text)) for text in ("red apple", "fire engine")]
    assert np.allclose([entry["similarity"] for entry in found["body"]["results"]], expected, rtol=0, atol=1e-5)


def test_the_python_of_the_readme(address: str, vision: Vision) -> None:
    [code] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "OpenAI" in block]
    names: dict[str, Any] = {}
    exec(code.replace("http://localhost:8001", address), names)
    expected = [vision.embed_text("purple heart"), vision.embed_text("red apple")]
    assert np.allclose([entry.embedding for entry in names["response"].data], expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("route", [route for route in api_routes() if route.example], ids=lambda route: route.name)
def test_every_example_with_curl(address: str, tmp_path: Path, route: object) -> None:
    tmp_path.joinpath("apple.webp").write_bytes(pictures.picture_file("WEBP"))
    command = shlex.split(route.example.curl(address, ROUTE_PREFIX + route.path))  # type: ignore[attr-defined]
    result = subprocess.run(
        [*command, "-sS", "--fail-with-body"], capture_output=True, timeout=60, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_body_that_is_too_large_is_refused_before_it_is_sent(address: str, tmp_path: Path) -> None:
    tmp_path.joinpath("large").write_bytes(bytes(40_000_000))
    command = ["curl", "-sS", "-o", "answer", "-w", "%{http_code}", "-F", "image=@large", f"{address}/-/vision/embed"]
    result = subprocess.run(command, capture_output=True, timeout=60, text=True, cwd=tmp_path)
    assert result.stdout == "413", result.stderr
    assert "max_request_mb" in tmp_path.joinpath("answer").read_text()
