"""The search page over HTTP, on whichever Datasette is installed."""

from __future__ import annotations

import contextlib
import html
import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from click.testing import CliRunner
from datasette.app import Datasette
from datasette.cli import cli

from datasette_vision.engine.vision import Vision
from datasette_vision.plugin.search.request import encode_embedding
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.vectors import embedding as vectors
from tests import searchtables
from tests.conftest import Connection
from tests.searchtables import KINDS, NAMES

PAGE = "/-/vision/demo/emoji"


@pytest.fixture(scope="module")
def shop_path(tmp_path_factory: pytest.TempPathFactory, vision: Vision) -> Path:
    path = tmp_path_factory.mktemp("pages") / "shop.db"
    searchtables.make(path, vision, "tiny-emoji")
    return path


@pytest.fixture
def datasette(demo_path: Path, shop_path: Path) -> Datasette:
    return make(demo_path, shop_path)


def make(*paths: Path, settings: dict[str, Any] | None = None, **config: Any) -> Datasette:
    """A Datasette with `config` where its line reads it from."""
    return Datasette(
        [str(path) for path in paths], settings=settings or {}, **{"config" if IS_1_0 else "metadata": config}
    )


class Page:
    """What a person sees of a search page."""

    def __init__(self, response: Any) -> None:
        self.status = response.status_code
        self.text = response.text
        self.labels = [html.unescape(label) for label in re.findall(r'class="vision-label">([^<]*)<', self.text)]
        self.similarities = [float(value) for value in re.findall(r'data-similarity="([^"]+)"', self.text)]
        self.heading = self.one(r'id="vision-heading"[^>]*>([^<]*)<')
        self.sql = self.one(r'id="vision-sql-text"[^>]*>(.*?)</pre>')
        self.error = self.one(r'class="message-error" role="alert">([^<]*)<')

    def one(self, pattern: str) -> str:
        found = re.search(pattern, self.text, re.DOTALL)
        return html.unescape(found.group(1)) if found else ""

    def link(self, identifier: str) -> str:
        """The address of the link of this id; "" when there is none."""
        tag = self.one(rf'(<a [^>]*id="{re.escape(identifier)}"[^>]*>)')
        found = re.search(r'href="([^"]*)"', tag)
        return html.unescape(found.group(1)) if found else ""


async def get(datasette: Datasette, path: str, **parameters: str) -> Page:
    return Page(await datasette.client.get(path, params=parameters or None, follow_redirects=True))


@pytest.mark.asyncio
async def test_words(datasette: Datasette) -> None:
    page = await get(datasette, f"{PAGE}?q=happy+cat")
    assert page.status == 200
    assert page.heading == "Closest to “happy cat”"
    assert len(page.labels) == 24
    assert sum("cat" in label for label in page.labels[:10]) >= 8
    assert page.similarities == sorted(page.similarities, reverse=True)
    assert f"<title>demo: emoji: {page.heading}</title>" in page.text
    sizes = re.findall(r'srcset="\S+_size=(\d+) 1x, \S+_size=(\d+) 2x"', page.text)
    assert len(sizes) == 24
    assert all(int(dense) == 2 * int(ordinary) for ordinary, dense in sizes)


@pytest.mark.asyncio
async def test_nothing_asked_yet(datasette: Datasette) -> None:
    page = await get(datasette, PAGE)
    assert (page.status, page.heading, page.similarities) == (200, "Images of emoji", [])
    assert len(page.labels) == 24
    assert "More<span" not in page.text


@pytest.mark.asyncio
async def test_like_more_and_less(datasette: Datasette) -> None:
    page = await get(datasette, f"{PAGE}?q=fruit")
    alone = await get(datasette, page.link("like-1F34E"))
    assert alone.heading == "More like red apple"
    assert alone.labels[0] == "red apple"
    more = await get(datasette, page.link("more-1F34E"))
    assert more.heading == "Closest to “fruit”, more like red apple"
    assert more.labels[0] == "red apple"
    less = await get(datasette, page.link("less-1F34E"))
    assert less.heading == "Closest to “fruit”, less like red apple"
    assert "red apple" not in less.labels
    back = await get(datasette, page.link("less-1F34E").replace("_unlike=1F34E", "_like=1F34E%3A0"))
    assert back.labels[0] == page.labels[0]


@pytest.mark.asyncio
async def test_the_weight_of_an_example_and_how_it_is_shown(datasette: Datasette) -> None:
    page = await get(datasette, f"{PAGE}?q=fruit&_like=1F34E%3A2&_unlike=1F34F&_like=1F351%3A0.7")
    assert re.findall(r'<option value="([^"]+)" selected>', page.text)[:3] == ["1F34E:2", "1F34F:-0.5", "1F351:0.7"]
    assert "0.7 times like" in page.text
    assert page.text.count('<option value="1F34E:0">remove</option>') == 1


@pytest.mark.asyncio
async def test_filters_of_datasette(datasette: Datasette) -> None:
    page = await get(datasette, f"{PAGE}?q=red&group_name=flags&name__contains=C")
    assert page.heading == 'Closest to “red”, where group_name = "flags" and name contains "C"'
    assert page.labels
    assert all("c" in label.lower() for label in page.labels)
    everything = await get(datasette, f"{PAGE}?q=red&group_name=flags&name__contains=C&_size=max")
    connection = sqlite3.connect(datasette.get_database("demo").path)
    count = connection.execute("select count(*) from emoji where group_name = 'flags' and name like '%C%'").fetchone()[
        0
    ]
    connection.close()
    assert len(everything.labels) == count


@pytest.mark.asyncio
async def test_the_form_shows_the_filters_that_are_set(datasette: Datasette) -> None:
    page = await get(datasette, f"{PAGE}?q=red&group_name=flags&name__contains=C&_where=1")
    columns = re.findall(r'name="_filter_column[^>]*>(.*?)</select>', page.text, re.DOTALL)
    assert [re.findall(r"<option selected>([^<]*)", column) for column in columns] == [["group_name"], ["name"], []]
    assert re.findall(r'name="_filter_value[^>]*value="([^"]*)"', page.text) == ["flags", "C", ""]
    assert '<input type="hidden" name="_where" value="1">' in page.text


@pytest.mark.asyncio
async def test_where_as_on_the_table_page(demo_path: Path) -> None:
    where = f"{PAGE}?q=red&_where=length(name)+%3D+4"
    page = await get(make(demo_path), where)
    assert page.labels
    assert {len(label) for label in page.labels} == {4}
    refused = make(demo_path, databases={"demo": {"allow_sql": False}}) if not IS_1_0 else make(
        demo_path, permissions={"execute-sql": False}
    )  # fmt: skip
    assert (await refused.client.get(where)).status_code == 403
    assert (await refused.client.get(f"{PAGE}?q=red")).status_code == 200


@pytest.mark.asyncio
async def test_what_the_form_sends_becomes_a_short_address(datasette: Datasette) -> None:
    sent = (
        "?q=red&_threshold=0&_not=&_filter_column_1=group_name&_filter_op_1=exact&_filter_value_1=flags"
        "&_filter_column=name&_filter_op=contains&_filter_value=a&_like=1F34E%3A-0.5&_like=1F34F%3A0"
    )
    response = await datasette.client.get(PAGE + sent)
    assert response.status_code == 302
    assert response.headers["location"] == f"{PAGE}?q=red&_unlike=1F34E&name__contains=a&group_name__exact=flags"
    assert (await datasette.client.get(response.headers["location"])).status_code == 200


@pytest.mark.asyncio
async def test_threshold_and_pages(datasette: Datasette) -> None:
    first = await get(datasette, f"{PAGE}?q=happy+cat&_size=5")
    second = await get(datasette, first.link("vision-next"))
    assert (len(first.labels), len(second.labels)) == (5, 5)
    assert not set(first.labels) & set(second.labels)
    assert (await get(datasette, second.link("vision-previous"))).labels == first.labels
    least = first.similarities[2]
    some = await get(datasette, f"{PAGE}?q=happy+cat&_size=5&_threshold={least - 0.0001:.4f}")
    assert some.labels == first.labels[:3]
    assert some.link("vision-next") == ""
    nothing = await get(datasette, f"{PAGE}?q=happy+cat&_threshold=0.99")
    assert "Nothing found with a similarity of at least 0.99." in nothing.text
    assert "There is no page 500." in (await get(datasette, f"{PAGE}?q=happy+cat&_page=500")).text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "query",
    [
        "?q=happy+cat",
        "?q=fruit&_not=red&_like=1F34F&_unlike=1F34E%3A0.25&_threshold=0.2&_page=2&_size=7",
        "?_like=1F34E&group_name=food-drink&name__contains=e",
        "?group_name=flags&_page=2",
        "?_embedding={pizza}&_size=5",
    ],
)
async def test_the_shown_sql_returns_the_same_rows_on_the_query_page(
    datasette: Datasette, vision: Vision, query: str
) -> None:
    pizza = encode_embedding(vectors.to_blob(vision.embed_text("pizza")))
    page = await get(datasette, PAGE + query.format(pizza=pizza))
    assert page.status == 200
    address = urlsplit(page.link("vision-query"))
    parameters = {name: values[0] for name, values in parse_qs(address.query).items()}
    assert parameters["sql"] == page.sql
    response = await datasette.client.get(f"{address.path}.json", params={**parameters, "_shape": "array"})
    assert response.status_code == 200, response.text
    rows = response.json()
    assert [row["name"] for row in rows] == page.labels
    if page.similarities:
        assert [round(row["similarity"], 4) for row in rows] == pytest.approx(page.similarities, abs=1e-4)
    shown = await datasette.client.get(page.link("vision-query"))
    assert shown.status_code == 200
    assert shown.text.count("<img src=") >= len(rows)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.table)
async def test_tables_of_every_kind(datasette: Datasette, kind: Any) -> None:
    from datasette.utils import tilde_encode

    address = f"/-/vision/shop/{tilde_encode(kind.table)}"
    page = await get(datasette, f"{address}?q=violin")
    assert page.labels[0] == "violin"
    assert sorted(page.labels) == sorted(NAMES)
    row = page.one(r'<a class="vision-picture" href="([^"]+)">')
    shown = await datasette.client.get(row)
    assert shown.status_code == 200
    assert "violin" in shown.text
    source = page.one(r'<img src="(/-/vision/picture/[^"]+)"')
    picture = await datasette.client.get(source)
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
    like = page.one(r'id="more-[^"]*" href="([^"]+)"')
    assert (await get(datasette, like)).heading == "Closest to “violin”, more like violin"


@pytest.mark.asyncio
async def test_a_view(datasette: Datasette) -> None:
    page = await get(datasette, "/-/vision/shop/cheap?q=apple")
    assert page.status == 200
    assert set(page.labels[:2]) == {"red apple", "green apple"}
    assert "/shop/cheap/" not in page.text.replace("/picture/shop/cheap/", "")  # a view has no pages of its rows
    picture = await datasette.client.get(page.one(r'<img src="([^"]+)"'))
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
    assert (await get(datasette, page.one(r'id="like-[^"]*" href="([^"]+)"'))).labels[0] == page.labels[0]


@pytest.mark.asyncio
async def test_tables_that_are_not_embedded_say_how(datasette: Datasette) -> None:
    page = await get(datasette, "/-/vision/shop/bare")
    assert page.status == 200
    assert "This table is not embedded yet" in page.text
    assert "datasette vision embed shop.db bare --column picture" in page.text
    assert "datasette vision embed shop.db words --column COLUMN" in (await get(datasette, "/-/vision/shop/words")).text


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("?q=x&_model=nope", 404, "emoji has no embeddings by 'nope'; embedded by: tiny-emoji (image)"),
        ("?q=x&_column=nope", 404, "emoji has no embeddings of 'nope'; embedded by: tiny-emoji (image)"),
        ("?_like=nope", 400, "emoji 'nope' is not embedded, or does not exist"),
        ("?_like=a%2Cb", 400, "emoji has no row 'a,b': its key is hexcode"),
        ("?q=x&nope=1", 400, "emoji has no column 'nope' to filter by; it has hexcode, emoji, name, group_name"),
        ("?q=x&name__nope=1", 400, "there is no filter 'nope'; filters are "),
        ("?q=x&_size=100000", 400, "_size: expected a whole number from 1 to 1000, found '100000'"),
        ("?_embedding=AAAAAA", 400, "vision_similarity(): expected two embeddings of the same model, found one of "),
    ],
)
async def test_mistakes_are_told_on_the_page(datasette: Datasette, query: str, status: int, message: str) -> None:
    page = await get(datasette, PAGE + query)
    assert page.status == status
    assert page.error.startswith(message)
    assert 'name="q"' in page.text  # so that it can be mended where it was made
    assert page.labels == []


@pytest.mark.asyncio
@pytest.mark.parametrize("value", ['"\\ud800"', "[1]", "{}", str(10**30)])
async def test_values_that_no_row_and_no_page_can_hold(demo_path: Path, tmp_path: Path, value: str) -> None:
    """A _through holds any JSON."""
    database = tmp_path / "demo.db"
    shutil.copyfile(demo_path, database)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("create table notes (id integer primary key, emoji text references emoji (hexcode))")
    through = quote(f'{{"table": "notes", "column": "id", "value": {value}}}')
    page = await get(make(database), f"{PAGE}?q=cat&_through={through}")
    assert page.status == 400
    assert page.error


@pytest.mark.asyncio
async def test_too_long_a_search_says_what_helps(demo_path: Path) -> None:
    datasette = make(demo_path, settings={"sql_time_limit_ms": 100})
    page = await get(datasette, f"{PAGE}?q=cat&_where=(select+count(*)+from+emoji+a,+emoji+b,+emoji+c)+%3E+0")
    assert page.status == 400
    assert "sql_time_limit_ms" in page.error


@pytest.mark.asyncio
async def test_what_people_type_stays_text(datasette: Datasette) -> None:
    page = await datasette.client.get(PAGE, params={"q": '"><script>alert(1)</script>', "_not": "</textarea><b>"})
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert "<b>" not in page.text


ROOT_ONLY: list[tuple[str, dict[str, Any]]] = [
    ("the table", {"databases": {"demo": {"tables": {"emoji": {"allow": {"id": "root"}}}}}}),
    ("the database", {"databases": {"demo": {"allow": {"id": "root"}}}}),
    ("the instance", {"allow": {"id": "root"}}),
]


@pytest.mark.asyncio
@pytest.mark.parametrize("config", [config for _, config in ROOT_ONLY], ids=[name for name, _ in ROOT_ONLY])
async def test_refused_exactly_as_the_table_is(demo_path: Path, config: dict[str, Any]) -> None:
    datasette = make(demo_path, **config)
    table = await datasette.client.get("/demo/emoji")
    assert table.status_code == 403
    for path in (f"{PAGE}?q=cat", "/-/vision/picture/demo/emoji/image/1F34E", "/-/vision/demo/_vision_emoji"):
        if "_vision_emoji" in path and config == ROOT_ONLY[0][1]:
            continue
        refused = await datasette.client.get(path)
        assert refused.status_code == 403
        assert "vision-label" not in refused.text
    root = {"ds_actor": datasette.sign({"a": {"id": "root"}}, "actor")}
    allowed = await datasette.client.get(f"{PAGE}?q=cat", cookies=root)
    assert allowed.status_code == 200
    picture = await datasette.client.get("/-/vision/picture/demo/emoji/image/1F34E", cookies=root)
    assert picture.headers["cache-control"].startswith("private")


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/-/vision/nowhere/emoji", "/-/vision/demo/nowhere", "/-/vision/demo/emoji/more"])
async def test_what_is_not_there(datasette: Datasette, path: str) -> None:
    assert (await datasette.client.get(path)).status_code == 404


@pytest.mark.asyncio
async def test_sql_is_shown_but_not_linked_to_those_who_may_not_run_it(demo_path: Path) -> None:
    config = {"permissions": {"execute-sql": False}} if IS_1_0 else {"allow_sql": False}
    page = await get(make(demo_path, **config), f"{PAGE}?q=cat")
    assert page.status == 200
    assert "vision_similarity" in page.sql
    assert page.link("vision-query") == ""


@pytest.mark.asyncio
async def test_under_a_base_url(demo_path: Path) -> None:
    datasette = make(demo_path, settings={"base_url": "/data/"})
    page = await get(datasette, f"{PAGE}?q=happy+cat")
    assert page.status == 200
    local = re.findall(r'(?:href|src|action)="(/[^"]*)"', page.text)
    assert len(local) > 100
    assert all(address.startswith("/data/") for address in local), [a for a in local if not a.startswith("/data/")]
    source = page.one(r'<img src="([^"]+)"')
    assert (await datasette.client.get(source.removeprefix("/data"))).status_code == 200
    found = (await datasette.client.get("/-/vision/search/demo/emoji?q=happy+cat&_size=2")).json()
    for address in (found["next_url"], found["rows"][0]["url"], found["rows"][0]["thumbnail"]):
        assert address.startswith("http://localhost/data/")
        assert (await datasette.client.get(address.removeprefix("http://localhost/data"))).status_code == 200


@pytest.mark.asyncio
async def test_two_models_and_two_columns(demo_path: Path, tmp_path: Path, fake_models: Path) -> None:
    path = tmp_path / "two.db"
    path.write_bytes(demo_path.read_bytes())
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(
            "insert into _vision_emoji select hexcode, 'keywords', 'fake', content_hash, zeroblob(28) || x'0000803f',"
            " null, embedded_at from _vision_emoji limit 5"
        )
    connection.close()
    datasette = make(path)
    page = await get(datasette, "/-/vision/two/emoji?q=cat")
    assert page.status == 200
    assert "by tiny-emoji" in page.text
    assert re.search(r'name="_model">\s*<option>fake</option><option selected>tiny-emoji</option>', page.text)
    assert re.search(r'name="_column">\s*<option>keywords</option><option selected>image</option>', page.text)


@pytest.mark.asyncio
async def test_of_two_columns_only_the_page_shows_one_unasked(demo_path: Path, tmp_path: Path, vision: Vision) -> None:
    """In SQL, over the API and on the command line it is the same mistake, told in the same words."""
    path = tmp_path / "two.db"
    path.write_bytes(demo_path.read_bytes())
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(
            "insert into _vision_emoji select hexcode, 'keywords', model, content_hash, embedding, null, embedded_at"
            " from _vision_emoji limit 5"
        )
    connection.close()
    datasette = make(path)
    ambiguous = (
        "emoji has embeddings by more than one model or of more than one column,"
        " name which to search: tiny-emoji (image, keywords)"
    )

    page = await get(datasette, "/-/vision/two/emoji?q=cat")
    assert page.status == 200
    assert re.search(r'name="_column">\s*<option selected>image</option><option>keywords</option>', page.text)
    as_json = (await datasette.client.get(page.one(r'id="vision-json" href="([^"]+)"'))).json()
    assert (as_json["ok"], as_json["model"], as_json["column"]) == (True, "tiny-emoji", "image")
    assert [row["label"] for row in as_json["rows"]] == page.labels

    response = await datasette.client.get("/-/vision/search/two/emoji?q=cat")
    assert (response.status_code, response.json()["error"]) == (400, ambiguous)
    named = (await datasette.client.get("/-/vision/search/two/emoji?q=cat&_column=keywords")).json()
    assert len(named["rows"]) == 5

    for query, arguments, expected in (
        ("'emoji', 'cat'", [], ambiguous),
        ("'emoji', 'cat', 10, '', 'keywords'", ["--column", "keywords"], None),
    ):
        outcome = Connection(vision, path)
        if expected is None:
            assert len(json.loads(outcome.one(f"vision_search({query})"))) == 5
        else:
            assert outcome.error(f"vision_search({query})") == f"vision_search(): {expected}"
        outcome.connection.close()
        done = CliRunner().invoke(cli, ["vision", "search", str(path), "emoji", "cat", "--json", *arguments])
        if expected is None:
            assert len(json.loads(done.stdout)) == 5
        else:
            assert f"Error: {expected}\n" in done.output


@pytest.mark.asyncio
async def test_a_table_embedded_by_another_key_than_its_own(tmp_path: Path, vision: Vision) -> None:
    """Addresses have the primary key, as Datasette's own: the key of the side table is for its embeddings alone."""
    searchtables.make(tmp_path / "keys.db", vision, "tiny-emoji")
    connection = sqlite3.connect(tmp_path / "keys.db")
    with connection:
        connection.execute("alter table photos add column code text")
        connection.execute("update photos set code = 'c' || (100 - id)")
        connection.execute("alter table _vision_photos rename column id to code")
        connection.execute("update _vision_photos set code = 'c' || (100 - code)")
    connection.close()
    datasette = make(tmp_path / "keys.db")
    page = await get(datasette, "/-/vision/keys/photos?q=red+apple")
    assert page.labels[0] == NAMES[0]
    assert (await datasette.client.get(page.one(r'<img src="([^"]+)"'))).status_code == 200
    assert 'href="/keys/photos/1"' in page.text
    assert (await get(datasette, page.one(r'id="like-1" href="([^"]+)"'))).labels[0] == NAMES[0]
    assert (await get(datasette, "/-/vision/keys/photos?_like=1")).labels[0] == NAMES[0]
    filtered = await get(datasette, "/-/vision/keys/photos?_like=1&name__contains=apple&_threshold=0.1")
    assert filtered.labels == ["red apple", "green apple"]
    assert "find similar" in (await datasette.client.get("/keys/photos")).text
    assert "find similar" not in (await datasette.client.get("/keys/_vision_photos")).text


@pytest.mark.asyncio
async def test_ways_to_the_page(datasette: Datasette) -> None:
    table = (await datasette.client.get("/demo/emoji")).text
    assert 'href="/-/vision/demo/emoji"' in table
    assert "Search by meaning" in table
    assert ('role="search"' in table) is IS_1_0
    row = (await datasette.client.get("/demo/emoji/1F34E")).text
    assert 'href="/-/vision/demo/emoji?_like=1F34E"' in row
    assert ("Find similar" in row) is IS_1_0
    bare = (await datasette.client.get("/shop/bare")).text
    assert "Search by meaning …" in bare
    words = (await datasette.client.get("/shop/words")).text
    assert "Search by meaning" not in words
    assert 'href="/-/vision"' in words  # in the menu
    some = (await datasette.client.get("/demo/emoji?group_name=flags&name__contains=a&_sort=name")).text
    assert 'href="/-/vision/demo/emoji?group_name=flags&amp;name__contains=a"' in some
    assert ('<input type="hidden" name="group_name" value="flags">' in some.partition("</form>")[0]) is IS_1_0
    side = (await datasette.client.get("/demo/_vision_emoji")).text
    assert "Search by meaning" not in side
