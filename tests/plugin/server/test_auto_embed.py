"""`auto_embed`: tables kept in step by a running server, that sleeps when it may and ends when it must."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3

from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.load import load
from datasette_vision.engine.vision import Vision
from datasette_vision.plugin.server.auto_embed import AutoEmbedder
from datasette_vision.plugin.server.compatibility import IS_1_0, open_reader
from datasette_vision.plugin.server.state import state_of
from tests import pictures
from tests.servers import Server, serve

PATIENCE_S = 60
# A route that writes through Datasette, as its API does.
INSERT = """
from datasette import hookimpl
from datasette.utils.asgi import Response

async def insert(datasette, request):
    database = datasette.get_database(request.args["database"])
    await database.execute_write("insert into photos select null, image from photos limit 1")
    return Response.text("done")

@hookimpl
def register_routes():
    return [(r"^/insert$", insert)]
"""


class Photos:
    """A database of pictures, written through the SQLite of Datasette: no other sees its locks in one process."""

    def __init__(self, path: Path, vision: Vision, count: int = 10, journal_mode: str = "wal") -> None:
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self.execute(f"pragma journal_mode = {journal_mode}")
        self.execute("create table photos (id integer primary key, image blob)")
        self.insert(*range(1, count + 1))
        self.vision = vision
        self.embed("photos")

    def embed(self, table: str) -> None:
        embed_table(self.connect, table, vision=self.vision)

    def connect(self) -> Any:
        return sqlite3.connect(self.path, isolation_level=None, timeout=60, check_same_thread=False)

    def execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    def insert(self, *seeds: int) -> None:
        self.connection.execute("begin")
        for seed in seeds:
            self.execute("insert into photos values (?, ?)", seed, pictures.png(seed=seed))
        self.connection.execute("commit")

    @property
    def embedded(self) -> set[int]:
        return {key for (key,) in self.execute("select id from _vision_photos where embedding is not null")}


@pytest.fixture
def photos(tmp_path: Path, vision: Vision) -> Iterator[Photos]:
    photos = Photos(tmp_path / "photos.db", vision)
    yield photos
    photos.connection.close()


def configured(value: Any = None, **others: Any) -> dict[str, Any]:
    return {"datasette-vision": {"auto_embed": {"interval": 0.2} if value is None else value, **others}}


def until(condition: Callable[[], object], what: Callable[[], object] = lambda: "") -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


def jobs(server: Server) -> dict[str, Any]:
    return json.loads(server.get("/-/vision/jobs"))


# A server in a process of its own

SETTLED = {"state": "in step", "queued": 0, "embedded": 3, "removed": 1, "failed": 1, "checked": True}


def test_what_others_write_is_kept_in_step(tmp_path: Path, photos: Photos) -> None:
    with serve(tmp_path, str(photos.path), config=configured()) as server:
        photos.insert(100, 101)
        photos.execute("insert into photos values (102, x'00')")
        photos.execute("update photos set image = ? where id = 3", pictures.png(seed=103, width=99))
        photos.execute("delete from photos where id = 1")
        before = photos.execute("select content_hash from _vision_photos where id = 3")
        until(lambda: photos.embedded == {*range(2, 11), 100, 101}, lambda: server.log)
        until(lambda: photos.execute("select content_hash from _vision_photos where id = 3") != before)
        until(lambda: {**jobs(server)["tables"][0], "failures": 0}.items() >= SETTLED.items(), lambda: jobs(server))
        assert jobs(server) == {
            "ok": True,
            "auto_embed": True,
            "tables": [
                {
                    "database": "photos",
                    "table": "photos",
                    "column": "image",
                    "model": "tiny-emoji",
                    "error": None,
                    "failures": [{"row": "id 102", "error": jobs(server)["tables"][0]["failures"][0]["error"]}],
                    **SETTLED,
                }
            ],
        }
        assert "auto_embed: photos/photos (image, tiny-emoji): id 102: not an image of a known format" in server.log
        # What is embedded is found, by the index of the same server.
        query = "/photos.json?_shape=array&sql=select+count(*)+as+n+from+json_each(vision_search('photos','x',100))"
        assert json.loads(server.get(query)) == [{"n": 11}]
        server.process.terminate()
        server.ended()
        assert "Traceback" not in server.log
        assert "cut short" not in server.log


def test_what_datasette_itself_writes_is_kept_in_step(tmp_path: Path, photos: Photos) -> None:
    with serve(tmp_path, str(photos.path), plugins=INSERT, config=configured()) as server:
        assert server.get("/insert?database=photos") == b"done"
        until(lambda: 11 in photos.embedded, lambda: server.log)


def test_which_tables(tmp_path: Path, photos: Photos, vision: Vision) -> None:
    others = [Photos(tmp_path / f"{name}.db", vision, 2, "delete") for name in ("second", "fixed")]
    photos.execute("create table more (id integer primary key, image blob)")
    config = configured(
        {"interval": 0.2, "tables": ["photos/PHOTOS", "photos/more", "fixed/photos", "nowhere/photos"]},
        allow_metrics=True,
    )
    arguments = (str(photos.path), str(others[0].path), "-i", str(others[1].path))
    with serve(tmp_path, *arguments, config=config) as server:
        for each in (photos, *others):
            each.insert(100)
        until(lambda: 100 in photos.embedded, lambda: server.log)
        found = jobs(server)
        assert [(table["database"], table["table"]) for table in found["tables"]] == [("photos", "photos")]
        reasons = {each["name"]: each["reason"] for each in found["left_out"]}
        assert reasons == {
            "photos/more": "it has not been embedded yet: run datasette vision embed photos.db more once",
            "fixed/photos": "fixed is served as immutable, or in memory, and cannot be written to",
            "nowhere/photos": "there is no database 'nowhere'",
        }
        for name, reason in reasons.items():
            assert server.log.count(f"auto_embed: {name} is not kept in sync: {reason}") == 1
        assert 100 not in others[0].embedded
        # One that is embedded later is taken up without a restart.
        photos.execute("insert into more select * from photos limit 2")
        photos.embed("more")
        photos.execute("insert into more select * from photos where id = 100")
        until(lambda: photos.execute("select count(*) from _vision_more") == [(3,)], lambda: jobs(server))
        assert "photos/more" not in {each["name"] for each in jobs(server)["left_out"]}
    for each in others:
        each.connection.close()


def test_all_tables_of_all_databases_but_the_immutable_ones(tmp_path: Path, photos: Photos, vision: Vision) -> None:
    others = [Photos(tmp_path / f"{name}.db", vision, 2, "delete") for name in ("second", "fixed")]
    arguments = (str(photos.path), str(others[0].path), "-i", str(others[1].path))
    with serve(tmp_path, *arguments, config=configured()) as server:
        for each in (photos, *others):
            each.insert(100)
        until(lambda: 100 in photos.embedded and 100 in others[0].embedded, lambda: server.log)
        line = "auto_embed: fixed is not kept in sync: fixed is served as immutable, or in memory"
        until(lambda: line in server.log, lambda: server.log)
        assert server.log.count(line) == 1
        assert 100 not in others[1].embedded
    for each in others:
        each.connection.close()


def test_it_goes_on_where_a_signal_stopped_it(tmp_path: Path, photos: Photos) -> None:
    photos.insert(*range(100, 1100))
    with serve(tmp_path, str(photos.path), config=configured()) as server:
        until(lambda: len(photos.embedded) > 10, lambda: server.log)
        server.process.terminate()
        server.ended()
        assert "cut short" not in server.log
        assert "Traceback" not in server.log
    first = dict(photos.execute("select id, embedded_at from _vision_photos"))
    assert 10 < len(first) < 1010
    with serve(tmp_path, str(photos.path), config=configured()) as server:
        until(lambda: len(photos.embedded) == 1010, lambda: jobs(server))
    assert first.items() <= dict(photos.execute("select id, embedded_at from _vision_photos")).items()


SLEEP_SOON = {"datasette-scale-to-zero": {"duration": "3s"}}


def test_work_keeps_it_awake_and_looking_does_not(tmp_path: Path, photos: Photos) -> None:
    photos.insert(*range(100, 1100))
    with serve(tmp_path, str(photos.path), config={**configured(), **SLEEP_SOON}) as server:
        assert server.ended(PATIENCE_S) == 0
        assert len(photos.embedded) == 1010
        assert "Traceback" not in server.log


def test_a_database_that_others_write_to_all_the_time_keeps_nobody_awake(tmp_path: Path, photos: Photos) -> None:
    photos.execute("create table log (x)")
    with serve(tmp_path, str(photos.path), config={**configured(), **SLEEP_SOON}) as server:
        end = time.monotonic() + PATIENCE_S
        while server.process.poll() is None and time.monotonic() < end:
            photos.execute("insert into log values (1)")
            time.sleep(0.02)
        assert server.process.poll() == 0, server.log


# In this process


@contextlib.asynccontextmanager
async def running(
    photos: Photos, config: Any = None, more: Sequence[Path] = (), **metadata: Any
) -> AsyncIterator[tuple[Datasette, AutoEmbedder]]:
    """A Datasette whose tables are kept in step, without a server around it."""
    plugins = {"plugins": configured() if config is None else config, **metadata}
    datasette = Datasette([str(photos.path), *map(str, more)], **{"config" if IS_1_0 else "metadata": plugins})
    await datasette.invoke_startup()
    auto_embed = state_of(datasette).auto_embed
    auto_embed.start(asyncio.get_running_loop())
    try:
        yield datasette, auto_embed
    finally:
        state_of(datasette).activity.stopping.set()
        await asyncio.to_thread(auto_embed.close)


async def soon(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


@pytest.mark.asyncio
async def test_it_is_off_by_default(photos: Photos) -> None:
    async with running(photos, {}) as (datasette, auto_embed):
        assert auto_embed._thread is None
        answer = await datasette.client.get("/-/vision/jobs")
        assert answer.json() == {"ok": True, "auto_embed": False, "tables": []}


@pytest.mark.asyncio
async def test_only_who_may_see_a_table_sees_how_it_stands(photos: Photos) -> None:
    hidden = {"photos": {"tables": {"photos": {"allow": {"id": "owner"}}}}}
    async with running(photos, databases=hidden) as (datasette, auto_embed):
        await soon(auto_embed.kept)
        seen = {}
        for actor in (None, "owner", "root"):
            cookies = {"ds_actor": datasette.sign({"a": {"id": actor}}, "actor")} if actor else {}
            seen[actor] = (await datasette.client.get("/-/vision/jobs", cookies=cookies)).json()
        assert seen[None] == {"ok": True, "auto_embed": True, "tables": []}
        assert [table["table"] for table in seen["owner"]["tables"]] == ["photos"]
        assert "left_out" not in seen["owner"]
        assert "tables" in seen["root"]


@pytest.mark.asyncio
async def test_what_fails_says_so_and_stops_nobody_else(photos: Photos) -> None:
    photos.execute("insert into _vision_photos select id, source_column, 'gone', content_hash, embedding, error,"
                   " embedded_at from _vision_photos where id < 9")  # fmt: skip
    async with running(photos) as (datasette, auto_embed):
        photos.insert(100)
        await soon(lambda: 100 in photos.embedded)
        await soon(lambda: any(kept.report.error for _, kept in auto_embed.kept()))
        tables = {table["model"]: table for table in (await datasette.client.get("/-/vision/jobs")).json()["tables"]}
        assert tables["gone"]["state"] == "failed"
        assert "no model 'gone' is installed" in tables["gone"]["error"]
        assert tables["tiny-emoji"]["error"] is None


@pytest.mark.asyncio
async def test_a_folder_that_was_loaded_is_left_to_load(photos: Photos, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(pictures.png(seed=seed))
    path = tmp_path / "loaded.db"
    load(path, [str(folder)], vision=photos.vision)
    (folder / "0.png").unlink()
    load(path, [str(folder)], vision=photos.vision)  # marks it, and keeps its row
    photos.insert(100)
    config = configured({"interval": 0.2, "tables": ["photos/photos", "loaded/Photos"]})
    async with running(photos, config, more=[path]) as (_, auto_embed):
        await soon(lambda: 100 in photos.embedded)
        await soon(auto_embed.left_out)
        assert [database for database, _ in auto_embed.kept()] == ["photos"]
        reason = "its images are files: run datasette vision load again to bring it up to date"
        assert auto_embed.left_out() == {"loaded/Photos": reason}


@pytest.mark.asyncio
async def test_a_mistake_of_ours_ends_nothing(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasette_vision.bulk import sync

    def broken(*arguments: Any) -> Any:
        monkeypatch.undo()
        raise ZeroDivisionError

    monkeypatch.setattr(sync, "glance", broken)
    photos.insert(100)
    async with running(photos):
        await soon(lambda: 100 in photos.embedded)


@pytest.mark.asyncio
async def test_a_database_that_cannot_be_written_now_is_tried_again(photos: Photos) -> None:
    """Datasette's own connection waits five seconds for another writer, then gives up."""
    photos.insert(100)
    photos.connection.execute("begin immediate")
    async with running(photos) as (_, auto_embed):
        await soon(lambda: any(kept.report.error for _, kept in auto_embed.kept()))
        ((_, kept),) = auto_embed.kept()
        assert kept.report.error == "photos cannot be written: database is locked"
        photos.connection.execute("rollback")
        await soon(lambda: 100 in photos.embedded)
        await soon(lambda: kept.report.error is None)


@pytest.mark.asyncio
async def test_readers_are_not_kept_by_datasette(photos: Photos) -> None:
    datasette = Datasette([str(photos.path)])
    database = datasette.get_database("photos")
    kept = database._all_connections if IS_1_0 else database._all_file_connections
    before = list(kept)
    with contextlib.closing(open_reader(database)) as connection:
        assert connection.execute("select count(*) from photos").fetchone()[0] == 10
        with pytest.raises(connection.OperationalError, match="readonly"):
            connection.execute("delete from photos")
        assert list(kept) == before
