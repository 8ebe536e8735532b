"""The API describes itself: nothing is left out, and nothing that schemathesis makes of it finds a mistake."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from datasette_vision.plugin.api.documentation import HTML
from datasette_vision.plugin.api.openapi import description
from datasette_vision.plugin.api.table import api_routes
from datasette_vision.plugin.http.routes import GET, POST, ROUTE_PREFIX, Route
from tests.paths import ROOT
from tests.plugin.api.test_api import Api
from tests.servers import serving

HERE = ROOT / "tests"
DESCRIBED = [route for route in api_routes() if route.media_type != HTML]
# Not the one beside this Python: it brings rich, with which Datasette 0.65 fails on every address that is not there.
SCHEMATHESIS = os.environ.get("SCHEMATHESIS") or shutil.which("schemathesis")


def operations() -> dict[tuple[str, str], Any]:
    paths = description(DESCRIBED, "http://localhost")["paths"]
    return {(path, method): found for path, methods in paths.items() for method, found in methods.items()}


def test_every_route_and_method_is_described() -> None:
    expected = {(ROUTE_PREFIX + route.path, method.lower()) for route in DESCRIBED for method in route.methods}
    assert set(operations()) == expected
    names = [found["operationId"] for found in operations().values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("route", DESCRIBED, ids=lambda route: route.name)
def test_every_parameter_is_described(route: Route) -> None:
    assert route.summary
    assert route.description.endswith(".")
    assert route.example is not None
    for method in route.methods:
        found = operations()[ROUTE_PREFIX + route.path, method.lower()]
        if method == GET:
            named = {parameter["name"]: parameter for parameter in found.get("parameters", [])}
            expected = {*route.known(), *(name for name, _ in route.path_parameters)} - {"inputs"}
            assert set(named) == (expected - set(route.kinds) if route.in_address else expected)
            assert all(parameter["description"] for parameter in named.values())
        if method == POST:
            for media_type, content in found["requestBody"]["content"].items():
                properties = content["schema"]["properties"]
                if route.body is None:
                    names = {*route.kinds, "inputs"} if route.in_address else set(route.known())
                    assert set(properties) == names - (set() if media_type == "application/json" else {"inputs"})
        assert {"200", "400", "401", "403", "404", "500", "503"} <= set(found["responses"])


def test_the_paths_of_routes_are_what_they_match() -> None:
    patterns = [re.compile(route.pattern) for route in api_routes()]
    for route in api_routes():
        address = ROUTE_PREFIX + re.sub(r"\{\w+\}", "some-name", route.path)
        assert [pattern.pattern for pattern in patterns if pattern.match(address)] == [route.pattern]
    assert not any(
        pattern.match(ROUTE_PREFIX + "/embed/") or pattern.match("/x" + ROUTE_PREFIX + "/embed") for pattern in patterns
    )


@pytest.mark.asyncio
async def test_the_description_names_the_server(fake_models: Path) -> None:
    api = Api(fake_models)
    found = (await api.get("openapi.json")).json()
    assert found["openapi"] == "3.1.0"
    assert found["servers"] == [{"url": "http://localhost"}]
    assert set(found["paths"]) == {ROUTE_PREFIX + route.path for route in DESCRIBED}


@pytest.mark.asyncio
async def test_the_page_for_people(fake_models: Path) -> None:
    api = Api(fake_models)
    page = await api.get("docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for route in DESCRIBED:
        assert f'id="{route.name}"' in page.text
        assert f"<code>{ROUTE_PREFIX + route.path}</code>" in page.text
        for name in route.known():
            assert f"<td><code>{name}</code></td>" in page.text
    assert "curl http://localhost/-/vision/embed?text=purple" in page.text.replace("&#39;", "")
    # Nothing comes from elsewhere.
    assert not re.findall(r'(?:src|href)="https?://(?!datasette\.io)', page.text)
    # What describes the server is for those who may see it, whether or not they may have a model compute.
    assert (await Api(fake_models, allow=False).get("docs")).status_code == 200
    refused = await Api(fake_models, instance={"allow": False}).get("docs")
    assert refused.status_code == 403
    assert "<h1>" in refused.text


@pytest.mark.skipif(SCHEMATHESIS is None, reason="needs schemathesis, in an environment of its own (SCHEMATHESIS=…)")
@pytest.mark.timeout(300)
def test_schemathesis_finds_nothing(tmp_path: Path, demo_path: Path) -> None:
    assert SCHEMATHESIS is not None
    with serving(tmp_path, demo_path, allow_metrics=True) as address:
        command = [SCHEMATHESIS, "--config-file", str(HERE / "schemathesis.toml"), "run"]
        options = ["--max-examples", "25", "--seed", "1", "--no-color"]
        result = subprocess.run(
            [*command, f"{address}{ROUTE_PREFIX}/openapi.json", *options],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)},
        )
    assert result.returncode == 0, result.stdout[-8000:]
    assert f"Tested: {len(operations()) - 1}" in result.stdout  # it leaves out the description itself
