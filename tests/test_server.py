"""A real server in a process of its own, asked by real clients from another origin."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest

from datasette_vision.vision import Vision

QUERY = urllib.parse.urlencode(
    {"sql": "select hex(llm_embed('tiny-emoji',:q)) as x", "q": "purple and gold", "_shape": "array"}
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start Datasette with --memory and --cors, and wait until it answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "datasette", "serve", "--memory", "--cors", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(address + "/-/versions.json", timeout=10).close()
                break
            except (ConnectionError, urllib.error.URLError):
                assert process.poll() is None, "the server stopped by itself"
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(30)


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
