"""/-/vision/picture/…: caches, sizes, and what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasette.app import Datasette

from datasette_vision import images
from datasette_vision.plugin.pictures import SIZES

PICTURE = "/-/vision/picture/demo/emoji/image/1F34E"


@pytest.fixture
def datasette(demo_path: Path) -> Datasette:
    return Datasette([str(demo_path)])


@pytest.mark.asyncio
async def test_caches_may_keep_it_and_ask_whether_it_changed(datasette: Datasette) -> None:
    first = await datasette.client.get(PICTURE)
    assert (first.status_code, first.headers["content-type"]) == (200, "image/webp")
    assert first.headers["cache-control"] == "public, max-age=300"
    again = await datasette.client.get(PICTURE, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    small = await datasette.client.get(f"{PICTURE}?_size=96", headers={"if-none-match": first.headers["etag"]})
    assert small.status_code == 200


@pytest.mark.asyncio
async def test_sizes(datasette: Datasette) -> None:
    for size in SIZES:
        response = await datasette.client.get(f"{PICTURE}?_size={size}")
        assert max(images.info(response.content)["width"], images.info(response.content)["height"]) <= size
    assert (await datasette.client.get(f"{PICTURE}?_size=97")).status_code == 400
    assert (await datasette.client.get(f"{PICTURE}?_size=x")).status_code == 400


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "path",
    ["image/nope", "image/a,b", "name/1F34E", "nope/1F34E", "1F34E~22~20or~201/1F34E", "rowid/1F34E"],
)
async def test_what_is_not_there(datasette: Datasette, path: str) -> None:
    assert (await datasette.client.get(f"/-/vision/picture/demo/emoji/{path}")).status_code == 404
