"""Every cell of docs/notebooks.md, run in Node and in a browser on another origin."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasette_vision.engine.vision import Vision
from tests import browsers, servers
from tests.paths import ROOT

PAGE = ROOT / "docs" / "notebooks.md"
CELLS = "\n".join(re.findall(r"```js\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
RESULTS = "{ byHex: [...byHex], byApi: [...byApi], similarities, nearest, pictures, names, rows }"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, demo_path: Path) -> Iterator[str]:
    with servers.serving(tmp_path_factory.mktemp("server"), demo_path) as address:
        yield address


def cells(address: str) -> str:
    """The cells one after another, on our server."""
    line = 'const server = "http://127.0.0.1:8001";'
    assert line in CELLS
    return CELLS.replace(line, f"const server = {json.dumps(address)};")


def check(found: dict[str, Any], vision: Vision) -> None:
    expected = vision.embed_text("purple heart")
    assert np.array(found["byHex"], dtype=np.float32) == pytest.approx(
        vision.embed_text("purple heart", normalised=False), abs=1e-6
    )
    assert np.array(found["byApi"], dtype=np.float32) == pytest.approx(expected, abs=1e-6)
    assert np.argmax(found["similarities"]) == 1
    assert found["nearest"][0].startswith("\U0001f49c purple heart 0.")
    assert len(found["nearest"]) == len(found["pictures"]) == len(found["names"]) == len(found["rows"]) == 5
    assert "purple heart" in found["names"]
    assert "red heart" not in found["names"]
    assert found["rows"][0]["name"] == "purple heart"


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_in_node(address: str, vision: Vision) -> None:
    script = f"{cells(address)}\nconsole.log(JSON.stringify({RESULTS}));"
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), vision)


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """A notebook's origin: an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>A notebook</title><link rel=icon href=data:,>")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def other_origin() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


def test_in_a_browser_on_another_origin(address: str, other_origin: str, vision: Vision) -> None:
    with browsers.chromium() as browser:
        context = browser.new_context()
        with browsers.watched(context) as page:
            page.goto(other_origin)
            found = page.evaluate(f"async () => {{ {cells(address)}\nreturn {RESULTS}; }}")
            check(found, vision)
            # A page elsewhere may show the pictures too.
            assert page.evaluate(
                "(source) => { const image = new Image(); image.src = source;"
                " return image.decode().then(() => image.naturalWidth); }",
                found["pictures"][0],
            )
        context.close()
