"""Other tools read the same embeddings, and find the same: the examples of docs/search.md for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from datasette_vision.engine.vision import Vision
from datasette_vision.sql import registration as sql
from tests.docs.test_search_docs import PARAMETERS, blocks

OURS = """
select emoji.name from json_each(vision_search('emoji', :q, 5)) as found
join emoji on emoji.rowid = json_extract(found.value, '$.rowid') order by found.key"""
QUERIES = ["purple heart", "something to eat", "a dog"]


def sqlite_that_loads() -> ModuleType:
    """A SQLite module that can load extensions: some builds of Python have none."""
    try:
        import pysqlite3 as module
    except ImportError:
        import sqlite3 as module  # type: ignore[no-redef]
    if not hasattr(module.Connection, "enable_load_extension"):
        pytest.skip("this Python's SQLite loads no extensions, and there is no pysqlite3")
    return module  # type: ignore[no-any-return]


def example(*words: str) -> str:
    (found,) = [block for block in blocks("docs/search.md") if all(word in block for word in words)]
    return found


def first_column(connection: Any, statement: str, query: str) -> list[str]:
    return [row[0] for row in connection.execute(statement, {**PARAMETERS, "q": query})]


@pytest.fixture
def with_vec(demo_path: Path, vision: Vision, tmp_path: Path) -> Iterator[Any]:
    sqlite_vec = pytest.importorskip("sqlite_vec", reason="sqlite-vec is not installed")
    module = sqlite_that_loads()
    connection = module.connect(shutil.copy(demo_path, tmp_path / "demo.db"))
    connection.enable_load_extension(True)
    sqlite_vec.load(connection)
    registration = sql.Registration(lambda: vision)
    registration.register(connection)
    yield connection
    connection.close()


@pytest.mark.parametrize("query", QUERIES)
def test_sqlite_vec_reads_embeddings(with_vec: Any, query: str) -> None:
    assert first_column(with_vec, example("vec_distance_cosine"), query) == first_column(with_vec, OURS, query)
    statement = (
        "select max(abs(vec_distance_cosine(embedding, vision_embed(:q))"
        " + vision_similarity(embedding, vision_embed(:q)) - 1)) from _vision_emoji"
    )
    assert first_column(with_vec, statement, query)[0] < 1e-5  # type: ignore[operator]
    assert first_column(with_vec, "select vec_length(embedding) from _vision_emoji limit 1", query) == [256]


def test_a_table_of_sqlite_vec_takes_embeddings(with_vec: Any) -> None:
    with_vec.executescript(example("using vec0"))
    assert with_vec.execute("select count(*) from emoji_vec").fetchone() == (1906,)
    for query in QUERIES:
        assert first_column(with_vec, example("emoji_vec.embedding match"), query) == first_column(
            with_vec, OURS, query
        )


def test_embeddings_of_sqlite_vec_are_searched(with_vec: Any) -> None:
    """What sqlite-vec writes is an embedding to us."""
    statement = "select json_extract(vision_search('emoji', vec_f32(vision_to_json(embedding)), 1), '$[0].key.hexcode')"
    found = with_vec.execute(f"{statement}, hexcode from _vision_emoji limit 50").fetchall()
    assert all(one == other for one, other in found)


@pytest.mark.parametrize("query", QUERIES)
def test_datasette_faiss_reads_embeddings(demo_path: Path, vision: Vision, query: str) -> None:
    faiss = pytest.importorskip("datasette_faiss", reason="datasette-faiss is not installed: it holds NumPy below 2")
    import sqlite3

    connection = sqlite3.connect(demo_path)
    sql.register(connection, lambda: vision)
    faiss.prepare_connection(connection)
    assert first_column(connection, example("faiss_agg"), query) == first_column(connection, OURS, query)
    connection.close()
