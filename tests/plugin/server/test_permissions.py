"""Who may compute, read metrics and see tables, on Datasette 0.65 and 1.0."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from datasette.utils.asgi import Forbidden, NotFound

from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.plugin.server.permissions import (
    INFER,
    METRICS,
    ensure,
    ensure_view_table,
    may,
    may_execute_sql,
    may_view_table,
    viewable_table,
)

ROOT = {"id": "root"}
ALICE = {"id": "alice"}
BOB = {"id": "bob", "team": ["staff"]}
ONLY_ALICE = {"id": "alice"}


async def start(files: tuple[Path, ...] = (), instance: dict[str, Any] | None = None, **config: Any) -> Datasette:
    """A Datasette with plugin configuration, and configuration of the instance itself."""
    whole = {**(instance or {}), "plugins": {"datasette-vision": config}}
    named: dict[str, Any] = {"config": whole} if IS_1_0 else {"metadata": whole}
    datasette = Datasette([str(file) for file in files], memory=True, **named)
    if IS_1_0:
        datasette.root_enabled = True  # as --root does; 0.65 needs nothing for it
    await datasette.invoke_startup()
    return datasette


async def who(datasette: Datasette, action: str) -> list[str]:
    """Which of four actors may do an action."""
    actors = {"nobody": None, "root": ROOT, "alice": ALICE, "bob": BOB}
    return [name for name, actor in actors.items() if await may(datasette, actor, action)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("instance", "config", "expected"),
    [
        ({}, {}, ["nobody", "root", "alice", "bob"]),
        ({}, {"allow": True}, ["nobody", "root", "alice", "bob"]),
        ({}, {"allow": ONLY_ALICE}, ["alice"]),
        ({}, {"allow": {"team": "staff"}}, ["bob"]),
        ({}, {"allow": {"unauthenticated": True}}, ["nobody"]),
        ({}, {"allow": False}, []),
        # Who may not see the instance may not compute on it, unless it is said that they may.
        ({"allow": ONLY_ALICE}, {}, ["alice"]),
        ({"allow": ONLY_ALICE}, {"allow": {"id": ["alice", "bob"]}}, ["alice", "bob"]),
    ],
)
async def test_who_may_compute(instance: dict[str, Any], config: dict[str, Any], expected: list[str]) -> None:
    assert await who(await start(instance=instance, **config), INFER) == expected


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ["root"]),
        ({"allow_metrics": True}, ["nobody", "root", "alice", "bob"]),
        ({"allow_metrics": {"id": ["root", "bob"]}}, ["root", "bob"]),
        ({"allow_metrics": ONLY_ALICE, "allow": False}, ["alice"]),
    ],
)
async def test_who_may_read_metrics(config: dict[str, Any], expected: list[str]) -> None:
    assert await who(await start(**config), METRICS) == expected


@pytest.mark.asyncio
async def test_metrics_are_for_root_where_root_may_see_the_instance() -> None:
    assert await who(await start(instance={"allow": ONLY_ALICE}), METRICS) == []
    assert await who(await start(instance={"allow": {"id": "root"}}), METRICS) == ["root"]


@pytest.mark.asyncio
async def test_ensure_raises_as_datasette_does() -> None:
    datasette = await start(allow=ONLY_ALICE)
    await ensure(datasette, ALICE, INFER)
    with pytest.raises(Forbidden, match="Permission denied: vision-infer"):
        await ensure(datasette, None, INFER)


@pytest.mark.skipif(not IS_1_0, reason="Datasette 0.65 has no permissions blocks and no tokens")
@pytest.mark.asyncio
async def test_permissions_blocks_tokens_and_default_deny() -> None:
    blocks = await start(instance={"permissions": {INFER: ONLY_ALICE, METRICS: {"team": "staff"}}})
    assert await who(blocks, INFER) == ["alice"]
    assert await who(blocks, METRICS) == ["bob"]  # as for every action: a block that does not match denies
    datasette = await start()
    assert await may(datasette, {**ALICE, "_r": {"a": [INFER]}}, INFER)
    assert not await may(datasette, {**ALICE, "_r": {"a": ["view-instance", "execute-sql"]}}, INFER)
    assert not await may(datasette, {**ROOT, "_r": {"a": [INFER]}}, METRICS)
    datasette.default_deny = True
    assert await who(datasette, INFER) == ["root"]
    denied = await start(instance={"permissions": {INFER: ONLY_ALICE, "view-instance": True}})
    denied.default_deny = True
    assert await who(denied, INFER) == ["alice"]  # root is no exception: the block names alice alone


@pytest.mark.skipif(not IS_1_0, reason="Datasette 0.65 has no permissions blocks")
@pytest.mark.asyncio
async def test_a_closed_instance_computes_for_nobody_else() -> None:
    closed = {"permissions": {"view-instance": ONLY_ALICE}}
    datasette = await start(instance=closed)
    assert await who(datasette, INFER) == ["alice"]
    assert await who(datasette, METRICS) == []
    # To be named is enough.
    assert await who(await start(instance=closed, allow={"id": "bob"}, allow_metrics=True), INFER) == ["bob"]
    named = {"permissions": {"view-instance": ONLY_ALICE, INFER: {"team": "staff"}, METRICS: {"team": "staff"}}}
    assert await who(await start(instance=named), INFER) == ["bob"]
    assert await who(await start(instance=named), METRICS) == ["bob"]


@pytest.mark.asyncio
async def test_a_restricted_token_computes_only_when_it_says_so() -> None:
    datasette = await start()
    for restrictions, expected in (
        ({}, False),
        ({"a": []}, False),
        ({"a": ["execute-sql", "view-instance"]}, False),
        ({"d": {"zoo": ["execute-sql"]}}, False),
        ({"r": {"zoo": {"animals": ["view-table"]}}}, False),
        ({"a": [INFER]}, True),
    ):
        assert await may(datasette, {**ALICE, "_r": restrictions}, INFER) is expected, restrictions
        assert not await may(datasette, {**ROOT, "_r": restrictions}, METRICS)
    closed = await start(instance={"allow": ONLY_ALICE})
    assert not await may(closed, {**BOB, "_r": {"a": [INFER]}}, INFER)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    path = tmp_path / "zoo.db"
    connection = sqlite3.connect(path)
    connection.executescript("create table animals (id integer primary key); create view furry as select 1")
    connection.close()
    return (path,)


TABLE_BLOCKS: list[dict[str, Any]] = [
    {},
    {"allow": ONLY_ALICE},
    {"databases": {"zoo": {"allow": ONLY_ALICE}}},
    {"databases": {"zoo": {"tables": {"animals": {"allow": ONLY_ALICE}}}}},
    {"databases": {"zoo": {"allow": False, "tables": {"animals": {"allow": ONLY_ALICE}}}}},
    {"databases": {"zoo": {"allow": ONLY_ALICE, "tables": {"animals": {"allow": True}}}}},
]


@pytest.mark.asyncio
@pytest.mark.parametrize("instance", TABLE_BLOCKS)
async def test_tables_are_seen_by_who_sees_them_in_datasette(files: tuple[Path, ...], instance: dict[str, Any]) -> None:
    datasette = await start(files, instance)
    for actor in (None, ROOT, ALICE, BOB):
        cookies = {"ds_actor": datasette.sign({"a": actor}, "actor")} if actor else {}
        page = await datasette.client.get("/zoo/animals", cookies=cookies)
        assert page.status_code in (200, 403)
        assert await may_view_table(datasette, actor, "zoo", "animals") == (page.status_code == 200), actor
        if page.status_code == 403:
            with pytest.raises(Forbidden) as refusal:
                await ensure_view_table(datasette, actor, "zoo", "animals")
            assert str(refusal.value) in page.text


@pytest.mark.asyncio
async def test_a_table_that_is_not_there_is_not_found(files: tuple[Path, ...]) -> None:
    datasette = await start(files, {"databases": {"zoo": {"allow": False}}})
    with pytest.raises(NotFound, match="Database not found"):
        await viewable_table(datasette, None, "nowhere", "animals")
    with pytest.raises(NotFound, match="Table not found"):
        await viewable_table(datasette, None, "zoo", "plants")
    for name in ("animals", "furry"):
        with pytest.raises(Forbidden, match="You do not have permission to view this table"):
            await viewable_table(datasette, None, "zoo", name)
    open_zoo = await start(files)
    assert (await viewable_table(open_zoo, None, "zoo", "furry")).name == "zoo"


@pytest.mark.asyncio
@pytest.mark.parametrize("instance", [{}, {"allow_sql": ONLY_ALICE}, {"databases": {"zoo": {"allow_sql": False}}}])
async def test_sql_is_run_by_who_may_run_it_in_datasette(files: tuple[Path, ...], instance: dict[str, Any]) -> None:
    datasette = await start(files, instance)
    for actor in (None, ALICE, BOB):
        cookies = {"ds_actor": datasette.sign({"a": actor}, "actor")} if actor else {}
        path = "/zoo/-/query.json" if IS_1_0 else "/zoo.json"
        page = await datasette.client.get(path, params={"sql": "select 1"}, cookies=cookies)
        assert await may_execute_sql(datasette, actor, "zoo") == (page.status_code == 200), actor
