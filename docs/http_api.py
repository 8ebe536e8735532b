"""The generated parts of docs/api.md, which cog writes: `make docs` regenerates them, `make lint` fails when stale."""

from __future__ import annotations

import asyncio
import json
import tempfile
from functools import cache
from typing import Any

from datasette_vision.demo import demo
from datasette_vision.plugin.api import table as api
from datasette_vision.plugin.api.documentation import STATUSES, entries
from datasette_vision.plugin.api.examples import RequestExample
from datasette_vision.plugin.http.routes import ROUTE_PREFIX
from docs.readme import table

SERVER = "http://localhost:8001"
PICTURE = "1F34E"  # the red apple of the demo, which the examples call apple.webp


@cache
def picture() -> bytes:
    """Return the file that the examples send."""
    return next(emoji.image for emoji in demo.read_archive() if emoji.hexcode == PICTURE)


async def ask(path: str, example: RequestExample) -> str:
    """Run an example against a Datasette with the bundled model, and return its answer."""
    from datasette.app import Datasette

    from datasette_vision.plugin.server.compatibility import IS_1_0

    with tempfile.TemporaryDirectory() as empty:
        config = {"plugins": {"datasette-vision": {"models_dir": empty}}}
        named: dict[str, Any] = {"config": config} if IS_1_0 else {"metadata": config}
        client = Datasette(memory=True, **named).client
        address = example.address(path)
        if example.form:
            files = [
                (name, (value[1:], picture())) if value.startswith("@") else (name, (None, value))
                for name, value in example.form
            ]
            response = await client.post(address, files=files)
        elif example.json:
            response = await client.post(address, json=example.json)
        else:
            response = await client.get(address)
    assert response.status_code == 200, response.text
    return response.text


def shortened(value: Any) -> Any:
    """Return an answer with the first floats of each embedding, and a few of many entries: for a page."""
    if isinstance(value, dict):
        return {key: shortened(entry) for key, entry in value.items()}
    if isinstance(value, list):
        if len(value) > 10 and isinstance(value[0], float):
            return [*(round(entry, 2) for entry in value[:3]), "…"]
        return [shortened(entry) for entry in value]
    return round(value, 2) if isinstance(value, float) else value


def answer(path: str, example: RequestExample) -> str:
    """Return what an example gives, for a page; nothing where it is long or of the machine."""
    if path.endswith(("/{table}", "/metrics", "/openapi.json", "/models", "/{model}")):
        return ""
    found = shortened(json.loads(asyncio.run(ask(path, example))))
    return f"\n```json\n{json.dumps(found, ensure_ascii=False)}\n```\n"


def routes() -> str:
    """Write the reference of all routes."""
    parts = []
    described = {ROUTE_PREFIX + route.path: route for route in api.api_routes()}
    for entry in entries(api.api_routes(), SERVER):
        rows = [(f"`{parameter['name']}`", parameter["meaning"]) for parameter in entry["parameters"]]
        example = described[entry["path"]].example
        parts.append(
            f"### {entry['summary']}\n\n{entry['methods']} `{entry['path']}`\n\n{entry['description']}\n"
            + (f"\n{table(['parameter', 'meaning'], rows)}\n" if rows else "")
            + (f"\n```bash\n{entry['example']}\n```\n{answer(entry['path'], example)}" if example else "")
        )
    return "\n" + "\n".join(parts) + "\n"


def shown(*names: str) -> str:
    """Write the examples of a few routes with their answers, for the README."""
    chosen = {route.name: route for route in api.api_routes()}
    parts = []
    for name in names:
        path, example = ROUTE_PREFIX + chosen[name].path, chosen[name].example
        assert example is not None
        parts.append(f"\n```bash\n{example.curl(SERVER, path)}\n```\n{answer(path, example)}")
    return "".join(parts) + "\n"


def statuses() -> str:
    """Write the table of HTTP statuses."""
    return (
        "\n" + table(["status", "meaning"], [(f"{status}", meaning) for status, meaning in STATUSES.items()]) + "\n\n"
    )
