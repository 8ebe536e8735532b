"""vision_search() in a real Datasette: its threads and connections, immutable, attached and in-memory databases."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.plugin.server.state import state_of
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.vectors import embedding as vectors
from tests.vectors.test_index import clustered

SIDE = SideTable("photos", ("id",))
MATRIX = clustered(300, 8)
# What vision_search() finds, and what a comparison with every row finds in the same snapshot.
BOTH = """
with asked as materialized (select embedding from _vision_photos where id = cast(:id as integer))
select vision_search('photos', (select embedding from asked), 5) as found, (
  select json_group_array(id) from (
    select one.id from _vision_photos one join photos using (id)
    order by vision_similarity(one.embedding, (select embedding from asked)) desc limit 5
  )
) as expected"""


def fill(connection: Any, first: int = 0, last: int = 200) -> None:
    keys = range(first, last)
    connection.execute("create table if not exists photos (id integer primary key)")
    SIDE.create(connection)
    connection.executemany("insert into photos values (?)", ((key,) for key in keys))
    SIDE.write(connection, (SideTableRow((key,), "image", "fake", "h", vectors.to_blob(MATRIX[key])) for key in keys))


def fill_and_commit(connection: Any, first: int = 0, last: int = 200) -> None:
    """Datasette 0.65 leaves the end of a transaction to the function."""
    with connection:
        fill(connection, first, last)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "my photos.db"
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = wal")
    fill(connection)
    connection.commit()
    connection.close()
    return path


def make_datasette(models: Path, files: tuple[Path, ...] = (), **options: Any) -> Datasette:
    plugins = {"plugins": {"datasette-vision": {"models_dir": str(models), "default_model": "fake"}}}
    named: dict[str, Any] = {"config": plugins} if IS_1_0 else {"metadata": plugins}
    return Datasette([str(file) for file in files], **named, **options)


async def get(datasette: Datasette, database: str, sql: str, **parameters: object) -> Any:
    path = f"/{database}/-/query.json" if IS_1_0 else f"/{database}.json"
    query = {"sql": sql, "_shape": "array", **{name: str(value) for name, value in parameters.items()}}
    return await datasette.client.get(path, params=query)


def same(answer: Any) -> bool:
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()
    return [hit["rowid"] for hit in json.loads(row["found"])] == json.loads(row["expected"])


ROUTE = "my~20photos"


@pytest.mark.asyncio
@pytest.mark.parametrize("immutable", [False, True])
async def test_searches_on_several_threads_share_one_index(fake_models: Path, path: Path, immutable: bool) -> None:
    options = {"immutables": [str(path)]} if immutable else {}
    datasette = make_datasette(fake_models, () if immutable else (path,), **options)
    answers = await asyncio.gather(*(get(datasette, ROUTE, BOTH, id=key) for key in range(0, 200, 5)))
    assert all(map(same, answers))
    searcher = state_of(datasette).sql.functions.get()._searcher
    assert len(searcher.indexes._entries) == 1


@pytest.mark.asyncio
async def test_what_is_written_through_datasette_is_found_at_once(fake_models: Path, path: Path) -> None:
    datasette = make_datasette(fake_models, (path,))
    database = datasette.get_database("my photos")
    assert same(await get(datasette, ROUTE, BOTH, id=0))
    await database.execute_write_fn(lambda connection: fill_and_commit(connection, 200, 300), block=True)
    answer = await get(datasette, ROUTE, BOTH, id=250)
    assert same(answer)
    assert json.loads(answer.json()[0]["found"])[0]["rowid"] == 250
    await database.execute_write("delete from photos where id = 250", block=True)
    assert same(await get(datasette, ROUTE, BOTH, id=250))


@pytest.mark.asyncio
async def test_a_search_while_writing_sees_what_is_not_committed(fake_models: Path, path: Path) -> None:
    datasette = make_datasette(fake_models, (path,))
    database = datasette.get_database("my photos")

    def write(connection: Any) -> tuple[Any, Any]:
        fill(connection, 200, 300)
        return connection.execute(BOTH, {"id": 250}).fetchone()  # type: ignore[no-any-return]

    found, expected = await database.execute_write_fn(write, block=True)
    assert [hit["rowid"] for hit in json.loads(found)] == json.loads(expected)
    assert json.loads(found)[0]["rowid"] == 250


@pytest.mark.asyncio
async def test_mistakes_are_told(fake_models: Path, path: Path) -> None:
    datasette = make_datasette(fake_models, (path,))
    response = await get(datasette, ROUTE, "select vision_search('nothing', 'x')")
    assert response.status_code == 400
    message = "vision_search(): there is no table or view 'nothing'; embedded are: photos"
    assert message in response.json()["error"]


@pytest.mark.asyncio
async def test_databases_attached_to_each_other(fake_models: Path, path: Path) -> None:
    datasette = make_datasette(fake_models, (path,), crossdb=True, memory=True)
    sql = "select json_extract(vision_search('my photos.photos', :q, 1), '$[0].similarity') > -1 as found"
    response = await get(datasette, "_memory", sql, q="cat")
    assert response.json() == [{"found": 1}]


@pytest.mark.asyncio
async def test_a_database_in_memory_with_several_connections(fake_models: Path) -> None:
    datasette = make_datasette(fake_models)
    database = datasette.add_memory_database("shared")
    await database.execute_write_fn(fill_and_commit, block=True)
    for key in (0, 199):
        answers = await asyncio.gather(*(get(datasette, "shared", BOTH, id=key) for _ in range(6)))
        assert all(map(same, answers))
    await database.execute_write_fn(lambda connection: fill_and_commit(connection, 200, 300), block=True)
    assert same(await get(datasette, "shared", BOTH, id=250))
