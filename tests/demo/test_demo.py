"""The demo: the database, its saved queries in a real Datasette, and the command that makes it."""

from __future__ import annotations

import html
import json
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from datasette_vision.cli.demo import serve_arguments
from datasette_vision.demo import demo
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import InvalidImage, VisionError
from datasette_vision.images import decode as images
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.tables import schema
from datasette_vision.util.progress import Progress

PARAMETERS = {
    "search": {"q": "purple heart"},
    "similar": {"name": "pizza"},
    "labels": {"labels": '["food", "animal", "flag"]'},
    "like_this_not_that": {"like": "fruit", "but_not": "red"},
    "labels_of_the_model": {"name": "pizza"},
}


def test_the_archive_holds_every_emoji_as_a_small_upright_picture_with_notices() -> None:
    import zipfile

    emoji = list(demo.read_archive())
    assert len(emoji) == 1906
    assert len({entry.hexcode for entry in emoji}) == 1906
    assert len({entry.group_name for entry in emoji}) == 9
    for entry in emoji[::50]:
        information = images.info(entry.image)
        assert information["format"] == "WEBP"
        assert max(information["width"], information["height"]) <= 72
    assert "Apache License" in zipfile.ZipFile(demo.ARCHIVE).read("NOTICES.txt").decode()


def test_the_database_has_an_embedding_for_every_picture(demo_path: Path) -> None:
    connection = sqlite3.connect(demo_path)
    rows = connection.execute(
        "select source_column, model, content_hash, embedding, error, image from emoji left join _vision_emoji"
        " using (hexcode)"
    ).fetchall()
    connection.close()
    assert len(rows) == 1906
    for source_column, model, content_hash, embedding, error, image in rows:
        assert (source_column, model, error) == ("image", "tiny-emoji", None)
        assert content_hash == schema.content_hash(image)
        values = struct.unpack("<256f", embedding)
        assert sum(value * value for value in values) == pytest.approx(1, abs=1e-4)


def test_stopping_half_way_leaves_what_was_there(tmp_path: Path, vision: Vision) -> None:
    path = tmp_path / "demo.db"
    path.write_bytes(b"what was there")

    def stop(progress: Progress) -> None:
        if progress.done == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.write_database(path, vision, stop)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_cannot_be_embedded_stops_the_demo(
    tmp_path: Path, vision: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "embed_images", lambda *_: iter([InvalidImage("broken")] * 1906))
    with pytest.raises(VisionError, match="broken"):
        demo.write_database(tmp_path / "demo.db", vision)
    assert list(tmp_path.iterdir()) == []


def test_only_a_demo_database_is_replaced(demo_path: Path, tmp_path: Path) -> None:
    assert demo.is_demo(demo_path)
    more = tmp_path / "more.db"
    more.write_bytes(demo_path.read_bytes())
    connection = sqlite3.connect(more)
    connection.execute("create table notes (precious text)")
    connection.close()
    assert not demo.is_demo(more)
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("create table emoji (id integer)")
    connection.close()
    assert not demo.is_demo(other)
    other.write_text("not a database at all")
    assert not demo.is_demo(other)
    assert not demo.is_demo(tmp_path / "odd?name#.db")
    assert list(tmp_path.glob("odd*")) == []


def test_what_waits_in_the_log_of_the_old_database_does_not_get_into_the_new_one(
    demo_path: Path, tmp_path: Path, vision: Vision
) -> None:
    path = tmp_path / "demo.db"
    path.write_bytes(demo_path.read_bytes())
    script = """
    import os, sqlite3, sys
    connection = sqlite3.connect(sys.argv[1])
    connection.executescript("pragma page_size = 8192; vacuum; pragma journal_mode = wal")
    connection.execute("pragma wal_autocheckpoint = 0")
    connection.execute("update emoji set name = 'old'")
    connection.commit()
    os._exit(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=True, timeout=60)
    assert path.with_name("demo.db-wal").stat().st_size > 0
    demo.write_database(path, vision)
    connection = sqlite3.connect(path)
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    assert connection.execute("select count(*) from emoji where name = 'old'").fetchone() == (0,)
    connection.close()


def test_a_database_that_another_program_writes_to_is_left_alone(
    demo_path: Path, tmp_path: Path, vision: Vision
) -> None:
    path = tmp_path / "demo.db"
    path.write_bytes(demo_path.read_bytes())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("pragma journal_mode = wal")
    other.execute("begin immediate")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        demo.write_database(path, vision)
    other.execute("rollback")
    other.close()
    assert [found.name for found in tmp_path.iterdir()] == ["demo.db"]


@pytest.fixture
def datasette(demo_path: Path) -> Datasette:
    named: dict[str, Any] = {"metadata": demo.metadata("demo", "demo")}
    if IS_1_0:
        named["config"] = demo.metadata("demo", "demo")
    return Datasette([str(demo_path)], **named)


def test_every_saved_query_is_tested() -> None:
    assert set(demo.metadata("demo", "demo")["databases"]["demo"]["queries"]) == set(PARAMETERS)  # type: ignore[index]


@pytest.mark.asyncio
@pytest.mark.parametrize("name", PARAMETERS)
async def test_saved_queries(datasette: Datasette, name: str) -> None:
    response = await datasette.client.get(f"/demo/{name}.json", params={**PARAMETERS[name], "_shape": "array"})
    assert response.status_code == 200, response.text
    rows = response.json()
    assert rows
    page = await datasette.client.get(f"/demo/{name}", params=PARAMETERS[name])
    assert page.status_code == 200
    assert page.text.count('<img src="data:image/webp;base64,') == len(rows)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", PARAMETERS)
async def test_saved_queries_open_without_parameters_and_lead_on(datasette: Datasette, name: str) -> None:
    page = await datasette.client.get(f"/demo/{name}")
    assert page.status_code == 200
    assert "<img" not in page.text
    links = re.findall(rf'href="(/demo/{name}\?[a-z][^"]+)">[a-z]', page.text)
    assert links
    for link in links:
        page = await datasette.client.get(html.unescape(link))
        assert page.status_code == 200
        assert "<img" in page.text


@pytest.mark.asyncio
async def test_the_page_of_the_database_leads_to_the_searches(datasette: Datasette) -> None:
    page = await datasette.client.get("/demo")
    assert page.status_code == 200
    assert 'href="/-/vision/demo/emoji?q=purple+heart"' in page.text
    assert (await datasette.client.get("/-/vision/demo/emoji?q=purple+heart")).status_code == 200
    assert "Like this, but not that" in page.text


@pytest.mark.asyncio
async def test_the_table_shows_pictures(datasette: Datasette) -> None:
    page = await datasette.client.get("/demo/emoji?_size=20")
    assert page.text.count('<img src="data:image/webp;base64,') == 20


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "datasette", "vision", "demo", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_command_writes_searches_and_says_how_to_go_on(tmp_path: Path) -> None:
    result = run(tmp_path, "my-emoji.db", "--no-serve")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-emoji-metadata.json", "my-emoji.db"]
    assert "1,906 emoji" in result.stdout
    assert "drawings, not photographs" in result.stdout
    assert "purple heart" in result.stdout
    assert "datasette serve my-emoji.db --metadata my-emoji-metadata.json" in result.stdout
    metadata = json.loads((tmp_path / "my-emoji-metadata.json").read_text())
    assert "/-/vision/my-emoji/emoji?q=purple+heart" in metadata["databases"]["my-emoji"]["description_html"]
    assert re.search(r"similarity +name +emoji\n +0\.\d{3}  \w", result.stdout)
    again = run(tmp_path, "my-emoji.db", "--no-serve")
    assert again.returncode == 0, again.stderr


def test_the_command_leaves_a_foreign_file_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.db").write_bytes(b"precious")
    result = run(tmp_path, "precious.db", "--no-serve")
    assert result.returncode == 1
    assert "precious.db exists and is not a demo database: choose another name" in result.stderr
    assert (tmp_path / "precious.db").read_bytes() == b"precious"
    (tmp_path / "my-metadata.json").write_text('{"mine": true}')
    result = run(tmp_path, "my.db", "--no-serve")
    assert result.returncode == 1
    assert "my-metadata.json exists and is not from a demo: choose another name" in result.stderr
    assert (tmp_path / "my-metadata.json").read_text() == '{"mine": true}'


@pytest.mark.parametrize(
    ("database", "message"),
    [
        ("missing/folder/x.db", "x.db cannot be written: "),
        ("what?.db", "what?.db: Datasette cannot open a file with ?, # or % in its name"),
    ],
)
def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path, database: str, message: str) -> None:
    result = run(tmp_path, database, "--no-serve")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_is_found_out_before_the_work(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        result = run(tmp_path, "--port", str(port))
    assert result.returncode == 1
    assert f"127.0.0.1 port {port} cannot be used" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stem", ["v1.2", 'a"b', "-dash", "zwei worte", "ünï"])
def test_odd_names_work_in_addresses_and_metadata(tmp_path: Path, stem: str) -> None:
    from datasette.utils import tilde_encode

    metadata = demo.metadata(stem, tilde_encode(stem))
    assert list(metadata["databases"]) == [stem]  # type: ignore[call-overload]
    assert f"/-/vision/{tilde_encode(stem)}/emoji?q=purple+heart" in json.dumps(metadata)
    arguments = serve_arguments(Path(f"{stem}.db"), Path(f"{stem}-metadata.json"), "127.0.0.1", 8001)
    assert not arguments[1].startswith("-")
    assert Path(arguments[1]) == Path(f"{stem}.db")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_demo_in_order(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "datasette", "vision", "demo", "--no-serve"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(tmp_path.glob(".demo.db-*")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=60)
    assert process.returncode == (1 if name == "SIGINT" else 143)
    assert list(tmp_path.iterdir()) == []
