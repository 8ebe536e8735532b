"""plugin/search/sql.py: the SQL finds what a calculation by hand finds, in tables of every kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datasette_vision.engine.vision import Vision
from datasette_vision.plugin.search import embedded_table
from datasette_vision.plugin.search import sql as search_sql
from datasette_vision.plugin.search.request import LESS, LikeRow, SearchRequest, encode_embedding
from datasette_vision.plugin.search.sql import RowKey, SearchSql, Where
from datasette_vision.tables import keys
from datasette_vision.vectors import embedding as vectors
from tests import pictures, searchtables
from tests.conftest import Connection
from tests.searchtables import KINDS, NAMES, Kind

MODEL = "tiny-emoji"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, vision: Vision) -> Path:
    path = tmp_path_factory.mktemp("search") / "shop.db"
    searchtables.make(path, vision, MODEL)
    return path


@pytest.fixture
def shop(path: Path, vision: Vision) -> Iterator[Connection]:
    connection = Connection(vision, path)
    yield connection
    connection.connection.close()


def build(shop: Connection, table: str, request: SearchRequest, *numbers: int, **options: object) -> SearchSql:
    """The SQL of a request whose examples are the rows of these numbers."""
    found = embedded_table.read_embedded_table(shop.connection, table)
    assert found is not None
    kind = next((kind for kind in KINDS if kind.table == table), None)
    keys = tuple(
        RowKey(tuple(str(part) for part in (kind.key_of(number) if kind else (number + 1,))), example.weight)
        for number, example in zip(numbers, request.examples, strict=True)
    )
    column = found.pairs[0][1]
    return search_sql.build_sql(found, request, column=column, model=MODEL, keys=keys, **options)  # type: ignore[arg-type]


def names(shop: Connection, sql: SearchSql) -> list[str]:
    cursor = shop.connection.execute(sql.sql, sql.parameters)
    place = [column[0] for column in cursor.description].index("name")
    return [row[place] for row in cursor.fetchall()]


def expected(vision: Vision, *terms: tuple[str, float]) -> list[str]:
    """The names, best first, by a calculation of its own."""
    query = sum(weight * vision.embed_text(text, MODEL).astype(np.float64) for text, weight in terms)
    return sorted(NAMES, key=lambda name: -float(vision.embed_text(name, MODEL) @ query))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.table)
def test_tables_of_every_kind(shop: Connection, vision: Vision, kind: Kind) -> None:
    assert names(shop, build(shop, kind.table, SearchRequest(q="a cat"))) == expected(vision, ("a cat", 1))
    like = SearchRequest(examples=(LikeRow("", 1.0),))
    assert names(shop, build(shop, kind.table, like, 5)) == expected(vision, ("violin", 1))
    both = SearchRequest(q="apple", but_not="red", examples=(LikeRow("", 0.5), LikeRow("", LESS)))
    assert names(shop, build(shop, kind.table, both, 6, 2)) == expected(
        vision, ("apple", 1), ("red", LESS), ("purple heart", 0.5), ("happy cat", LESS)
    )
    where = Where(('"price" < :p0',), (("p0", 3),))
    some = names(shop, build(shop, kind.table, SearchRequest(q="a cat"), where=where))
    assert some == [name for name in expected(vision, ("a cat", 1)) if name in NAMES[:3]]
    assert sorted(names(shop, build(shop, kind.table, SearchRequest(), where=where))) == sorted(NAMES[:3])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.table)
def test_the_index_finds_the_same(shop: Connection, kind: Kind) -> None:
    like = SearchRequest(q="apple", but_not="red", examples=(LikeRow("", 0.5),))
    for request, numbers in (
        (SearchRequest(q="a cat"), ()),
        (SearchRequest(q="a cat", size=3, page=2), ()),
        (SearchRequest(q="a cat", threshold=0.3), ()),
        (like, (6,)),
        (dataclasses.replace(like, threshold=0.1), (6,)),
    ):
        exact = build(shop, kind.table, request, *numbers, use_index=False)
        indexed = build(shop, kind.table, request, *numbers, use_index=True)
        # What has no row number cannot be looked up by it.
        assert ("vision_search(" in indexed.sql) is (kind.table != "tight")
        assert names(shop, indexed) == names(shop, exact)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.table)
def test_large_tables_give_the_same(shop: Connection, kind: Kind) -> None:
    """Their SQL goes from the rows to the embeddings, where that of small ones goes the other way."""
    found = embedded_table.read_embedded_table(shop.connection, kind.table)
    assert found is not None
    key = RowKey(tuple(str(part) for part in kind.key_of(6)), 0.5)
    for request, where in (
        (SearchRequest(q="apple", examples=(LikeRow("", 0.5),)), Where(('"price" < :p0',), (("p0", 5),))),
        (SearchRequest(), Where()),
    ):
        answers = []
        for is_large in (False, True):
            table = dataclasses.replace(found, is_large=is_large)
            keys = (key,) if request.examples else ()
            sql = search_sql.build_sql(
                table, request, column="image", model=MODEL, keys=keys, where=where, use_index=False
            )
            assert ("cross join" in sql.sql) is is_large
            answers.append(names(shop, sql))
        assert answers[0] == answers[1]
        assert answers[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.table)
def test_the_index_finds_the_same_among_what_passes(shop: Connection, kind: Kind) -> None:
    for where in (
        Where(('"price" < :p0',), (("p0", 3),)),
        Where(('"price" < :p0', '"price" > :p1'), (("p0", 5), ("p1", 2))),
    ):
        for request in (SearchRequest(q="a cat"), SearchRequest(q="a cat", size=2, threshold=0.1)):
            exact = build(shop, kind.table, request, where=where, use_index=False)
            indexed = build(shop, kind.table, request, where=where, use_index=True)
            assert ("json_group_array(" in indexed.sql) is (kind.table != "tight")
            assert names(shop, indexed) == names(shop, exact)
            assert names(shop, exact)


def test_large_tables_are_searched_by_index(shop: Connection) -> None:
    found = embedded_table.read_embedded_table(shop.connection, "photos")
    assert found is not None
    for is_large in (False, True):
        table = dataclasses.replace(found, is_large=is_large)
        sql = search_sql.build_sql(table, SearchRequest(q="a cat"), column="image", model=MODEL)
        assert ("vision_search(" in sql.sql) is is_large


def test_a_view_is_searched_by_its_key(shop: Connection, vision: Vision) -> None:
    found = names(shop, build(shop, "cheap", SearchRequest(q="apple")))
    assert found == [name for name in expected(vision, ("apple", 1)) if name in NAMES[:4]]
    assert names(shop, build(shop, "cheap", SearchRequest(examples=(LikeRow("", 1.0),)), 3))[0] == "sad cat"


def test_an_embedding_in_the_address(shop: Connection, vision: Vision) -> None:
    blob = vectors.to_blob(vision.embed_text("pizza", MODEL))
    request = SearchRequest(embedding=encode_embedding(blob))
    assert names(shop, build(shop, "photos", request)) == expected(vision, ("pizza", 1))
    mixed = SearchRequest(q="a cat", embedding=encode_embedding(blob), embedding_weight=0.3)
    assert names(shop, build(shop, "photos", mixed)) == expected(vision, ("a cat", 1), ("pizza", 0.3))


def test_the_similarity_of_each_row(shop: Connection, vision: Vision) -> None:
    sql = build(shop, "photos", SearchRequest(q="red apple", but_not="green"))
    rows = [dict(zip(("name", "similarity"), row, strict=True)) for row in shop.connection.execute(
        f"select name, {sql.similarity} from ({sql.sql})", sql.parameters)]  # fmt: skip
    query = vision.embed_text("red apple", MODEL) + LESS * vision.embed_text("green", MODEL)
    for row in rows:
        cosine = vectors.cosine(vision.embed_text(row["name"], MODEL), query)
        assert row["similarity"] == pytest.approx(cosine, abs=1e-6)


def test_a_column_called_similarity_keeps_its_name(shop: Connection) -> None:
    assert build(shop, "photos", SearchRequest(q="cat")).similarity == "similarity"
    assert build(shop, 'odd "table"', SearchRequest(q="cat")).similarity == "vision_similarity"


def test_threshold_as_a_number_and_as_the_text_of_an_address(shop: Connection, vision: Vision) -> None:
    all_rows = build(shop, "photos", SearchRequest(q="red apple"))
    similarities = [
        row[0] for row in shop.connection.execute(f"select similarity from ({all_rows.sql})", all_rows.parameters)
    ]
    least = (similarities[2] + similarities[3]) / 2
    sql = build(shop, "photos", SearchRequest(q="red apple", threshold=least))
    assert names(shop, sql) == expected(vision, ("red apple", 1))[:3]
    as_text = {name: str(value) for name, value in sql.parameters.items()}
    assert names(shop, SearchSql(sql.sql, as_text, sql.similarity)) == names(shop, sql)


@pytest.mark.parametrize("asked", [{"q": "something"}, {}], ids=["searched", "listed"])
def test_pages_hold_every_row_once(shop: Connection, asked: dict[str, str]) -> None:
    pages = [
        names(shop, build(shop, "pairs", SearchRequest(**asked, size=3, page=page)))  # type: ignore[arg-type]
        for page in (1, 2, 3, 4)
    ]
    assert [len(page) for page in pages] == [3, 3, 2, 0]
    assert [name for page in pages for name in page] == names(shop, build(shop, "pairs", SearchRequest(**asked)))  # type: ignore[arg-type]


def test_rows_that_could_not_be_embedded_are_not_found(vision: Vision, tmp_path: Path) -> None:
    searchtables.make(tmp_path / "some.db", vision, MODEL)
    connection = Connection(vision, tmp_path / "some.db")
    connection.connection.execute("update _vision_photos set embedding = null, error = 'broken' where id = 3")
    for request in (SearchRequest(q="cat"), SearchRequest()):
        found = names(connection, build(connection, "photos", request))
        assert sorted(found) == sorted(set(NAMES) - {"happy cat"})
    connection.connection.close()


def test_the_query_is_embedded_once(shop: Connection, vision: Vision, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    embed = vision.embed_text
    monkeypatch.setattr(vision, "embed_text", lambda text, *rest, **named: asked.append(text) or embed(text, *rest))
    request = SearchRequest(q="apple", but_not="red", examples=(LikeRow("", 1.0),), threshold=-1)
    names(shop, build(shop, "photos", request, 1))
    assert sorted(asked) == ["apple", "red"]


def test_large_pictures_are_not_read(shop: Connection, tmp_path: Path, vision: Vision) -> None:
    assert "photos.*" in build(shop, "photos", SearchRequest(q="cat")).sql
    searchtables.make(tmp_path / "large.db", vision, MODEL)
    connection = Connection(vision, tmp_path / "large.db")
    connection.connection.execute("update photos set image = ?", (pictures.png() + bytes(100_000),))
    sql = build(connection, "photos", SearchRequest(q="cat")).sql
    assert sql.startswith("select photos.id, photos.name, photos.price,")
    connection.connection.close()


def test_every_model_is_found_wherever_its_rows_are(tmp_path: Path, vision: Vision) -> None:
    searchtables.make(tmp_path / "some.db", vision, MODEL)
    connection = Connection(vision, tmp_path / "some.db")
    for model, column in (("a", "image"), ("clip", "image"), ("clip", "name"), ("z", "other")):
        connection.connection.execute(
            "insert into _vision_photos select id, ?, ?, content_hash, embedding, error, embedded_at"
            " from _vision_photos where model = ? limit 3",
            (column, model, MODEL),
        )
    found = embedded_table.read_embedded_table(connection.connection, "photos")
    assert found is not None
    assert found.pairs == (("a", "image"), ("clip", "image"), ("clip", "name"), (MODEL, "image"), ("z", "other"))
    plan = connection.connection.execute(
        "explain query plan select model, source_column from _vision_photos where model = ? and source_column > ?"
        " order by model, source_column limit 1",
        ("a", ""),
    ).fetchall()
    assert "SEARCH" in plan[0][3]
    connection.connection.close()


def test_a_view_that_is_not_embedded_is_not_run(vision: Vision) -> None:
    connection = Connection(vision)
    connection.connection.execute(
        "create view endless as with recursive n (i) as (select 1 union all select i + 1 from n) select max(i) from n"
    )
    endless = keys.describe(connection.connection, "endless")
    assert endless is not None
    assert embedded_table.columns_of(connection.connection, endless) == (frozenset(), ())
    connection.connection.close()


def test_what_is_not_embedded(shop: Connection) -> None:
    assert embedded_table.read_embedded_table(shop.connection, "bare") is None
    assert embedded_table.read_embedded_table(shop.connection, "nowhere") is None
    assert embedded_table.image_columns(shop.connection, "bare") == ("picture",)
    assert embedded_table.image_columns(shop.connection, "words") == ()
    assert [table for table, _ in embedded_table.tables(shop.connection)] == sorted(
        [*(k.table for k in KINDS), "cheap"]
    )
