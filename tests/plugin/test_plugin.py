"""The plugin in a real Datasette, 0.65 or 1.0, whichever is installed."""

from __future__ import annotations

import asyncio
import html
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from datasette.utils import StartupError

from datasette_vision import plugin
from datasette_vision.plugin import hooks
from datasette_vision.plugin.queries.sql_errors import HINT
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.plugin.server.state import state_of
from tests import pictures


def make_datasette(models: Path | None = None, files: tuple[Path, ...] = (), **config: Any) -> Datasette:
    if models is not None:
        config |= {"models_dir": str(models), "default_model": "fake"}
    plugins = {"plugins": {"datasette-vision": config}}
    named: dict[str, Any] = {"config": plugins} if IS_1_0 else {"metadata": plugins}
    return Datasette([str(file) for file in files], memory=True, **named)


async def get(datasette: Datasette, sql: str, extension: str = ".json", **parameters: str) -> Any:
    """Ask for a query. Datasette 1.0 redirects queries of the old form, and the client must follow."""
    path = "/_memory/-/query" if IS_1_0 else "/_memory"
    shape = {"_shape": "array"} if extension == ".json" else {}
    return await datasette.client.get(path + extension, params={"sql": sql, **shape, **parameters})


@pytest.mark.asyncio
async def test_sql_over_json(fake_models: Path) -> None:
    datasette = make_datasette(fake_models)
    response = await get(datasette, "select length(vision_embed(:q)) as bytes", q="purple and gold")
    assert response.status_code == 200
    assert response.json() == [{"bytes": 32}]


@pytest.mark.asyncio
async def test_the_address_that_notebooks_use_today_still_works(fake_models: Path) -> None:
    datasette = make_datasette(fake_models)
    parameters = {"sql": "select hex(llm_embed('fake', :q)) as x", "q": "purple and gold", "_shape": "array"}
    response = await datasette.client.get("/_memory.json", params=parameters, follow_redirects=True)
    assert response.status_code == 200
    expected = state_of(datasette).vision.get().embed_text("purple and gold", normalised=False)
    assert response.json() == [{"x": expected.tobytes().hex().upper()}]


MISTAKES = [
    ("select vision_embed('x', 'nope')", "vision_embed(): no model 'nope' is installed; installed are: fake"),
    ("select vision_embed(5)", "vision_embed(): expected TEXT or an image BLOB, found an INTEGER"),
    (
        "select vision_label(vision_embed('x'), '<b>')",
        'vision_label(): expected labels as a JSON array such as ["cat", "dog"], found \'<b>\'',
    ),
    (
        "select vision_average(value) from json_each('[1, 2]')",
        "vision_average(): expected an embedding BLOB, found an INTEGER",
    ),
    ("select llm_embed('nope', 'x')", "llm_embed(): no model 'nope' is installed"),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("sql", "message"), MISTAKES)
async def test_our_message_reaches_the_person_in_json_and_html(fake_models: Path, sql: str, message: str) -> None:
    datasette = make_datasette(fake_models)
    response = await get(datasette, sql)
    assert response.status_code == 400
    assert response.json()["ok"] is False
    assert response.json()["error"].startswith(message)
    page = await get(datasette, sql, "")  # its status is Datasette's choice: 400 on 0.65, 200 on 1.0
    assert message in html.unescape(page.text)
    assert "user-defined" not in page.text
    assert "<b>" not in re.sub(r"<textarea.*?</textarea>", "", page.text, flags=re.DOTALL)


@pytest.mark.asyncio
async def test_errors_of_concurrent_queries_do_not_mix(fake_models: Path) -> None:
    datasette = make_datasette(fake_models)

    async def ask(number: int) -> tuple[int, Any]:
        if number % 3 == 0:
            return number, await get(datasette, "select length(vision_embed(:q)) as bytes", q=str(number))
        return number, await get(datasette, f"select vision_embed('x', 'model-{number}')")

    for number, response in await asyncio.gather(*map(ask, range(60))):
        if number % 3 == 0:
            assert response.json() == [{"bytes": 32}]
        else:
            assert f"no model 'model-{number}' is installed" in response.json()["error"]


@pytest.mark.asyncio
async def test_a_message_is_not_kept_for_the_next_error(fake_models: Path) -> None:
    datasette = make_datasette(fake_models)
    assert "no model 'nope'" in (await get(datasette, "select vision_embed('x', 'nope')")).json()["error"]
    assert (await get(datasette, "select no_such_function()")).json()["error"] == "no such function: no_such_function"
    # CPython refuses to hand such TEXT to a function; pysqlite3 hands over NULL.
    not_utf8 = (await get(datasette, "select vision_embed(cast(x'ff' as text)) as e")).json()
    if not_utf8 != [{"e": None}]:
        assert not_utf8["error"] == "user-defined function raised exception" + HINT


@pytest.mark.asyncio
async def test_messages_without_sql_threads(fake_models: Path) -> None:
    named = {"models_dir": str(fake_models), "default_model": "fake"}
    plugins = {"plugins": {"datasette-vision": named}}
    datasette = Datasette(
        memory=True, settings={"num_sql_threads": 0}, **({"config": plugins} if IS_1_0 else {"metadata": plugins})
    )
    response = await get(datasette, "select vision_embed('x', 'nope')")
    assert "no model 'nope' is installed" in response.json()["error"]


@pytest.mark.asyncio
async def test_messages_of_writes(fake_models: Path, tmp_path: Path) -> None:
    path = tmp_path / "write.db"
    sqlite3.connect(path).execute("create table t (e blob)").connection.close()
    datasette = make_datasette(fake_models, (path,))
    await datasette.invoke_startup()
    database = datasette.get_database("write")
    with pytest.raises(Exception, match=r"^vision_embed\(\): no model 'nope' is installed"):
        await database.execute_write("insert into t select vision_embed('x', 'nope')")
    await database.execute_write("insert into t select vision_embed('x')")
    assert (await database.execute("select length(e) from t")).rows[0][0] == 32


@pytest.mark.asyncio
async def test_messages_on_a_table_page(fake_models: Path, tmp_path: Path) -> None:
    path = tmp_path / "where.db"
    connection = sqlite3.connect(path)
    connection.executescript("create table t (id integer primary key); insert into t values (1)")
    connection.close()
    datasette = make_datasette(fake_models, (path,))
    response = await datasette.client.get("/where/t.json", params={"_where": "vision_embed('x', 'nope') is not null"})
    assert response.status_code == 400
    assert "no model 'nope' is installed" in response.text


@pytest.mark.asyncio
async def test_an_unreadable_image_is_null_and_not_an_error(fake_models: Path) -> None:
    datasette = make_datasette(fake_models)
    response = await get(datasette, "select vision_embed(x'00') as e, vision_error(x'00') as error")
    assert response.status_code == 200
    assert response.json()[0]["e"] is None
    assert "not an image" in response.json()[0]["error"]


@pytest.mark.asyncio
async def test_small_images_are_pictures_and_embeddings_are_floats(fake_models: Path) -> None:
    datasette = make_datasette(fake_models)
    picture = pictures.png()
    response = await get(datasette, f"select x'{picture.hex()}' as image, vision_embed('x') as embedding", "")
    assert response.status_code == 200
    assert response.text.count('<img src="data:image/png;base64,') == 1
    assert 'alt="image: ' in response.text
    assert "8 floats" in response.text
    assert "Binary:" not in response.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"colour": "red"}, "plugins.datasette-vision: unknown key"),
        ({"cache_mb": "lots"}, "plugins.datasette-vision.cache_mb: expected a whole number from 0 to 1000000, found"),
        ({"default_model": "gone"}, "plugins.datasette-vision: no model 'gone' is installed; installed are: "),
    ],
)
def test_a_mistake_in_the_configuration_stops_the_start(tmp_path: Path, config: object, message: str) -> None:
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps({"plugins": {"datasette-vision": config}}))
    result = subprocess.run(
        [sys.executable, "-m", "datasette", "serve", "--memory", "-m", str(path), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode != 0
    assert f"Error: {message}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.asyncio
async def test_a_mistake_in_the_configuration_stops_a_datasette_made_in_python() -> None:
    with pytest.raises(StartupError, match="unknown key"):
        await make_datasette(colour="red").invoke_startup()


@pytest.mark.asyncio
async def test_preload_makes_the_model_ready_in_the_background(fake_models: Path) -> None:
    datasette = make_datasette(fake_models, preload=["fake"])
    await datasette.invoke_startup()
    vision = state_of(datasette).vision.get()
    for _ in range(600):
        if vision.services.loaded("fake") == ["text", "image"]:
            break
        await asyncio.sleep(0.05)
    assert vision.services.loaded("fake") == ["text", "image"]


@pytest.mark.asyncio
async def test_each_datasette_has_a_vision_of_its_own(fake_models: Path) -> None:
    one, other = make_datasette(fake_models), make_datasette()
    assert state_of(one) is state_of(one)
    assert state_of(one).vision.get() is not state_of(other).vision.get()


def test_every_hook_is_seen_by_datasette() -> None:
    """Datasette looks at the package, whose folder has the templates, and not at the module with the hooks."""
    made = {name for name, value in vars(hooks).items() if hasattr(value, "datasette_impl")}
    assert len(made) > 20
    assert made == set(plugin.__all__)
    assert all(getattr(plugin, name) is getattr(hooks, name) for name in made)
