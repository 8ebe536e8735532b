"""Every way to what the plugin tells and computes, for every kind of actor, under every kind of configuration.

What is expected is not written here: Datasette is asked. What is told of a table is told to those who see the table's
own page; what is told of the server, to those who see the instance; and a model computes for those alone who may have
it compute. The ways are made of the routes that are registered, and a route without one fails.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from datasette.app import Datasette
from datasette.utils import actor_matches_allow
from datasette.utils.sqlite import sqlite3

from datasette_vision.bulk import photos
from datasette_vision.engine.cache import EmbeddingCache, LabelSets
from datasette_vision.engine.vision import Vision
from datasette_vision.plugin import hooks
from datasette_vision.plugin.api.table import api_routes
from datasette_vision.plugin.http.inputs import TEXT
from datasette_vision.plugin.http.routes import GET, POST, ROUTE_PREFIX, Route
from datasette_vision.plugin.search.request import encode_embedding
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.plugin.server.permissions import INFER, METRICS
from datasette_vision.plugin.server.state import state_of
from datasette_vision.sql.table import FUNCTIONS
from datasette_vision.tables.schema import SideTable, SideTableRow, content_hash
from datasette_vision.vectors import embedding as vectors
from tests import pictures

PLUGIN = "datasette-vision"
MODEL = "fake"
KNOWN = "words that were embedded before"
TABLES = ("zzopen", "zzhidden", "zzveiled")  # the last is a view
ALICE = {"id": "alice"}
# The plugin's own tables with the table each belongs to, None for those of root alone, and a row of each.
OWN = {
    **{f"_vision_{table}": (table, f"1,picture,{MODEL}") for table in TABLES},
    "_vision_zzgone": (None, f"1,picture,{MODEL}"),
    "_visionloads": (None, "zzhidden"),
    "_visionchanges": (None, "_vision_zzhidden,1"),
}
ACTORS: dict[str, dict[str, Any] | None] = {
    "anonymous": None,
    "alice": ALICE,
    "root": {"id": "root"},
    "a token of alice for a table": {
        **ALICE,
        "_r": {"r": {"pub": {name: ["view-table"] for name in ("zzopen", "_vision_zzopen", "_vision_zzhidden")}}},
    },
    "a token of alice for SQL": {**ALICE, "_r": {"a": ["execute-sql"]}},
    "a token of alice for models": {**ALICE, "_r": {"a": [INFER]}},
}


@dataclass(frozen=True)
class Setup:
    """A configuration: of the instance, of the plugin, and of the command line."""

    instance: dict[str, Any]
    plugin: dict[str, Any]
    default_deny: bool = False

    @property
    def is_for_this_line(self) -> bool:
        """Datasette 0.65 has neither `permissions:` blocks nor --default-deny."""
        return IS_1_0 or not (self.default_deny or "permissions" in json.dumps(self.instance))


def hiding(table: str) -> dict[str, Any]:
    return {"databases": {"pub": {"tables": {table: {"allow": ALICE}}}}}


SETUPS = {
    "open": Setup({}, {}),
    "allow block": Setup({"allow": ALICE}, {}),
    "view-instance": Setup({"permissions": {"view-instance": ALICE}}, {}),
    "view-table": Setup({"permissions": {"view-table": ALICE}}, {}),
    "vision-infer": Setup({"permissions": {INFER: ALICE}}, {}),
    "hidden table": Setup(hiding("zzhidden"), {}),
    "hidden view": Setup(hiding("zzveiled"), {}),
    "private database": Setup({"databases": {"pub": {"allow": ALICE}}}, {}),
    "no SQL": Setup({"allow_sql": False}, {}),
    "default deny": Setup({}, {}, default_deny=True),
    "nobody computes": Setup({}, {"allow": False}),
    "alice computes": Setup({}, {"allow": ALICE}),
}
SETUPS = {name: setup for name, setup in SETUPS.items() if setup.is_for_this_line}

Request = tuple[str, str, dict[str, Any]]


@dataclass(frozen=True)
class Way:
    """A request, made with a number that no other had, of which table it tells, and whether a model has to compute."""

    name: str
    request: Callable[[int], Request]
    table: str | None = None
    computes: bool = False
    needs: tuple[str, ...] = ()
    # Whether it tells of the server, or shows a page. To be computed for, or to read metrics, needs nothing else.
    is_of_instance: bool = True
    # A page of Datasette's that has to be shown as well.
    page: str | None = None
    # Whether it is SQL, which reads everything, and tells what it may not do as it tells all errors.
    is_sql: bool = False


def picture(number: int) -> bytes:
    return pictures.png(8, 8, seed=number)


def data_uri(number: int) -> str:
    return "data:image/png;base64," + base64.b64encode(picture(number)).decode()


# Ways of the routes


def posted_picture(path: str) -> Callable[[int], Request]:
    return lambda number: (POST, path, {"files": {"picture": ("p.png", picture(number), "image/png")}})


def posted(path: str, body: Callable[[int], dict[str, Any]]) -> Callable[[int], Request]:
    return lambda number: (POST, path, {"json": body(number)})


def got(address: str) -> Callable[[int], Request]:
    return lambda number: (GET, address.replace("NUMBER", str(number)), {})


def of_table(pattern: str) -> Iterator[Way]:
    """The ways of a route that is about a table."""
    for table in TABLES:
        path = re.sub(r"\(\?P<(\w+)>[^)]*\)", lambda part: PARTS.get(part[1], table), pattern).strip("^$")  # noqa: B023
        if "picture" in path:
            yield Way("picture", got(path), table)
            yield Way("thumbnail", got(f"{path}?_size=96"), table)
            continue
        yield Way("words", got(f"{path}?q=word+NUMBER"), table, computes=True)
        if not path.startswith(f"{ROUTE_PREFIX}/search/"):
            yield Way("rows", got(path), table)
            yield Way("upload", posted_picture(path), table, computes=True)
            continue
        yield Way("like a row", got(f"{path}?_like=1"), table)
        yield Way("known words", got(f"{path}?{urlencode({'q': KNOWN})}"), table)
        yield Way("image", posted(path, lambda number: {"image": data_uri(number)}), table, computes=True)
        if table == "zzhidden":
            yield Way("words to avoid", got(f"{path}?_like=1&_not=word+NUMBER"), table, computes=True)
            yield Way("embedding", got(f"{path}?_embedding={EMBEDDING}"), table)
            yield Way("posted embedding", posted(path, lambda _: {"embedding": [1.0] * 8}), table)


PARTS = {"database": "pub", "model": MODEL, "column": "picture", "row": "1"}
VALUES: dict[str, Any] = {"labels": ["word NUMBER", "b"], "query": "query NUMBER"}
EMBEDDING = encode_embedding(vectors.to_blob(vectors.normalise(vectors.from_blob(struct.pack("<8f", *range(8))))))


def of_route(route: Route) -> Iterator[Way]:
    """The ways of a route of the API that is about no table: with the input of its first kind, got and posted."""
    path = ROUTE_PREFIX + route.path.replace("{model}", MODEL)
    values = {item.name: VALUES[item.name] for item in route.parameters if item.required}
    if route.kinds:
        values[route.kinds[0]] = "text NUMBER" if route.kinds[0] == TEXT else "IMAGE"
    if route.body is not None:
        values = {"input": "input NUMBER"}
    needs = (METRICS,) if route.action == METRICS else ()

    def request(method: str, number: int) -> Request:
        text = json.dumps(values).replace("NUMBER", str(number)).replace("IMAGE", data_uri(number))
        return (method, path, {"params" if method == GET else "json": json.loads(text)} if values else {})

    for method in route.methods:
        of_instance = not values and not needs
        yield Way(method, lambda number, method=method: request(method, number), None, bool(values), needs, of_instance)


def of_playground(pattern: str) -> Iterator[Way]:
    yield Way("page", got(ROUTE_PREFIX), needs=(INFER,))
    yield Way("upload", posted_picture(ROUTE_PREFIX), computes=True)


def ways_of_routes() -> dict[str, list[Way]]:
    """The ways of each pattern that is registered with Datasette's router."""
    described = {route.pattern: route for route in api_routes()}
    ways: dict[str, list[Way]] = {}
    for pattern, _ in hooks.register_routes():
        if "<table>" in pattern:
            ways[pattern] = list(of_table(pattern.replace("\\", "")))
        elif pattern in described:
            ways[pattern] = list(of_route(described[pattern]))
        elif pattern == f"^{ROUTE_PREFIX}$":
            ways[pattern] = list(of_playground(pattern))
    return ways


def of_own_tables() -> Iterator[Way]:
    """Datasette's own pages of the tables that the plugin makes."""
    for name, (_, row) in OWN.items():
        addresses = [f"/pub/{name}.json", f"/pub/{name}/{row}.json"]
        if name == "_vision_zzhidden":
            addresses += [f"/pub/{name}", f"/pub/{name}.csv", f"/pub/{name}/{row}"]
        for address in addresses:
            yield Way("Datasette", got(address), name)


def sql(query: str) -> str:
    """The address that runs SQL."""
    return f"/pub{'/-/query' if IS_1_0 else ''}.json?{urlencode({'sql': query})}"


def of_sql() -> Iterator[Way]:
    """The ways of SQL: that of visitors, that of the configuration, and filters."""
    for table in ("zzhidden", "_vision_zzhidden", "_visionloads"):
        yield Way("SQL", got(sql(f"select count(*) from {table}")), page=ANY_SQL, is_sql=True)
    stored = "(select embedding from _vision_zzhidden limit 1)"
    yield Way("SQL", got(sql(f"select vision_search('zzhidden', {stored})")), page=ANY_SQL, is_sql=True)
    word = "vision_embed('word NUMBER')"
    yield Way("SQL", got(sql(f"select length({word})")), None, True, page=ANY_SQL, is_sql=True)
    query = "/pub/find.json?q="
    yield Way("query", got(f"{query}word+NUMBER"), None, True, page=f"{query}{quote(KNOWN)}", is_sql=True)
    where = urlencode({"_where": f"{word} is not null"})
    yield Way("filter", got(f"/pub/zzopen.json?{where}"), "zzopen", True, page=ANY_SQL, is_sql=True)


QUERIES = {"find": "select length(vision_embed(:q)) as bytes"}
ANY_SQL = sql("select 1")
ROUTE_WAYS = ways_of_routes()
WAYS = [*itertools.chain.from_iterable(ROUTE_WAYS.values()), *of_own_tables(), *of_sql()]


# A database, a server, and what Datasette says


def add_side_table(connection: sqlite3.Connection, table: str, vision: Vision) -> None:
    side = SideTable(table, ("id",))
    side.create(connection)
    embedding = vectors.to_blob(vision.embed_text(f"the row of {table}", MODEL))
    key = "1" if table == "zzveiled" else 1  # in a view Datasette's addresses find texts alone
    side.write(connection, [SideTableRow((key,), "picture", MODEL, content_hash(table.encode()), embedding)])


@pytest.fixture(scope="module")
def models(fake_models: Path) -> Path:
    return fake_models


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    from datasette_vision.config.settings import Config
    from datasette_vision.models.store import ModelStore

    path = tmp_path_factory.mktemp("secretfolder") / "pub.db"
    vision = Vision(Config(default_model=MODEL), store=ModelStore(models))
    connection = sqlite3.connect(path)
    for table in ("zzopen", "zzhidden", "zzgone"):
        connection.execute(f"create table {table} (id integer primary key, name text, picture blob)")
        connection.execute(f"insert into {table} values (1, ?, ?)", (f"the row of {table}", picture(1)))
    connection.execute(
        "create view zzveiled as select cast(id as text) as id, 'the row of zzveiled' as name, picture from zzopen"
    )
    for table in (*TABLES, "zzgone"):
        add_side_table(connection, table, vision)
    connection.execute("drop table zzgone")
    connection.execute(photos.CREATE_LOADS)
    connection.execute("insert into _visionloads values ('zzhidden', ?, 'paths only')", (str(path.parent),))
    connection.commit()
    connection.close()
    vision.close()
    return path


def computed(vision: Vision) -> int:
    """How many inputs the models have computed."""
    return sum(
        size * count
        for service in vision.services.running().values()
        for queue in service.queues.values()
        for size, count in dict(queue.sizes).items()
    )


class Server:
    """A Datasette with a configuration, and what it says that an actor may see."""

    def __init__(self, path: Path, models: Path, setup: Setup) -> None:
        self.setup = setup
        plugin = {"models_dir": str(models), "default_model": MODEL, "default_classifier": "fake-classifier"}
        whole = {**setup.instance, "plugins": {PLUGIN: {**plugin, **setup.plugin}}}
        pub = setup.instance.get("databases", {}).get("pub", {})
        whole["databases"] = {"pub": {**pub, "queries": QUERIES}}
        named: dict[str, Any] = {"config": whole} if IS_1_0 else {"metadata": whole}
        if IS_1_0:
            named["default_deny"] = setup.default_deny
        self.datasette = Datasette([str(path)], **named)
        if IS_1_0:
            self.datasette.root_enabled = True  # as --root does
        self.vision = state_of(self.datasette).vision.get()
        self._client: httpx.AsyncClient | None = None
        self._said: dict[str, bool] = {}
        self._number = itertools.count(1000)

    async def start(self) -> None:
        await self.datasette.invoke_startup()
        self.vision.embed_text(KNOWN, MODEL)

    async def ask(self, actor: dict[str, Any] | None, request: Request) -> Any:
        method, address, named = request
        if self._client is None:
            # Datasette's own client makes a new application for every request.
            transport = httpx.ASGITransport(app=self.datasette.app())
            self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        headers = {"cookie": f"ds_actor={self.datasette.sign({'a': actor}, 'actor')}"} if actor else {}
        return await self._client.request(method, address, headers=headers, **named)

    async def shows(self, actor: dict[str, Any] | None, address: str) -> bool:
        """Whether Datasette shows one of its own pages to an actor."""
        key = json.dumps([actor, address])
        if key not in self._said:
            status = (await self.ask(actor, (GET, address, {}))).status_code
            assert status in (200, 403), (address, status)
            self._said[key] = status == 200
        return self._said[key]

    async def shows_instance(self, actor: dict[str, Any] | None) -> bool:
        return await self.shows(actor, "/-/versions.json")

    async def shows_table(self, actor: dict[str, Any] | None, table: str) -> bool:
        if table not in OWN:
            return await self.shows(actor, f"/pub/{table}.json?_size=1")
        source, _ = OWN[table]
        restrictions = (actor or {}).get("_r") if IS_1_0 else None
        if restrictions is not None and table not in restrictions.get("r", {}).get("pub", {}):
            return False
        if source is None:
            return (actor or {}).get("id") == "root" and await self.shows(actor, "/pub/zzopen.json?_size=1")
        return await self.shows_table(actor, source)

    async def may(self, actor: dict[str, Any] | None, action: str) -> bool:
        """What the two actions of the plugin mean, said once more."""
        holder = {name: value for name, value in (actor or {}).items() if name != "_r"} or None
        if "_r" in (actor or {}) and action not in (actor or {})["_r"].get("a", []):
            return False
        is_root = (holder or {}).get("id") == "root"
        if action == INFER and "allow" in self.setup.plugin:
            return bool(actor_matches_allow(holder, self.setup.plugin["allow"]))
        named = self.setup.instance.get("permissions", {}).get(action)
        if named is not None and not actor_matches_allow(holder, named):
            return False
        if action == METRICS or self.setup.default_deny:
            return is_root and await self.shows_instance(holder)
        return await self.shows_instance(holder)

    async def allows(self, actor: dict[str, Any] | None, way: Way) -> bool:
        if way.page is not None and not await self.shows(actor, way.page):
            return False
        if way.table is not None:
            if not await self.shows_table(actor, way.table):
                return False
        elif way.page is None and way.is_of_instance and not await self.shows_instance(actor):
            return False
        needs = {*way.needs, *([INFER] if way.computes else [])}
        return all([await self.may(actor, action) for action in needs])

    async def check(self, actor: dict[str, Any] | None, way: Way) -> str | None:
        """Try a way, and return what is wrong with what came of it."""
        allowed = await self.allows(actor, way)
        request = way.request(next(self._number))
        before = computed(self.vision)
        answer = await self.ask(actor, request)
        has_computed = computed(self.vision) > before
        what = f"{request[0]} {request[1]} ({way.name}): {answer.status_code}"
        refusals = (400, 403) if way.is_sql else (403,)
        if (answer.status_code < 400) != allowed or (not allowed and answer.status_code not in refusals):
            return f"{what}, expected {'an answer' if allowed else '403'}: {answer.text[-200:]}"
        if has_computed != (allowed and way.computes):
            return f"{what}, and a model {'computed' if has_computed else 'did not compute'}"
        if "secretfolder" in answer.text and (actor or {}).get("id") != "root":
            return f"{what}, with a path of the server"
        for table in () if way.is_sql else TABLES:
            if not await self.shows_table(actor, table):
                if f"the row of {table}" in answer.text:
                    return f"{what}, with a row of {table}"
                if way.table is None and table in answer.text:
                    return f"{what}, with the name of {table}"
        return None


def test_every_route_has_a_way() -> None:
    patterns = [pattern for pattern, _ in hooks.register_routes()]
    assert [pattern for pattern in patterns if not ROUTE_WAYS.get(pattern)] == []
    for pattern, ways in ROUTE_WAYS.items():
        for way in ways:
            address = way.request(1)[1].partition("?")[0]
            first = next(known for known in patterns if re.match(known, address))
            assert first == pattern, address


@pytest.mark.asyncio
@pytest.mark.parametrize("setup", SETUPS)
async def test_what_is_told_is_what_datasette_shows(path: Path, models: Path, setup: str) -> None:
    server = Server(path, models, SETUPS[setup])
    await server.start()
    wrong = []
    for name, actor in ACTORS.items():
        for way in WAYS:
            found = await server.check(actor, way)
            if found is not None:
                wrong.append(f"{name}: {found}")
    state_of(server.datasette).close()
    assert not wrong, f"{len(wrong)} of {len(ACTORS) * len(WAYS)}:\n" + "\n".join(wrong)


@pytest.mark.asyncio
async def test_the_matrix_has_all_cases(path: Path, models: Path) -> None:
    """Without actors that may and actors that may not, it would say nothing."""
    said: dict[str, set[bool]] = {}
    for setup in SETUPS.values():
        server = Server(path, models, setup)
        await server.start()
        for way in WAYS:
            for actor in ACTORS.values():
                said.setdefault(way.request(1)[1], set()).add(await server.allows(actor, way))
        state_of(server.datasette).close()
    assert {address for address, found in said.items() if found != {True, False}} == set()


@pytest.mark.asyncio
async def test_no_sql_function_computes_without_the_permission(demo_path: Path) -> None:
    """Every function there is, by its example. Which of them compute is found out by running them."""
    computing: dict[str, list[bool]] = {}
    for plugin in ({}, {"allow": False}):
        datasette = Datasette([str(demo_path)], **{"config" if IS_1_0 else "metadata": {"plugins": {PLUGIN: plugin}}})
        await datasette.invoke_startup()
        vision = state_of(datasette).vision.get()
        for function in FUNCTIONS:
            vision.cache, vision.label_sets = EmbeddingCache(10_000_000), LabelSets(10_000_000)
            before = computed(vision)
            answer = await datasette.client.get(
                f"/demo{'/-/query' if IS_1_0 else ''}.json", params={"sql": function.example}
            )
            computing.setdefault(function.name, []).append(computed(vision) > before)
            refused = answer.status_code == 400 and INFER in answer.text
            assert refused or answer.status_code == 200, (function.name, answer.text)
            assert refused == (computing[function.name][0] and "allow" in plugin), (function.name, answer.text)
        state_of(datasette).close()
    assert not any(found[1] for found in computing.values()), computing
    assert {"vision_embed", "vision_classify", "vision_zero_shot", "llm_embed"} <= {
        name for name, found in computing.items() if found[0]
    }
