"""Nobody sees the embeddings, keys and errors of rows that they may not see: side tables follow their sources."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import pm

from datasette_vision.bulk import photos
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.tables import change_log
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.tables.side_tables import own_tables

ROOT = {"id": "root"}
ALICE = {"id": "alice"}
ONLY_ALICE = {"id": "alice"}
SECRET = "the hash of a secret"
FOLDER = "/a/secret/folder"
HIDDEN = {"databases": {"pub": {"tables": {"hidden": {"allow": ONLY_ALICE}, "secrets": {"allow": ONLY_ALICE}}}}}


def add_side_table(connection: sqlite3.Connection, table: str) -> None:
    side = SideTable(table, ("id",))
    side.create(connection)
    side.write(connection, [SideTableRow((1,), "name", "tiny", SECRET, None, "it could not be read")])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with an open table, a hidden table and a hidden view, each with a side table, and bookkeeping."""
    path = tmp_path / "pub.db"
    connection = sqlite3.connect(path)
    with connection:
        for table in ("open", "hidden", "gone"):
            connection.execute(f"create table {table} (id integer primary key, name text)")
            connection.execute(f"insert into {table} values (1, 'first')")
        connection.execute("create view secrets as select id, name from open")
        for table in ("open", "hidden", "secrets", "gone", "_vision_hidden"):
            add_side_table(connection, table)
        connection.execute("drop table gone")
        connection.execute(photos.CREATE_LOADS)
        connection.execute("insert into _visionloads values ('hidden', ?, 'paths only')", (FOLDER,))
        connection.execute("create table _vision_mine (id integer primary key, word text)")
        connection.execute("create table mine (id integer primary key)")
        connection.execute("create table _visionary (id integer primary key)")
    connection.close()
    return path


async def start(path: Path, instance: dict[str, Any] | None = None, **settings: Any) -> Datasette:
    named: dict[str, Any] = {"config" if IS_1_0 else "metadata": instance or {}, **settings}
    datasette = Datasette([str(path)], **named)
    if IS_1_0:
        datasette.root_enabled = True  # as --root does
    await datasette.invoke_startup()
    return datasette


async def get(datasette: Datasette, path: str, actor: dict[str, Any] | None = None) -> Any:
    cookies = {"ds_actor": datasette.sign({"a": actor}, "actor")} if actor else {}
    return await datasette.client.get(path, cookies=cookies)


async def seen(datasette: Datasette, actor: dict[str, Any] | None = None) -> set[str]:
    """The tables of ours that an actor sees, by asking for each."""
    tables = ("open", "hidden", "secrets", "gone", "_vision_hidden")
    names = [*(f"_vision_{table}" for table in tables), "_visionloads", "_visionchanges", "_vision_mine", "_visionary"]
    answers = {name: (await get(datasette, f"/pub/{name}.json", actor)).status_code for name in names}
    assert set(answers.values()) <= {200, 403}
    return {name for name, status in answers.items() if status == 200}


OTHERS = {"_vision_mine", "_visionary"}


def test_our_tables_are_known_by_name_and_columns(path: Path) -> None:
    connection = sqlite3.connect(path)
    found = {table.name: table.source for table in own_tables(connection)}
    connection.close()
    assert found == {
        "_vision_open": "open",
        "_vision_hidden": "hidden",
        "_vision_secrets": "secrets",
        "_vision__vision_hidden": "_vision_hidden",
        "_vision_gone": None,
        "_visionloads": None,
        change_log.LOG: None,
    }


@pytest.mark.asyncio
async def test_a_side_table_is_seen_by_those_who_see_its_source(path: Path) -> None:
    datasette = await start(path, HIDDEN)
    assert await seen(datasette) == {"_vision_open"} | OTHERS
    assert await seen(datasette, ALICE) == OTHERS | {
        "_vision_open",
        "_vision_hidden",
        "_vision_secrets",
        "_vision__vision_hidden",
    }
    # Root is no exception where Datasette makes none: `allow` names alice alone.
    assert await seen(datasette, ROOT) == OTHERS | {"_vision_open", "_vision_gone", "_visionloads", "_visionchanges"}


@pytest.mark.asyncio
async def test_root_alone_sees_bookkeeping_and_side_tables_without_a_source(path: Path) -> None:
    datasette = await start(path)
    everything = await seen(datasette, ROOT)
    assert everything - await seen(datasette, ALICE) == {"_vision_gone", "_visionloads", "_visionchanges"}
    assert await seen(datasette) == await seen(datasette, ALICE)
    if IS_1_0:
        datasette.root_enabled = False  # then the name alone is no root
        assert await seen(datasette, ROOT) == await seen(datasette, ALICE)


@pytest.mark.asyncio
async def test_a_hidden_side_table_is_told_nowhere(path: Path) -> None:
    # Who may run SQL is shown the names of all tables by Datasette, for the editor.
    datasette = await start(path, HIDDEN, settings={"default_allow_sql": False})
    side = "/pub/_vision_hidden"
    key = f"{side}/1,name,tiny"
    for address in (
        side,
        f"{side}.json",
        f"{side}.csv?_stream=1",
        f"{side}.json?_shape=array&_facet=content_hash",
        "/pub/_VISION_hidden.json",
        key,
        f"{key}.json",
        f"{key}/content_hash.json",
        "/pub/open.json?_through=%7B%22table%22:%22_vision_hidden%22,%22column%22:%22id%22,%22value%22:1%7D",
        "/",
        "/pub",
        "/pub.json",
        "/-/tables.json",
        "/-/tables.json?q=vision",
        "/-/jump.json?q=vision",
        "/-/databases.json",
        "/-/schema.json",
        "/pub/-/schema.json",
        f"{side}/-/schema.json",
        f"{side}/-/autocomplete?q=1",
        f"{side}/-/blob/1/content_hash.blob",
        f"{key}.blob?_blob_column=content_hash",
        "/-/allowed.json?action=view-table",
        "/-/allowed.json?action=view-table&parent=pub",
    ):
        answer = await get(datasette, address)
        assert SECRET not in answer.text, address
        assert FOLDER not in answer.text, address
        if answer.status_code == 200:
            for name in ("_vision_hidden", "_vision_secrets", "_vision_gone", "_visionloads", "_visionchanges"):
                assert f'"{name}"' not in answer.text, (address, name)
                assert f">{name}<" not in answer.text, (address, name)
    assert SECRET in (await get(datasette, f"{side}.json", ALICE)).text


@pytest.mark.asyncio
async def test_what_is_denied_elsewhere_stays_denied(path: Path) -> None:
    datasette = await start(path, {"databases": {"pub": {"tables": {"_vision_open": {"allow": ONLY_ALICE}}}}})
    assert "_vision_open" not in await seen(datasette)
    assert "_vision_open" in await seen(datasette, ALICE)
    for instance in ({"allow": ONLY_ALICE}, {"databases": {"pub": {"allow": ONLY_ALICE}}}):
        datasette = await start(path, instance)
        assert await seen(datasette) == set()
        assert "_vision_hidden" in await seen(datasette, ALICE)


@pytest.mark.asyncio
async def test_what_is_allowed_for_a_side_table_alone_does_not_open_it(path: Path) -> None:
    tables = {"hidden": {"allow": ONLY_ALICE}, "_vision_hidden": {"allow": True}, "_visionloads": {"allow": True}}
    datasette = await start(path, {"databases": {"pub": {"tables": tables}}})
    assert not await seen(datasette) & {"_vision_hidden", "_visionloads"}


@pytest.mark.asyncio
async def test_another_plugin_decides_about_a_source_and_cannot_open_its_side_table(path: Path) -> None:
    class Plugin:
        __name__ = "another"

        if IS_1_0:

            @hookimpl
            def permission_resources_sql(self, action: str) -> Any:
                from datasette.permissions import PermissionSQL

                if action != "view-table":
                    return None
                rules = "select 'pub' as parent, 'hidden' as child, 0 as allow, 'x' as reason"
                return PermissionSQL(sql=f"{rules} union all select 'pub', '_vision_hidden', 1, 'y'")

        else:

            @hookimpl
            def permission_allowed(self, action: str, resource: Any) -> bool | None:
                known = {("pub", "hidden"): False, ("pub", "_vision_hidden"): True}
                return known.get(resource) if action == "view-table" else None

    plugin = Plugin()
    pm.register(plugin, name="another")
    try:
        datasette = await start(path)
        assert (await get(datasette, "/pub/hidden.json", ALICE)).status_code == 403
        assert "_vision_hidden" not in await seen(datasette, ALICE)
    finally:
        pm.unregister(plugin)


@pytest.mark.asyncio
async def test_a_side_table_made_a_moment_ago_is_not_seen_either(path: Path) -> None:
    instance = {"databases": {"pub": {"tables": {"late": {"allow": ONLY_ALICE}}}}}
    datasette = await start(path, instance)
    await seen(datasette)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("create table late (id integer primary key, name text)")
        add_side_table(connection, "late")
    connection.close()
    assert (await get(datasette, "/pub/_vision_late.json")).status_code == 403


@pytest.mark.skipif(not IS_1_0, reason="Datasette 0.65 has neither")
@pytest.mark.asyncio
async def test_tokens_and_default_deny(path: Path) -> None:
    datasette = await start(path)

    async def seen_with(restrictions: dict[str, Any]) -> set[str]:
        return await seen(datasette, {**ALICE, "_r": restrictions})

    both = {"r": {"pub": {"hidden": ["vt"], "_vision_hidden": ["vt"]}}}
    assert await seen_with(both) == {"_vision_hidden"}
    assert await seen_with({"r": {"pub": {"_vision_hidden": ["vt"]}}}) == set()
    assert await seen_with({"r": {"pub": {"hidden": ["vt"]}}}) == set()
    assert await seen_with({"a": ["execute-sql"]}) == set()
    datasette = await start(path, default_deny=True)
    assert await seen(datasette) == set()
    assert "_vision_hidden" in await seen(datasette, ROOT)


@pytest.mark.skipif(not IS_1_0, reason="Datasette 0.65 lists no tables by permission")
@pytest.mark.asyncio
async def test_full_text_search_over_a_side_table_does_not_open_it(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create virtual table errors using fts5 (error, content=_vision_hidden)")
    connection.close()
    datasette = await start(path, HIDDEN)
    for _ in range(2):  # what is remembered of the first must not open the second
        await get(datasette, "/pub")
        assert (await get(datasette, "/pub/errors.json")).status_code == 403
        assert (await get(datasette, "/pub/_vision_hidden.json")).status_code == 403
    assert (await get(datasette, "/pub/errors.json", ALICE)).status_code == 200
