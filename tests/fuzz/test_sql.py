"""Every SQL function with any arguments: a value, NULL, or an error that says what was expected."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example
from hypothesis import strategies as st

from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.models.store import ModelStore
from datasette_vision.sql import registration as sql
from datasette_vision.sql.table import ANY_NUMBER, FUNCTIONS, SqlFunction
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.util.sql_names import literal, quote
from tests import hostile, pictures
from tests.fuzz import strategies as own
from tests.fuzz.properties import fuzz

BY_NAME = {function.name: function for function in FUNCTIONS}


class Database:
    """A database with an embedded table, and the messages of its errors."""

    def __init__(self, vision: Vision) -> None:
        self.messages: list[str] = []
        self.connection = sqlite3.connect(":memory:")
        sql.register(self.connection, lambda: vision, on_error=self.messages.append)
        self.connection.execute("create table photos (id integer primary key, image blob)")
        side = SideTable("photos", ("id",))
        side.create(self.connection)
        for number in range(5):
            image = pictures.png(8, 8, seed=number)
            self.connection.execute("insert into photos values (?, ?)", (number, image))
            side.write(
                self.connection,
                [SideTableRow((number,), "image", "fake", str(number), vision.embed_image(image).tobytes())],
            )

    def call(self, name: str, arguments: list[Any], expression: str) -> Any:
        """The value of a call, or an sqlite3.Error. What is said of it is checked."""
        self.messages.clear()
        try:
            return self.connection.execute(expression, arguments).fetchone()[0]
        except sqlite3.Error as error:
            for message in self.messages:
                assert message.startswith(f"{name}(): ")
                assert "internal error" not in message
                assert 10 < len(message) < 500
            if not self.messages:  # SQLite's own
                assert any(
                    known in str(error)
                    for known in (
                        "wrong number of arguments",
                        "string or blob too big",
                        "too many arguments",
                        "user-defined function raised",
                    )
                ), error
            return error
        except (UnicodeEncodeError, OverflowError) as error:  # it never came to SQLite
            return error


@pytest.fixture(scope="module")
def database(fake_models: Path) -> Iterator[Database]:
    vision = Vision(
        Config(default_model="fake", default_classifier="fake-classifier", max_image_megapixels=2),
        store=ModelStore(fake_models),
    )
    found = Database(vision)
    yield found
    found.connection.close()
    vision.close()


labels = st.lists(own.plain_texts, max_size=4).map(json.dumps) | st.sampled_from(
    [text for text in hostile.HOSTILE_LABELS.values() if len(text) < 50_000]
)
blobs = own.embeddings(8) | own.any_image | own.good_images | st.binary(max_size=60)
sql_values = (
    st.none()
    | own.INTEGERS
    | own.FLOATS
    | own.plain_texts
    | own.any_text
    | labels
    | own.json_texts(own.float32s(8))
    | blobs
    | st.sampled_from(
        [
            "photos",
            "main.photos",
            "_vision_photos",
            "sqlite_master",
            "pragma_x",
            "fake",
            "fake-wide",
            "fake-classifier",
            "nope",
            "../fake",
            "image",
        ]
    )
    | own.good_images.flatmap(own.as_text)
)
# What each argument is meant to be, so that calls get further than their first check.
MEANT: dict[str, st.SearchStrategy[Any]] = {
    "input": own.plain_texts | blobs,
    "text": own.plain_texts,
    "image": own.any_image | own.good_images.flatmap(own.as_text),
    "image_or_embedding": blobs,
    "a": own.embeddings(8),
    "b": own.embeddings(8),
    "embedding": own.embeddings(8),
    "weight": own.FLOATS,
    "json": own.json_texts(own.float32s(8)),
    "base64": own.plain_texts,
    "labels": labels,
    "model": st.sampled_from(["fake", "fake-wide", "fake-labels", "fake-classifier", "", "vision/fake", "nope"]),
    "k": own.INTEGERS,
    "pixels": st.integers(0, 2049),
    "table": st.sampled_from(["photos", "main.photos", "PHOTOS", "nope"]),
    "query": own.plain_texts | blobs,
    "column": st.sampled_from(["image", "", "nope"]),
    "rows": own.json_texts(st.lists(own.INTEGERS | own.plain_texts, max_size=5)),
}


@st.composite
def arguments_of(draw: st.DrawFn, function: SqlFunction) -> list[Any]:
    names = (*function.required, *function.optional)
    if function.variadic:
        names *= draw(st.integers(0, 4))
    elif function.arities != [ANY_NUMBER]:
        names = names[: draw(st.sampled_from(function.arities))]
    found = [draw(MEANT[name] if draw(st.integers(0, 3)) else sql_values) for name in names]
    if draw(st.integers(0, 9)) == 9:
        found.append(draw(sql_values))
    return found


def expected(name: str, value: Any, arguments: list[Any]) -> None:
    """What a value of each function must be."""
    if value is None:
        return
    if name in (
        "vision_to_json",
        "vision_classify",
        "vision_zero_shot",
        "vision_search",
        "vision_info",
        "vision_models",
        "llm_embed_decode",
    ):
        json.loads(value, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    elif name in ("vision_similarity", "llm_embed_cosine"):
        assert -1.000001 <= value <= 1.000001
    elif name in ("vision_error", "vision_label"):
        assert isinstance(value, str)
        assert value
    else:
        assert isinstance(value, bytes)
        assert value


@pytest.mark.parametrize("name", BY_NAME)
@fuzz(st.data(), weight=1.2)
def test_every_function(database: Database, errors_alone: None, name: str, data: st.DataObject) -> None:
    function = BY_NAME[name]
    arguments = data.draw(arguments_of(function))
    if function.aggregate:
        rows = " union all ".join(["select ? as value"] * len(arguments)) or "select 1 as value where 0"
        value = database.call(name, arguments, f"select {name}(value) from ({rows})")
    else:
        value = database.call(name, arguments, f"select {name}({', '.join('?' * len(arguments))})")
    if isinstance(value, Exception):
        return
    expected(name, value, arguments)
    if not function.aggregate and None in arguments and name not in ("vision_combine", "vision_models"):
        assert value is None, "NULL in, NULL out"


@pytest.mark.parametrize("name", ["vision_error", "vision_info", "vision_embed_image"])
@fuzz(own.any_image | own.any_text | st.binary(max_size=100))
def test_an_image_is_embedded_or_there_is_an_error(database: Database, name: str, value: str | bytes) -> None:
    """Of each value exactly one is so: it has an embedding, or vision_error() says why not."""
    why_not = database.call("vision_error", [value], "select vision_error(?)")
    embedding = database.call("vision_embed_image", [value], "select vision_embed_image(?)")
    if isinstance(why_not, Exception):
        assert isinstance(embedding, Exception)
        return
    assert (why_not is None) == (embedding is not None)
    if why_not is None:
        assert database.call("vision_info", [value], "select vision_info(?)") is not None
        assert database.call("vision_thumbnail", [value], "select vision_thumbnail(?, 16)") is not None


@fuzz(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20),
    own.plain_texts.filter(lambda text: "\0" not in text),
)
@example('"', "'")
def test_names_and_texts_in_sql(name: str, text: str) -> None:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"create table t ({quote(name)} text)")
        connection.execute(f"insert into t ({quote(name)}) values ({literal(text)})")
        row = connection.execute(f"select {quote(name)} from t").fetchone()
        assert row == (text,)
        assert [column[1] for column in connection.execute("pragma table_info(t)")] == [name]
    finally:
        connection.close()
