"""docs/bulk.md, and what the README says of it: the commands as they stand there, one after the other."""

from __future__ import annotations

import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from datasette.cli import cli

from tests import fakes, pictures
from tests.paths import ROOT

PAGE = (ROOT / "docs/bulk.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with folders of pictures, a shop's database, and a model that is called clip."""
    fakes.make_dual_encoder(tmp_path / "models", "clip")
    monkeypatch.setenv("DATASETTE_VISION_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(
        ["Pictures/a.jpg", "Pictures/b.jpg", "Scans/c.png", "Camera/x/d.jpg", "shop/photos/1.jpg"]
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures.jpeg(seed=number))
    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.executescript(
        "create table products (id integer primary key, title text, price real, image blob, photo_path text);"
        "create view offers as select id as product, image from products where price < 300;"
    )
    rows = [(number, f"thing {number}", 90 * number, pictures.png(seed=number), "1.jpg") for number in range(1, 5)]
    connection.executemany("insert into products values (?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return tmp_path


def type_in(command: str) -> str:
    """Run a line as a shell would."""
    words = shlex.split(command, comments=True)
    expanded = [str(Path(word).expanduser()) if word.startswith("~") else word for word in words]
    if words[0] == "datasette":
        result = CliRunner().invoke(cli, expanded[1:])
        assert result.exit_code == 0, (command, result.output, result.exception)
        return result.stdout
    return subprocess.run(expanded, check=True, capture_output=True, text=True).stdout


def test_the_page(home: Path) -> None:
    answers = [type_in(line) for block in blocks(PAGE, "bash") for line in block.splitlines()]
    expected = [
        "2 emb",
        "2 embedded, 2 unch",
        "0 embedded, 4 unch",
        "4 emb",
        "4 emb",
        "4 emb",
        "0 emb",
        "3 emb",
        "",
        "0 emb",
    ]
    for answer, beginning in zip(answers, expected, strict=True):
        assert answer.startswith(beginning), answers
    connection = sqlite3.connect("photos.db")
    connection.execute("update photos set taken_at = '2024-07-01T00:00:00', near_duplicate_group = 1, error = 'x'")
    connection.execute("update photos set path = 'scans/' || name")
    statements = [line for block in blocks(PAGE, "sql") for line in block.split(";") if line.strip()]
    assert [len(connection.execute(sql).fetchall()) > 0 for sql in statements] == [True, True, True]
    connection.close()
    script = "\n".join(blocks(PAGE, "python"))
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 4 0 []\n"


def test_the_columns_are_those_of_the_table(home: Path) -> None:
    type_in("datasette vision load photos.db ~/Pictures --model clip")
    connection = sqlite3.connect("photos.db")
    columns = [row[1] for row in connection.execute("pragma table_info(photos)")]
    connection.close()
    described = re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE)
    names = [name for line in described for name in re.findall(r"`(\w+)`", line) if name != "image"]
    assert names == columns


def test_the_readme(home: Path) -> None:
    section = (ROOT / "README.md").read_text("utf-8").split("## Embed your own images")[1].split("\n## ")[0]
    lines = [line for block in blocks(section, "bash") for line in block.splitlines()]
    assert lines.pop(0).startswith("datasette vision install clip ")  # that one needs the network
    answers = [type_in(line) for line in lines if " vision " in line.partition("#")[0]]
    assert [answer.split(",")[0] for answer in answers] == [
        "2 embedded",
        "4 embedded",
        "4 embedded (3 identical to another)",
    ]
