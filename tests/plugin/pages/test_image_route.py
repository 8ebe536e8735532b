"""/-/vision/picture/…: caches, sizes, and what is not there."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from datasette.app import Datasette

from datasette_vision.images import decode as images
from datasette_vision.plugin.http.context import IMAGES_HELD, context_of
from datasette_vision.plugin.pages.image_route import IMAGE_SIZES
from datasette_vision.plugin.server.compatibility import IS_1_0
from tests import pictures

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
    for size in IMAGE_SIZES:
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


@pytest.fixture
def stored(tmp_path: Path) -> Datasette:
    """A table of large pictures, on a server with little memory for them."""
    path = tmp_path / "stored.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table pictures (id integer primary key, image)")
        large = pictures.png(2000, 2000)
        connection.executemany("insert into pictures (image) values (?)", [(large,)] * 12)
        connection.execute(
            "insert into pictures (id, image) values (100, ?)",
            (pictures.raw_png(4000, 4000, 8, 2, bytes((3 * 4000 + 1) * 4000)),),
        )
        connection.execute("insert into pictures (id, image) values (101, zeroblob(3000000))")
        connection.execute("insert into pictures (id, image) values (102, 'no picture')")
    connection.close()
    configuration = {"plugins": {"datasette-vision": {"image_memory_mb": 40, "max_image_mb": 2.5}}}
    return Datasette([str(path)], **{"config" if IS_1_0 else "metadata": configuration})


STORED = "/-/vision/picture/stored/pictures/image"


@pytest.mark.asyncio
async def test_many_large_pictures_wait_for_each_other(stored: Datasette) -> None:
    context = context_of(stored)
    await context.ready()
    budget = context.vision.decoder.budget
    most_held, done = 0, False

    async def watch() -> None:
        nonlocal most_held
        while not done:
            most_held = max(most_held, IMAGES_HELD - context.image_slots._value)
            await asyncio.sleep(0.001)

    watching = asyncio.ensure_future(watch())
    answers = await asyncio.gather(*(stored.client.get(f"{STORED}/{row}?_size=96") for row in range(1, 13)))
    done = True
    await watching
    assert [answer.status_code for answer in answers] == [200] * 12
    assert 1 < most_held <= IMAGES_HELD
    assert budget.held == 0


@pytest.mark.asyncio
async def test_pages_are_served_while_pictures_wait_for_memory(stored: Datasette) -> None:
    context = context_of(stored)
    await context.ready()
    budget = context.vision.decoder.budget
    with budget.holding() as reservation:
        reservation.take(budget.total, "everything", wait=True)
        waiting = [asyncio.ensure_future(stored.client.get(f"{STORED}/{row}?_size=96")) for row in range(1, 13)]
        while not budget.waiting:
            await asyncio.sleep(0.001)
        # Neither Datasette's threads nor those of the event loop are taken.
        assert (await stored.client.get("/stored/pictures.json?_col=id")).status_code == 200
        assert await asyncio.to_thread(lambda: True)
        assert not any(answer.done() for answer in waiting)
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (100, "this PNG image of 4000x4000 pixels takes"),
        (101, "it has 3.0 MB, more than the 2.5 MB allowed (max_image_mb)"),
        (102, "There is no image in this row"),
    ],
)
async def test_what_cannot_be_shown_says_why(stored: Datasette, row: int, message: str) -> None:
    answer = await stored.client.get(f"{STORED}/{row}?_size=96")
    assert answer.status_code == 404
    assert message in answer.text


@pytest.mark.asyncio
async def test_who_waits_too_long_is_told_to_come_again(stored: Datasette) -> None:
    context = context_of(stored)
    await context.ready()
    context.vision.decoder.budget.wait_s = 0.01
    with context.vision.decoder.budget.holding() as reservation:
        reservation.take(context.vision.decoder.budget.total, "everything", wait=True)
        answer = await stored.client.get(f"{STORED}/1?_size=96")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
