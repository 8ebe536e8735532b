"""cli/bulk.py: the commands as they are typed, what they print, and how they end."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from datasette.app import Datasette
from datasette.cli import cli

from tests import pictures


def vision(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["vision", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    path = tmp_path / "photos.db"
    connection = sqlite3.connect(path)
    connection.execute("create table photos (id integer primary key, title text, image blob)")
    values = [(number, f"photo {number}", pictures.png(seed=number)) for number in range(1, 9)]
    connection.executemany("insert into photos values (?, ?, ?)", values)
    connection.commit()
    connection.close()
    return path


def execute(path: Path, sql: str, *parameters: object) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        with connection:
            return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()


def test_embed(photos: Path) -> None:
    result = vision("embed", str(photos), "photos")
    assert re.fullmatch(r"8 embedded, 0 unchanged, 0 failed; \d+\.\d s, [\d,.]+ images/s\n", result.stdout), (
        result.stdout
    )
    assert result.stderr == ""
    assert execute(photos, "select model, count(embedding) from _vision_photos group by 1") == [("tiny-emoji", 8)]
    assert vision("embed", str(photos), "photos").stdout.startswith("0 embedded, 8 unchanged, 0 failed; ")
    execute(photos, "delete from photos where id = 1")
    execute(photos, "insert into photos select 100, title, image from photos where id = 2")
    assert vision("embed", str(photos), "photos").stdout.startswith(
        "1 embedded (1 identical to another), 7 unchanged, 0 failed, 1 removed; "
    )
    assert vision("embed", str(photos), "photos", "--quiet", "--force").output == ""


def test_failed_rows_are_named_and_the_exit_code_is_3(photos: Path) -> None:
    for _ in range(2):
        execute(photos, "update photos set image = x'00' where id = 5")
        result = vision("embed", str(photos), "photos", "--quiet", code=3)
        assert result.stdout == ""
        assert result.stderr.startswith("  id 5: not an image of a known format")
    execute(photos, "insert into photos with recursive n(x) as (select 1000 union all select x + 1 from n"
            " where x < 1029) select x, '', zeroblob(x) from n")  # fmt: skip
    result = vision("embed", str(photos), "photos", code=3)
    assert "0 embedded, 7 unchanged, 31 failed" in result.stdout
    assert len(result.stderr.splitlines()) == 21
    last = result.stderr.splitlines()[-1]
    assert last == '  … and 11 more: select * from "_vision_photos" where error is not null'
    assert len(execute(photos, last.partition(": ")[2])) == 31


def test_several_columns_keys_and_where(photos: Path) -> None:
    execute(photos, "create view v as select id as k, title, image from photos")
    result = vision(
        *("embed", str(photos), "v", "--column", "image", "--column", "title", "--key", "k"), "--where", "k < 4"
    )
    assert [line.split(",")[0] for line in result.stdout.splitlines()] == ["3 embedded", "3 embedded"]
    counts = execute(photos, "select source_column, count(*) from _vision_v group by 1")
    assert counts == [("image", 3), ("title", 3)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("none.db", "photos"), 2, "none.db: there is no such database"),
        (("{photos}", "nothing"), 2, "there is no table or view 'nothing'; there are: photos"),
        (("{photos}", "photos", "--column", "nothing"), 2, "photos has no column 'nothing'"),
        (("{photos}", "photos", "--where", "nonsense"), 2, "--where: no such column: nonsense"),
        (("{photos}", "photos", "--model", "nothing"), 4, "'nothing'"),
        (("{photos}", "photos", "--base", "nowhere"), 2, "nowhere: there is no such folder"),
        (("{text}", "photos"), 1, "file is not a database"),
    ],
)
def test_errors_end_with_their_code(
    photos: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    tmp_path.joinpath("text").write_text("no database at all" * 100)
    filled = [argument.format(photos=photos, text=tmp_path / "text") for argument in arguments]
    result = vision("embed", *filled, code=code)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def many_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "many.db"
    connection = sqlite3.connect(path)
    connection.execute("create table photos (id integer primary key, image blob)")
    values = ((number, pictures.png(64, 48 + number % 16, number)) for number in range(2000))
    connection.executemany("insert into photos values (?, ?)", values)
    connection.commit()
    connection.close()
    return path


@pytest.fixture
def many(many_once: Path, tmp_path: Path) -> Path:
    """A table that takes some seconds to embed."""
    return Path(shutil.copy(many_once, tmp_path))


COMMAND = [sys.executable, "-m", "datasette", "vision", "embed"]


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_in_good_order_and_says_how_to_go_on(many: Path, kind: signal.Signals) -> None:
    """Ctrl-C lost up to 50,000 processed files: elsewhere."""
    process = subprocess.Popen(
        [*COMMAND, str(many), "photos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_rows(many, 1)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + kind
    assert "Traceback" not in errors
    said = re.search(r"Stopped: ([\d,]+) of 2,000 are done\. To continue: datasette vision embed (\S+) photos", errors)
    assert said is not None, errors
    assert said[2] == str(many)
    done = int(said[1].replace(",", ""))
    assert execute(many, "select count(embedding) from _vision_photos") == [(done,)]
    assert 0 < done < 2000
    assert f"{2000 - done:,} embedded, {done:,} unchanged, 0 failed" in vision("embed", str(many), "photos").stdout


def wait_for_rows(path: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if execute(path, "select count(*) from _vision_photos")[0][0] >= count:  # type: ignore[operator]
                return
        except sqlite3.OperationalError:
            pass
        time.sleep(0.02)
    pytest.fail("nothing was written")


def test_a_terminal_gets_a_bar(many: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, str(many), "photos", "--where", "id < 1200"], stdout=follower, stderr=follower
    )
    os.close(follower)
    shown = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            data = os.read(leader, 10_000)
        except OSError:
            break
        shown += data
        if not data:
            break
    os.close(leader)
    assert process.wait(60) == 0
    lines = shown.decode().split("\r")
    assert any(
        re.match(r"Embedding photos  \[#+-+\]  [\d,]+ of 1,200 \(\d+ %\)  [\d,.]+/s  \d+:\d\d left", line)
        for line in lines
    ), lines
    assert "1,200 embedded, 0 unchanged, 0 failed" in lines[-2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "my pictures"
    path.joinpath("sub").mkdir(parents=True)
    for number in range(5):
        path.joinpath("sub", f"{number}.jpg").write_bytes(pictures.jpeg(320, 240, number))
    path.joinpath("copy.webp").write_bytes(pictures.encode(pictures.scene(320, 240, 1), "WEBP"))
    path.joinpath("notes.txt").write_text("no picture")
    return path


def test_load(folder: Path, tmp_path: Path) -> None:
    database = tmp_path / "photos.db"
    lines = vision("load", str(database), str(folder)).stdout.splitlines()
    assert lines[0].startswith("6 embedded, 0 unchanged, 0 failed; ")
    assert lines[1:] == [
        "1 near duplicates, 0 gone, 1 other files skipped, 0 links not followed",
        f"To view the result: datasette {database}",
        "The bundled model knows drawings, not photographs: datasette vision install clip, then --model clip",
    ]
    folder.joinpath("sub", "3.jpg").unlink()
    folder.joinpath("sub", "4.jpg").write_bytes(pictures.jpeg(320, 240, 4)[:400])
    result = vision("load", str(database), f"{folder}/**/*.jpg", f"{folder}/*.webp", code=3)
    assert result.stdout.startswith("0 embedded, 4 unchanged, 1 failed; ")
    assert "1 near duplicates, 1 gone, " in result.stdout
    assert result.stderr.startswith("  sub/4.jpg: truncated JPEG image")
    assert vision("load", str(database), str(folder), "-q", code=3).stdout == ""
    assert execute(database, "select count(thumbnail), count(error), count(gone_at) from photos") == [(5, 1, 1)]
    assert vision("embed", str(database), "photos", code=3).stdout.startswith("0 embedded, 4 unchanged, 1 failed; ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{database}", "nowhere"), 2, "nowhere: there is no such folder or file"),
        (("{database}", "{folder}", "--model", "nothing"), 4, "'nothing'"),
        (("{database}", "{folder}", "--originals", "--paths-only"), 2, "exclude one another"),
        (("{database}", "{folder}", "--table", "mine"), 2, "mine was not made by vision load"),
        (("{folder}/none/photos.db", "{folder}"), 1, "unable to open database file"),
    ],
)
def test_errors_of_load(folder: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    database = tmp_path / "photos.db"
    execute(database, "create table mine (x)")
    filled = [argument.format(database=database, folder=folder) for argument in arguments]
    assert message in vision("load", *filled, code=code).stderr


@pytest.mark.asyncio
async def test_datasette_shows_what_was_loaded(folder: Path, tmp_path: Path) -> None:
    database = tmp_path / "photos.db"
    vision("load", str(database), str(folder), "-q")
    datasette = Datasette([str(database)])
    page = await datasette.client.get("/photos/photos?_sort=id")
    assert page.status_code == 200
    assert page.text.count('<img src="data:image/webp;base64,') == 6
    sql = """select path from photos join _vision_photos using (id)
        order by vision_similarity(embedding, (select embedding from _vision_photos where id = 1)) desc limit 2"""
    rows = await datasette.client.get("/photos.json", params={"sql": sql, "_shape": "array"}, follow_redirects=True)
    (first,) = execute(database, "select path from photos where id = 1")[0]
    assert rows.json()[0] == {"path": first}
