"""The examples of docs/search.md: each is run on the demo database, and finds what it says that it finds.

Those for sqlite-vec and datasette-faiss are in test_interoperability.py.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasette_vision.engine.vision import Vision
from tests.conftest import Connection
from tests.paths import ROOT

PARAMETERS = {"q": "purple heart", "hexcode": "1F436"}
FOREIGN = ("vec_", "vec0", "emoji_vec", "faiss")


def blocks(path: str) -> list[str]:
    text = (ROOT / path).read_text("utf-8")
    return re.findall(r"^```sql\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def own_blocks() -> list[str]:
    return [block for block in blocks("docs/search.md") if not any(word in block for word in FOREIGN)]


def containing(*words: str) -> str:
    (found,) = [block for block in own_blocks() if all(word in block for word in words)]
    return found


@pytest.fixture(scope="module")
def demo_copy(demo_path: Path, vision: Vision, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """The demo database with the full-text index of the page."""
    db = Connection(vision, shutil.copy(demo_path, tmp_path_factory.mktemp("docs") / "demo.db"))
    db.connection.executescript(containing("create virtual table"))
    yield db
    db.connection.close()


def rows(db: Connection, sql: str, **parameters: str) -> list[tuple[object, ...]]:
    return db.connection.execute(sql, {**PARAMETERS, **parameters}).fetchall()


def names(db: Connection, sql: str, column: int = 0, **parameters: str) -> list[object]:
    return [row[column] for row in rows(db, sql, **parameters)]


def test_there_are_examples() -> None:
    assert len(own_blocks()) >= 13


@pytest.mark.parametrize("block", [block for block in own_blocks() if not block.startswith("create")])
def test_every_example_finds_something(block: str, demo_copy: Connection) -> None:
    found = rows(demo_copy, block)
    assert found
    assert all(value is not None for row in found for value in row)
    assert demo_copy.messages == []


def test_the_result_that_is_shown(demo_copy: Connection) -> None:
    shown = re.search(r"```json\n(.*?)```", (ROOT / "docs/search.md").read_text("utf-8"), flags=re.DOTALL)
    assert shown is not None
    (answer,) = rows(demo_copy, own_blocks()[0])[0]
    without_numbers = re.compile(r"(\.\d\d)\d+")  # processors differ in the last places
    assert without_numbers.sub(r"\1", str(answer)) == without_numbers.sub(r"\1", shown[1]).replace("\n ", " ").strip()


def test_the_closest_rows(demo_copy: Connection) -> None:
    found = rows(
        demo_copy, containing("emoji.emoji", "round", "'$.rowid'", "found.key\n", "vision_search('emoji', :q)")
    )
    assert [row[1] for row in found][:2] == ["purple heart", "heart decoration"]
    similarities = [row[2] for row in found]
    assert similarities == sorted(similarities, reverse=True)  # type: ignore[type-var]
    by_key = rows(demo_copy, containing("$.key.hexcode"))
    assert by_key == [row[:2] for row in found]


def test_filters(demo_copy: Connection) -> None:
    assert set(names(demo_copy, containing("food-fruit"), q="red apple")) >= {"red apple", "green apple"}
    flags = names(demo_copy, containing("'flags'"), q="flag: France")
    assert len(flags) == 5
    assert not any(str(name).startswith("flag: ") for name in flags)


def test_neighbours_of_a_row(demo_copy: Connection) -> None:
    assert "dog face" not in names(demo_copy, containing(":hexcode"), 1)
    assert len(names(demo_copy, containing(":hexcode"))) == 5


def test_thresholds(demo_copy: Connection) -> None:
    found = names(demo_copy, containing(">= 0.3"), 1)
    assert 3 <= len(found) < 100
    assert min(found) >= 0.3  # type: ignore[type-var]


def test_near_duplicates(demo_copy: Connection) -> None:
    found = rows(demo_copy, containing("nearly_the_same"))
    assert ("family: man, man, boy", "family: adult, adult, child", 1.0) in found  # drawn the same
    assert all(one != other for one, other, _ in found)


def test_labels(demo_copy: Connection) -> None:
    counted = dict(rows(demo_copy, containing("vision_label"), q="wild animal"))
    assert max(counted, key=lambda label: counted[label]) == "animal"  # type: ignore[arg-type, return-value]
    labels = {name: label for name, label, _ in rows(demo_copy, containing("vision_average"))}
    assert labels == {"tangerine": "fruit", "strawberry": "fruit", "wolf": "animal", "cat face": "animal"}


def test_words_and_pictures_together(demo_copy: Connection) -> None:
    found = rows(demo_copy, containing("by_words"))
    assert found[0][1] == "purple heart"  # the first of both lists
    assert found[0][2] == pytest.approx(2 / 61, abs=1e-4)


def test_the_examples_of_the_readme_run(demo_copy: Connection) -> None:
    section = (ROOT / "README.md").read_text("utf-8").split("\n### Search\n")[1].split("\n### ")[0].split("\n## ")[0]
    found = re.findall(r"^```sql\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    assert found
    for block in found:
        for statement in block.split(";"):
            if statement.strip():
                assert rows(demo_copy, statement), statement
