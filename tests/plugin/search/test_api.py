"""The search as JSON: the same rows as the page, for notebooks and programs."""

from __future__ import annotations

import base64
import dataclasses
import shutil
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from datasette.app import Datasette

from datasette_vision.engine.vision import Vision
from datasette_vision.plugin.search import embedded_table, search
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.plugin.server.state import state_of
from datasette_vision.vectors import embedding as vectors
from tests.conftest import Connection
from tests.plugin.search.test_page import ROOT_ONLY, get, make

SEARCH = "/-/vision/search/demo/emoji"


@pytest.fixture
def datasette(demo_path: Path) -> Datasette:
    return make(demo_path)


async def ask(datasette: Datasette, query: str) -> Any:
    response = await datasette.client.get(SEARCH + query)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.asyncio
async def test_what_is_told_of_a_search(datasette: Datasette) -> None:
    found = await ask(datasette, "?q=purple+heart&_size=3")
    assert list(found) == [
        "ok", "database", "table", "column", "model", "rows", "next", "next_url", "sql", "parameters",
    ]  # fmt: skip
    assert (found["ok"], found["database"], found["table"]) == (True, "demo", "emoji")
    assert (found["column"], found["model"], found["next"]) == ("image", "tiny-emoji", 2)
    assert found["parameters"] == {"q": "purple heart"}
    assert len(found["rows"]) == 3
    first = found["rows"][0]
    similarity = first.pop("similarity")
    assert 0.3 < similarity < 1
    assert first == {
        "path": "1F49C",
        "label": "purple heart",
        "url": "http://localhost/demo/emoji/1F49C",
        "picture": "http://localhost/-/vision/picture/demo/emoji/image/1F49C",
        "thumbnail": "http://localhost/-/vision/picture/demo/emoji/image/1F49C?_size=384",
        "row": {
            "hexcode": "1F49C",
            "emoji": "\U0001f49c",
            "name": "purple heart",
            "group_name": first["row"]["group_name"],
            "subgroup": "heart",
            "keywords": first["row"]["keywords"],
        },
    }
    for name in ("url", "picture", "thumbnail"):
        assert (
            await datasette.client.get(urlsplit(first[name])._replace(scheme="", netloc="").geturl())
        ).status_code == 200


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "query",
    [
        "?q=happy+cat",
        "?q=fruit&_not=red&_like=1F34F&_unlike=1F34E&_threshold=0.1&group_name=food-drink&_size=7&_page=2",
    ],
)
async def test_the_same_rows_as_the_page(datasette: Datasette, query: str) -> None:
    page = await get(datasette, f"/-/vision/demo/emoji{query}")
    found = await ask(datasette, query)
    assert [row["label"] for row in found["rows"]] == page.labels
    assert [round(row["similarity"], 4) for row in found["rows"]] == page.similarities
    assert found["sql"] == page.sql
    assert page.link("vision-json") == SEARCH + query


@pytest.mark.asyncio
async def test_pages_follow_each_other_to_the_end(datasette: Datasette) -> None:
    seen: list[str] = []
    address = f"{SEARCH}?q=cat&group_name=flags&_size=100"
    while address:
        found = (await datasette.client.get(address)).json()
        seen += [row["path"] for row in found["rows"]]
        address = found["next_url"] and found["next_url"].removeprefix("http://localhost")
        assert (found["next"] is None) is (address is None)
    count = (await datasette.get_database("demo").execute("select count(*) from emoji where group_name = 'flags'")).rows
    assert len(seen) == len(set(seen)) == count[0][0] > 200


@pytest.mark.asyncio
async def test_only_the_rows(datasette: Datasette) -> None:
    found = await ask(datasette, "?q=cat&_size=2&_shape=array")
    assert [sorted(row) for row in found] == [["label", "path", "picture", "row", "similarity", "thumbnail", "url"]] * 2


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["data URI", "base64", "file", "floats", "base64 of floats"])
async def test_a_picture_or_an_embedding_is_posted(datasette: Datasette, vision: Vision, how: str) -> None:
    image = (await datasette.get_database("demo").execute("select image from emoji where name = 'pizza'")).rows[0][0]
    encoded = base64.b64encode(image).decode()
    vector = vision.embed_image(image)
    sent: dict[str, Any] = {
        "data URI": {"json": {"image": f"data:image/webp;base64,{encoded}"}},
        "base64": {"json": {"image": encoded}},
        "file": {"files": {"image": ("pizza.webp", image)}},
        "floats": {"json": {"embedding": vector.tolist()}},
        "base64 of floats": {"json": {"embedding": base64.b64encode(vectors.to_blob(vector)).decode()}},
    }[how]
    response = await datasette.client.post(f"{SEARCH}?_size=3&group_name=food-drink", **sent)
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["rows"][0]["label"] == "pizza"
    assert found["rows"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    following = (await datasette.client.get(found["next_url"].removeprefix("http://localhost"))).json()
    assert not {row["path"] for row in found["rows"]} & {row["path"] for row in following["rows"]}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        (
            f"{SEARCH}?q=x&_through=%7B%7D",
            400,
            "_through: expected a JSON object of table, column and value, found '{}'",
        ),
        (f"{SEARCH}?q=x&_through=no", 400, "_through: expected a JSON object of table, column and value, found 'no'"),
        (
            f"{SEARCH}?q=x&_through=%7B%22table%22:%22emoji%22,%22column%22:%22name%22,%22value%22:%22x%22%7D",
            400,
            "Invalid _through - could not find corresponding foreign key",
        ),
        (f"{SEARCH}?q=x&_size=0", 400, "_size: expected a whole number from 1 to 1000, found '0'"),
        (f"{SEARCH}?q=x&_model=nope", 404, "emoji has no embeddings by 'nope'; embedded by: tiny-emoji (image)"),
        (f"{SEARCH}?q=x&nope=1", 400, "emoji has no column 'nope' to filter by"),
        ("/-/vision/search/demo/nowhere?q=x", 404, "Table not found"),
        ("/-/vision/search/nowhere/emoji?q=x", 404, "Database not found"),
        (
            "/-/vision/search/demo/_vision_emoji?q=x",
            404,
            "_vision_emoji has no embeddings yet: make them with `datasette vision embed demo.db _vision_emoji`",
        ),
    ],
)
async def test_mistakes_in_json(datasette: Datasette, path: str, status: int, message: str) -> None:
    response = await datasette.client.get(path)
    assert response.status_code == status
    told = response.json()
    assert (told["ok"], told["status"]) == (False, status)
    assert told["error"].startswith(message)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"json": {"image": "bm90IGFuIGltYWdl"}}, "this text is not an image: expected a data: URI or base64"),
        ({"json": {"image": ["a", "b"]}}, "expected one image or embedding, found 2"),
        ({"json": {"text": "cat"}}, "expected image, embedding or inputs, found none"),
    ],
)
async def test_mistakes_in_what_is_posted(datasette: Datasette, sent: dict[str, Any], message: str) -> None:
    response = await datasette.client.post(SEARCH, **sent)
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.asyncio
@pytest.mark.parametrize("config", [config for _, config in ROOT_ONLY], ids=[name for name, _ in ROOT_ONLY])
async def test_refused_exactly_as_the_table_is(demo_path: Path, config: dict[str, Any]) -> None:
    datasette = make(demo_path, **config)
    refused = await datasette.client.get(f"{SEARCH}?q=cat")
    assert refused.status_code == (await datasette.client.get("/demo/emoji.json")).status_code == 403
    assert refused.json()["ok"] is False
    root = {"ds_actor": datasette.sign({"a": {"id": "root"}}, "actor")}
    assert (await datasette.client.get(f"{SEARCH}?q=cat", cookies=root)).status_code == 200


@pytest.mark.asyncio
async def test_computing_has_a_permission_of_its_own(demo_path: Path) -> None:
    datasette = make(demo_path, plugins={"datasette-vision": {"allow": False}})
    refused = await datasette.client.get(f"{SEARCH}?q=cat")
    assert refused.status_code == 403
    assert refused.json()["error"].startswith("searching for these words runs a model")
    posted = await datasette.client.post(SEARCH, json={"image": "bm90IGFuIGltYWdl"})
    assert posted.status_code == 403
    page = await datasette.client.get("/-/vision/demo/emoji?q=cat")
    assert page.status_code == 403
    assert "needs the permission vision-infer" in page.text
    assert 'type="file"' not in page.text
    # To compare with what is stored, or known from before, needs no model.
    like = await ask(datasette, "?_like=1F34E&_size=1")
    assert [row["label"] for row in like["rows"]] == ["red apple"]
    embedding = state_of(datasette).vision.get().embed_text("cat", "tiny-emoji").tolist()
    assert (await datasette.client.post(SEARCH, json={"embedding": embedding})).status_code == 200
    assert (await ask(datasette, "?q=cat"))["rows"]
    assert (await get(datasette, "/-/vision/demo/emoji?q=cat")).labels


@pytest.mark.asyncio
async def test_large_tables_by_index_and_exactly_when_that_fails(
    datasette: Datasette, demo_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = await ask(datasette, "?q=happy+cat")
    exact_filtered = await ask(datasette, "?q=happy+cat&name__contains=e")
    assert "vision_search" not in exact["sql"] + exact_filtered["sql"]
    read = embedded_table.read_embedded_table
    monkeypatch.setattr(
        embedded_table,
        "read_embedded_table",
        lambda *arguments: dataclasses.replace(read(*arguments), is_large=True),  # type: ignore[type-var]
    )
    indexed = await ask(datasette, "?q=happy+cat")
    assert "vision_search('emoji', :q, 24, 'tiny-emoji', 'image')" in indexed["sql"]
    assert [row["path"] for row in indexed["rows"]] == [row["path"] for row in exact["rows"]]
    filtered = await ask(datasette, "?q=happy+cat&name__contains=e")
    assert "json_group_array(rowid)" in filtered["sql"]
    assert [row["path"] for row in filtered["rows"]] == [row["path"] for row in exact_filtered["rows"]]

    from datasette_vision.errors import Busy
    from datasette_vision.retrieval.search import Searcher

    def busy(*arguments: object, **named: object) -> None:
        raise Busy("the embeddings of emoji are being read")

    monkeypatch.setattr(Searcher, "search", busy)
    instead = await ask(datasette, "?q=happy+cat")
    assert instead["sql"] == exact["sql"]
    assert instead["rows"] == exact["rows"]


@pytest.mark.asyncio
async def test_other_origins_may_read_it_with_cors(demo_path: Path) -> None:
    datasette = Datasette([str(demo_path)], cors=True)
    response = await datasette.client.get(f"{SEARCH}?q=cat&_size=1")
    assert response.headers["access-control-allow-origin"] == "*"
    assert IS_1_0 or response.status_code == 200


BAD_FILTERS = [
    ("_through", "x", "_through: expected a JSON object of table, column and value, found 'x'"),
    ("_through", "{}", "_through: expected a JSON object"),
    ("_through", "[" * 5000, "_through: expected a JSON object"),
    ("_through", '{"table": 5, "column": "x", "value": "y"}', "_through: expected a JSON object"),
    ("_through", '{"table": "emoji", "column": "x", "value": {}}', "_through: expected a JSON object"),
    ("_through", '{"table": "nope", "column": "x", "value": "y"}', "could not find corresponding foreign key"),
    ("_through", '{"table": "emoji", "column": "x", "value": "y"}', "could not find corresponding foreign key"),
    ("_where", "(", "syntax error"),
    ("_where", "nonsense > 1", "no such column: nonsense"),
    ("_where", ":p1", "You did not supply a value"),
    ("_where", "vision_embed(5)", "vision_embed(): expected TEXT"),
    ("name__in", "[", "name__in: expected a JSON array of texts and numbers, found '['"),
    ("name__notin", '[1, {"a": 2}]', "name__notin: expected a JSON array of texts and numbers"),
    ("name__arraycontains", "x", "malformed JSON"),
    ("name__nope", "x", "there is no filter 'nope'"),
    ("nope", "x", "emoji has no column 'nope'"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "value", "message"), BAD_FILTERS)
async def test_filters_that_are_none(datasette: Datasette, name: str, value: str, message: str) -> None:
    """Whatever Datasette itself makes of them: the request is wrong, and not the server."""
    query = "?" + urlencode({"q": "cat", name: value})
    response = await datasette.client.get(SEARCH + query)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]
    page = await datasette.client.get(f"/-/vision/demo/emoji{query}")
    assert page.status_code == 400


@pytest.mark.asyncio
async def test_a_full_text_search_that_cannot_be_read(demo_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "demo.db"
    shutil.copy(demo_path, path)
    connection = sqlite3.connect(path)
    connection.execute('create virtual table emoji_fts using fts5(name, content="emoji")')
    connection.execute("insert into emoji_fts(emoji_fts) values ('rebuild')")
    connection.commit()
    connection.close()
    datasette = make(path)
    assert (await datasette.client.get(f"{SEARCH}?_search=cat")).json()["rows"]
    for query in ("_searchmode=raw&_search=%22", "_searchmode=raw&_search=AND", "_search_nope=cat"):
        response = await datasette.client.get(f"{SEARCH}?{query}")
        assert response.status_code == 400, response.text
        assert (await datasette.client.get(f"/-/vision/demo/emoji?{query}")).status_code == 400


@pytest.mark.asyncio
async def test_an_example_that_goes_while_it_is_searched_for(
    datasette: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its embedding was there a moment ago: without it every row would be as near as any other."""

    async def looked_at_too_early(search: object) -> None:
        return None

    monkeypatch.setattr(search, "_check_examples", looked_at_too_early)
    answer = await datasette.client.get("/-/vision/search/demo/emoji?_like=NOWHERE&_size=3")
    assert answer.status_code == 503, answer.text
    assert "has just changed: try again" in answer.json()["error"]
