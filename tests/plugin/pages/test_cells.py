"""Pictures and embeddings in Datasette's own pages."""

from __future__ import annotations

import html
import re
import sqlite3
import struct
from pathlib import Path

import pytest
from datasette.app import Datasette

from datasette_vision.engine.vision import Vision
from datasette_vision.images import decode as images
from datasette_vision.plugin.pages.cells import is_embedding
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.vectors import embedding as vectors
from tests import pictures, searchtables

IMAGE = re.compile(r'<a href="([^"]+)"><img src="([^"]+)" alt="([^"]+)"')


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, vision: Vision) -> Path:
    """A table with a picture of each size, and one that is broken."""
    path = tmp_path_factory.mktemp("cells") / "shop.db"
    searchtables.make(path, vision, "tiny-emoji")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("create table sizes (id integer primary key, name text, photo blob)")
        for name, photo in PHOTOS.items():
            connection.execute("insert into sizes (name, photo) values (?, ?)", (name, photo))
        # As `vision load` makes it: paths were embedded, thumbnails are shown.
        connection.execute("create table loaded (id integer primary key, path text, thumbnail blob)")
        connection.execute("insert into loaded values (1, 'a.png', ?)", (PHOTOS["small"],))
        side = SideTable("loaded", ("id",))
        side.create(connection)
        side.write(connection, [SideTableRow((1,), "path", "tiny-emoji", "", vectors.to_blob(vision.embed_text("a")))])
        connection.execute("create view seen as select name, photo from sizes where name = 'small'")
    connection.close()
    return path


PHOTOS = {
    "small": pictures.png(),
    "large": pictures.jpeg(640, 480),
    "tiff": pictures.picture_file("TIFF", 300, 200),
    "broken": pictures.png()[:60],
    "other": b"no picture at all, but long enough to be one",
}


@pytest.fixture
def datasette(path: Path, demo_path: Path) -> Datasette:
    return Datasette([str(path), str(demo_path)])


@pytest.mark.asyncio
async def test_pictures_in_a_table(datasette: Datasette) -> None:
    text = (await datasette.client.get("/shop/sizes")).text
    found = {address.rsplit("/", 1)[1]: (address, source, alt) for address, source, alt in IMAGE.findall(text)}
    assert sorted(found) == ["1", "2", "3", "4"]
    assert found["1"][1].startswith("data:image/png;base64,")  # small ones need no request of their own
    assert found["2"][1] == "/-/vision/picture/shop/sizes/photo/2?_size=192"
    assert html.unescape(found["2"][2]).startswith("photo: 640×480 JPEG, ")  # noqa: RUF001
    assert found["3"][1].endswith("?_size=192")  # no browser shows a TIFF
    assert "damaged" in found["4"][2] or "PNG" in found["4"][2]
    assert "find similar" not in text  # the table is not embedded
    assert text.count("Binary:") == 1
    large = await datasette.client.get(found["2"][1])
    assert (large.status_code, large.headers["content-type"]) == (200, "image/webp")
    assert images.info(large.content)["width"] == 192
    full = await datasette.client.get(found["2"][0])
    assert (full.headers["content-type"], full.content) == ("image/jpeg", PHOTOS["large"])
    assert full.headers["x-content-type-options"] == "nosniff"
    tiff = await datasette.client.get(found["3"][0])
    assert (tiff.headers["content-type"], images.info(tiff.content)["format"]) == ("image/webp", "WEBP")
    assert (await datasette.client.get("/-/vision/picture/shop/sizes/photo/5")).status_code == 404


@pytest.mark.asyncio
async def test_pictures_in_a_row_and_in_a_view(datasette: Datasette) -> None:
    row = (await datasette.client.get("/shop/sizes/2")).text
    assert IMAGE.findall(row)[0][0] == "/-/vision/picture/shop/sizes/photo/2"
    view = (await datasette.client.get("/shop/seen")).text
    assert view.count('<img src="data:image/png') == 1


@pytest.mark.asyncio
async def test_what_is_embedded_leads_to_what_is_similar(datasette: Datasette) -> None:
    for page in ("/demo/emoji", "/demo/emoji/1F34E", "/shop/loaded", "/shop/loaded/1"):
        text = (await datasette.client.get(page)).text
        links = re.findall(r'<a href="([^"]+)">find similar</a>', text)
        assert links
        found = await datasette.client.get(html.unescape(links[-1]))
        assert found.status_code == 200
        assert "vision-example" in found.text


@pytest.mark.asyncio
@pytest.mark.parametrize("table", ["photos", "plain", "pairs", "codes", "odd ~22table~22"])
async def test_embeddings_are_told_as_what_they_are(datasette: Datasette, table: str) -> None:
    side = f"/shop/_vision_{table}".replace(" ", "+")
    text = (await datasette.client.get(side)).text
    assert text.count("256 floats") == 8
    assert "Binary:" not in text
    links = re.findall(r'<a href="([^"]+)">find similar</a>', text)
    assert len(links) == 8
    for link in links[:2]:
        found = await datasette.client.get(html.unescape(link))
        assert found.status_code == 200, found.text
        assert found.text.count("vision-card vision-example") == 1


@pytest.mark.asyncio
async def test_the_result_of_a_query(datasette: Datasette) -> None:
    path = "/shop/-/query" if IS_1_0 else "/shop"
    text = (await datasette.client.get(path, params={"sql": "select * from sizes join _vision_photos using (id)"})).text
    assert text.count('<img src="data:') == 3  # the TIFF is none for a browser
    assert text.count("256 floats") == 5
    assert "find similar" not in text


@pytest.mark.parametrize(
    ("value", "column", "is_one"),
    [
        (struct.pack("<16f", *[0.25] * 16), "x", True),
        (struct.pack("<16f", *[2.0] * 16), "embedding", True),
        (struct.pack("<16f", *[2.0] * 16), "text_embedding", True),
        (struct.pack("<16f", *[2.0] * 16), "x", False),
        (struct.pack("<4f", *[0.5] * 4), "embedding", False),
        (bytes(64), "embedding", False),
        (b"\xff" * 64, "embedding", False),
        (b"a" * 65, "embedding", False),
        (b"\x89" * 63 + b"\x7f", "x", False),
    ],
)
def test_what_an_embedding_is(value: bytes, column: str, is_one: bool) -> None:
    assert is_embedding(value, column) is is_one
