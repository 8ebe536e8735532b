"""docs/python.md: its examples run as they stand, one after the other, and it names what is public."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import datasette_vision
from datasette_vision import errors
from tests import pictures
from tests.paths import ROOT

PAGE = (ROOT / "docs/python.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shop's database, photos, and a cat."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATASETTE_VISION_MODELS", str(tmp_path / "no-models"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Pictures").mkdir()
    (tmp_path / "Pictures/a.jpg").write_bytes(pictures.jpeg())
    (tmp_path / "cat.jpg").write_bytes(pictures.jpeg(seed=5))
    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.execute("create table products (id integer primary key, title text, image blob)")
    rows = [(number, f"thing {number}", pictures.png(seed=number)) for number in range(1, 5)]
    connection.executemany("insert into products values (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return tmp_path


def test_the_examples(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variables: dict[str, Any] = {}
    assert len(EXAMPLES) == 9
    for example in EXAMPLES:
        exec(compile(example, "docs/python.md", "exec"), variables)
    assert [len(row) for row in variables["rows"]] == [2, 2, 2]
    assert variables["db"].execute("select distinct is_broken from products").fetchall() == [(0,)]
    assert set(variables["counts"].index) <= {"shoe", "hat"}
    assert variables["counts"].sum() == 4
    printed = capsys.readouterr().out
    assert "4 embedded, 0 unchanged, 0 failed" in printed
    assert "not an image of a known format" in printed
    with sqlite3.connect(home / "photos.db") as connection:
        assert connection.execute("select count(*) from photos").fetchone() == (1,)
    assert -1 <= variables["similarity"] <= 1
    assert [entry["label"] for entry in variables["labels"]] != []


def test_the_page_names_what_is_public_and_all_of_it() -> None:
    table = PAGE.partition("## All names")[2]
    named = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert sorted(named) == sorted(name for name in datasette_vision.__all__ if name != "__version__")


def test_every_error_is_public() -> None:
    known = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert known <= set(datasette_vision.__all__)


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert datasette_vision.__all__ == sorted(datasette_vision.__all__)
    for name in datasette_vision.__all__:
        value = getattr(datasette_vision, name)
        assert name == "__version__" or value.__doc__, name
    assert set(datasette_vision.__all__) <= set(dir(datasette_vision))
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        datasette_vision.absent  # noqa: B018


def test_public_names_are_imported_when_they_are_used() -> None:
    code = "import datasette_vision, sys; datasette_vision.Config; print(sorted({'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_what_was_known_before_stays() -> None:
    from datasette_vision.sql import register
    from datasette_vision.sql.registration import register as same

    assert register is same
