"""cli/search.py: searching and indexing from the command line."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from datasette.cli import cli

from datasette_vision.cli.search import table_lines
from datasette_vision.retrieval import recall
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.vectors import embedding as vectors
from tests import pictures
from tests.vectors.test_index import clustered


def vision(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["vision", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def demo(demo_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(demo_path, tmp_path / "demo.db"))


def test_search(demo: Path) -> None:
    lines = vision("search", demo, "emoji", "purple heart", "-k", 3).stdout.splitlines()
    assert lines[0].split() == ["similarity", "hexcode", "emoji", "name", "group_name", "subgroup", "keywords"]
    assert re.fullmatch(r"0\.\d{3}       1F49C    💜     purple heart .*", lines[1])
    assert len(lines) == 4
    assert [file.name for file in demo.parent.glob("demo*")] == ["demo.db"]  # nothing is left beside it


def test_search_as_json(demo: Path) -> None:
    found = json.loads(vision("search", demo, "emoji", "purple heart", "--json", "-k", 2).stdout)
    assert len(found) == 2
    assert set(found[0]) == {"rowid", "key", "similarity", "row"}
    assert found[0]["key"] == {"hexcode": "1F49C"}
    assert found[0]["row"]["name"] == "purple heart"
    assert "image" not in found[0]["row"]


def test_search_by_image(demo: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(demo)
    (image,) = connection.execute("select image from emoji where name = 'red apple'").fetchone()
    connection.close()
    (tmp_path / "apple.webp").write_bytes(image)
    found = json.loads(vision("search", demo, "emoji", "--image", tmp_path / "apple.webp", "--json", "-k", 1).stdout)
    assert found[0]["row"]["name"] == "red apple"
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)


def test_mistakes(demo: Path, tmp_path: Path) -> None:
    assert "give a QUERY, or an image" in vision("search", demo, "emoji", code=2).stderr
    assert "give a QUERY, or an image" in vision("search", demo, "emoji", "x", "--image", demo, code=2).stderr
    assert vision("search", demo, "emojis", "x", code=13).stderr == (
        "Error: there is no table or view 'emojis'; embedded are: emoji\n"
    )
    assert "has no embeddings by 'clip'" in vision("search", demo, "emoji", "x", "-m", "clip", code=13).stderr
    assert "has no embeddings of 'x'" in vision("index", demo, "emoji", "--column", "x", code=13).stderr
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures.png()[:50])
    assert vision("search", demo, "emoji", "--image", broken, code=2).stderr.startswith("Error: ")
    vision("search", tmp_path / "none.db", "emoji", "x", code=2)
    no_database = tmp_path / "text.db"
    no_database.write_text("x" * 5000)
    assert "file is not a database" in vision("search", no_database, "emoji", "x", code=12).stderr


def test_a_view_without_rows(demo: Path) -> None:
    connection = sqlite3.connect(demo)
    connection.execute("create view empty as select * from emoji where 0")
    SideTable("empty", ("hexcode",)).create(connection)
    connection.execute("insert into _vision_empty select * from _vision_emoji limit 5")
    connection.commit()
    connection.close()
    result = vision("search", demo, "empty", "x")
    assert (result.stdout, result.stderr) == ("", "nothing found\n")


def test_among_some_rows(demo: Path) -> None:
    def names(*options: str) -> list[str]:
        return [
            hit["row"]["name"]
            for hit in json.loads(vision("search", demo, "emoji", "fruit", "--json", *options).stdout)
        ]

    assert set(names("--where", "name in ('red heart', 'pizza', 'red apple')")) == {"red heart", "pizza", "red apple"}
    assert names("--where", "name in ('red heart', 'pizza', 'red apple')")[0] == "red apple"
    assert vision("search", demo, "emoji", "fruit", "--where", "0").stderr == "nothing found\n"
    connection = sqlite3.connect(demo)
    connection.execute("create view some as select * from emoji")
    SideTable("some", ("hexcode",)).create(connection)
    connection.execute("insert into _vision_some select * from _vision_emoji")
    connection.commit()
    connection.close()
    result = vision("search", demo, "some", "fruit", "-k", 1, "--json", "--where", "name <> 'red apple'")
    assert json.loads(result.stdout)[0]["key"]["hexcode"] != "1F34E"


def test_a_mistake_in_a_condition(demo: Path) -> None:
    result = vision("search", demo, "emoji", "x", "--where", "colour = 'red'", code=2)
    assert "--where: no such column: colour" in result.stderr


def test_index(demo: Path) -> None:
    first = vision("index", demo, "emoji", "--check").stdout.splitlines()
    assert first[0] == "emoji (image, tiny-emoji): 1,906 embeddings"
    assert re.fullmatch(r".*demo\.db-vision/emoji-image-tiny-emoji-\w{8}\.index: 0\.6 MB, in \d+\.\d s", first[1])
    assert re.fullmatch(r"recall@10 1\.000 over 100 searches, the worst 1\.0; \d+\.\d ms each \(median\)", first[2])
    (file,) = Path(f"{demo}-vision").iterdir()
    before = file.stat().st_mtime_ns
    vision("index", demo, "emoji")
    assert file.stat().st_mtime_ns == before
    connection = sqlite3.connect(demo)
    connection.execute("delete from _vision_emoji where hexcode = '1F49C'")
    connection.commit()
    connection.close()
    assert "1,905 embeddings" in vision("index", demo, "emoji", "--check").stdout
    assert vision("search", demo, "emoji", "purple heart", "-k", 1).stdout.splitlines()[1].split()[1] == "1F49F"


def test_a_damaged_index_is_found_by_check(demo: Path) -> None:
    vision("index", demo, "emoji")
    (file,) = Path(f"{demo}-vision").iterdir()
    content = bytearray(file.read_bytes())
    content[-100_000] ^= 0x40
    file.write_bytes(content)
    before = bytes(content)
    vision("index", demo, "emoji")
    assert file.read_bytes() == before  # what cannot crash is not read each time
    assert "is damaged: levels: rebuilding the index" in vision("index", demo, "emoji", "--check").stderr
    assert vision("index", demo, "emoji", "--check").stderr == ""


def test_an_index_that_cannot_be_written(demo: Path) -> None:
    Path(f"{demo}-vision").write_text("in the way")
    assert "cannot be written" in vision("index", demo, "emoji", code=12).stderr


def test_a_side_table_from_before_there_were_generations(demo: Path) -> None:
    connection = sqlite3.connect(demo)
    for (name,) in connection.execute("select name from sqlite_master where type = 'trigger'").fetchall():
        connection.execute(f'drop trigger "{name}"')
    connection.execute("drop table _visionchanges")
    connection.commit()
    vision("index", demo, "emoji", "--check")
    assert connection.execute("select count(*) from _visionchanges").fetchone() == (1,)
    connection.close()


def test_the_check_can_fail(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recall is measured: with half of an index gone it is about a half."""
    found = recall.from_index
    monkeypatch.setattr(recall, "from_index", lambda *arguments: found(*arguments)[::2])
    measured = re.findall(r"recall@10 (\d\.\d+)", vision("index", demo, "emoji", "--check").stdout)
    assert measured == ["0.500"]


def test_the_check_counts_only_what_is_there(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "photos.db")
    connection.execute("create table photos (id integer primary key)")
    connection.executemany("insert into photos values (?)", ((key,) for key in range(0, 300, 3)))
    side = SideTable("photos", ("id",))
    side.create(connection)
    matrix = clustered(300)
    matrix[50] = np.nan
    matrix[51] = 0
    side.write(
        connection, (SideTableRow((k,), "image", "elsewhere", "h", vectors.to_blob(v)) for k, v in enumerate(matrix))
    )
    connection.commit()
    connection.close()
    assert "recall@10 1.000" in vision("index", tmp_path / "photos.db", "photos", "--check").stdout


def test_an_empty_table(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "photos.db")
    connection.execute("create table photos (id integer primary key)")
    side = SideTable("photos", ("id",))
    side.create(connection)
    side.write(connection, [SideTableRow((1,), "image", "elsewhere", "h", None, "broken")])
    connection.commit()
    connection.close()
    assert vision("index", tmp_path / "photos.db", "photos").stdout == (
        "photos (image, elsewhere): no embeddings, nothing to index\n"
    )


def test_the_table_in_a_terminal() -> None:
    rows = [
        {"id": 5, "name": "a\tb\x1b[31m", "none": None, "text": "x" * 50, "score": 0.25},
        {"id": 1234, "name": "日本", "none": "", "text": None, "score": 12.0},
    ]
    assert list(table_lines(rows, 200)) == [
        "  id  name     text                                      score",
        f"   5  a b[31m  {'x' * 39}…   0.25",
        "1234  日本     " + " " * 40 + "     12",
    ]
    assert list(table_lines(rows, 21)) == ["  id  name     score", "   5  a b[31m   0.25", "1234  日本        12"]
