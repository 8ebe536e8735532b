"""The enrichments, through the pages of datasette-enrichments: from the form to the column."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3

from datasette_vision.engine.vision import Vision
from datasette_vision.plugin.server.compatibility import IS_1_0
from datasette_vision.plugin.server.state import state_of
from datasette_vision.util.transactions import writer_on
from datasette_vision.vectors import embedding as vectors
from tests import pictures

if not IS_1_0:
    pytest.skip("datasette-enrichments 0.6 needs Datasette 1.0", allow_module_level=True)
pytest.importorskip("datasette_enrichments", reason="needs datasette-enrichments")

from datasette_enrichments.utils import wait_for_job

from datasette_vision.plugin.enrichments.batches import Batch
from datasette_vision.plugin.enrichments.forms import LABEL, SCORES

PICTURES = [pictures.png(seed=seed) for seed in range(6)]


class Enriched:
    """A Datasette on a table of pictures, asked by root."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self.connection.execute("create table photos (id integer primary key, name text, image blob)")
        self.insert((1, PICTURES[0]), (2, PICTURES[1]), (3, None), (4, b"nonsense"), (5, PICTURES[2]))
        self.datasette = Datasette([str(path)])
        self.datasette.root_enabled = True
        self.cookies = {"ds_actor": self.datasette.sign({"a": {"id": "root"}}, "actor")}

    def execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()

    def insert(self, *rows: tuple[int, bytes | None]) -> None:
        self.connection.executemany("insert into photos values (?, 'photo ' || ?1, ?2)", rows)

    async def post(self, slug: str, data: dict[str, str], table: str = "photos", query: str = "") -> Any:
        path = f"/-/enrich/photos/{table}/{slug}{query}"
        return await self.datasette.client.post(path, data=data, cookies=self.cookies)

    async def run(self, slug: str, data: dict[str, str], table: str = "photos", query: str = "") -> dict[str, Any]:
        """Fill in the form, wait for the end of the job, and return it."""
        answer = await self.post(slug, data, table, query)
        assert answer.status_code == 302, answer.text
        job_id = int(answer.headers["location"].rpartition("=")[2])
        await wait_for_job(self.datasette, job_id, "photos", timeout=60)
        row = (await self.datasette.get_database("photos").execute("select * from _enrichment_jobs where id = ?",
                                                                   [job_id])).first()  # fmt: skip
        return dict(row)

    def errors(self) -> list[tuple[Any, str]]:
        return [
            (json.loads(ids), error) for ids, error in self.execute("select row_pks, error from _enrichment_errors")
        ]


@pytest_asyncio.fixture
async def enriched(tmp_path: Path) -> AsyncIterator[Enriched]:
    enriched = Enriched(tmp_path / "photos.db")
    await enriched.datasette.invoke_startup()
    yield enriched
    state_of(enriched.datasette).close()
    enriched.connection.close()


@pytest.mark.asyncio
async def test_a_job_is_for_those_who_may_have_models_compute(enriched: Enriched) -> None:
    datasette = enriched.datasette
    datasette.config["permissions"] = {"enrichments": {"id": ["alice", "bob"]}, "vision-infer": {"id": "bob"}}
    for name, status in (("alice", 403), ("bob", 302)):
        enriched.cookies = {"ds_actor": datasette.sign({"a": {"id": name}}, "actor")}
        answer = await enriched.post("vision-embed", {"column": "name", "model": "tiny-emoji"})
        assert answer.status_code == status, answer.text
        form = await datasette.client.get("/-/enrich/photos/photos/vision-embed", cookies=enriched.cookies)
        assert (form.status_code == 403) == (status == 403)
        there = "_enrichment_jobs" in await datasette.get_database("photos").table_names()
        assert there == (status == 302)
    await wait_for_job(datasette, 1, "photos", timeout=60)


NOT_AN_IMAGE = "not an image of a known format"


@pytest.mark.asyncio
async def test_embed(enriched: Enriched, vision: Vision) -> None:
    job = await enriched.run("vision-embed", {"column": "image", "model": "tiny-emoji"})
    assert (job["status"], job["done_count"], job["error_count"]) == ("finished", 5, 1)
    ((ids, error),) = enriched.errors()
    assert ids == [4]
    assert NOT_AN_IMAGE in error
    rows = enriched.execute("select id, model, source_column, embedding, error from _vision_photos order by id")
    assert [row[:3] for row in rows] == [(key, "tiny-emoji", "image") for key in (1, 2, 4, 5)]
    for key, number in ((1, 0), (2, 1), (5, 2)):
        expected = vision.embed_image(PICTURES[number])
        found = {row[0]: row[3] for row in rows}[key]
        assert vectors.cosine(vectors.from_blob(found), expected) == pytest.approx(1, abs=1e-5)
    assert [row[0] for row in rows if row[4]] == [4]


@pytest.mark.asyncio
async def test_embed_texts_of_selected_rows(enriched: Enriched) -> None:
    job = await enriched.run("vision-embed", {"column": "name", "model": "tiny-emoji"}, query="?id__gt=2&name__not=x")
    assert (job["row_count"], job["error_count"]) == (3, 0)
    assert enriched.execute("select id from _vision_photos order by id") == [(3,), (4,), (5,)]


@pytest.mark.asyncio
@pytest.mark.parametrize("what", [LABEL, SCORES])
async def test_classify(enriched: Enriched, vision: Vision, what: str) -> None:
    data = {"column": "image", "model": "tiny-emoji", "output": "seen", "what": what}
    job = await enriched.run("vision-classify", data)
    assert (job["status"], job["error_count"]) == ("finished", 1)
    assert [ids for ids, _ in enriched.errors()] == [[4]]
    found = dict(enriched.execute("select id, seen from photos"))
    assert found[3] is found[4] is None
    for key, number in ((1, 0), (2, 1), (5, 2)):
        check(found[key], vision.classify(PICTURES[number]), what)


@pytest.mark.asyncio
@pytest.mark.parametrize("what", [LABEL, SCORES])
@pytest.mark.parametrize("labels", ["fruit\r\n animal \r\n\r\nflag", '["fruit", "animal", "flag"]'])
async def test_zero_shot(enriched: Enriched, vision: Vision, labels: str, what: str) -> None:
    data = {"column": "image", "model": "tiny-emoji", "output": "the label", "what": what, "labels": labels}
    await enriched.run("vision-zero-shot", data)
    found = dict(enriched.execute('select id, "the label" from photos'))
    for key, number in ((1, 0), (2, 1), (5, 2)):
        check(found[key], vision.zero_shot(PICTURES[number], '["fruit", "animal", "flag"]'), what)


def check(found: str, expected: Sequence[dict[str, object]], what: str) -> None:
    if what == LABEL:
        assert found == expected[0]["label"]
        return
    scores = json.loads(found)
    assert [each["label"] for each in scores] == [each["label"] for each in expected]
    assert [each["score"] for each in scores] == pytest.approx([each["score"] for each in expected], abs=1e-4)


@pytest.mark.asyncio
async def test_what_is_embedded_is_not_embedded_again(enriched: Enriched) -> None:
    await enriched.run("vision-embed", {"column": "image", "model": "tiny-emoji"})
    queue = state_of(enriched.datasette).vision.get().services.dual_encoder("tiny-emoji").images
    before = queue.items
    data = {"column": "image", "model": "tiny-emoji", "output": "label", "labels": "fruit\nflag", "what": LABEL}
    await enriched.run("vision-zero-shot", data)
    assert queue.items == before
    assert len(enriched.execute("select * from photos where label is not null")) == 3


@pytest.mark.asyncio
async def test_many_rows_in_several_batches(enriched: Enriched) -> None:
    enriched.insert(*((number, PICTURES[number % 6]) for number in range(100, 230)))
    data = {"column": "image", "model": "tiny-emoji", "output": "label", "what": LABEL}
    job = await enriched.run("vision-classify", data)
    assert (job["row_count"], job["done_count"], job["error_count"]) == (135, 135, 1)
    assert len(enriched.execute("select * from photos where label is not null")) == 133


@pytest.mark.asyncio
async def test_rows_come_without_their_pictures(enriched: Enriched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty pictures in base64 at a time would be hundreds of megabytes."""
    seen: list[dict[str, Any]] = []
    original = Batch.__init__

    def watched(self: Batch, *given: Any) -> None:
        seen.extend(given[-1])
        original(self, *given)

    monkeypatch.setattr(Batch, "__init__", watched)
    await enriched.run("vision-embed", {"column": "image", "model": "tiny-emoji"}, query="?image__notnull=1")
    assert [set(row) for row in seen] == [{"id", "name"}] * 4


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("create", "insert", "errors"),
    [
        ("create table t (a text, b integer, image blob, primary key (a, b))", ("x'y", 7), ["x'y", 8]),
        ("create table t (image blob)", (), 2),
        ("create table t (name text, image blob)", ("x",), 2),
    ],
)
async def test_keys(enriched: Enriched, create: str, insert: tuple[Any, ...], errors: Any) -> None:
    enriched.execute(create)
    marks = "?, " * len(insert)
    enriched.execute(f"insert into t values ({marks}?)", *insert, PICTURES[0])
    other = (*insert[:-1], 8) if insert else ()
    enriched.execute(f"insert into t values ({marks}?)", *other, b"nonsense")
    for slug, data in (
        ("vision-embed", {"column": "image", "model": "tiny-emoji"}),
        ("vision-classify", {"column": "image", "model": "tiny-emoji", "output": "label", "what": LABEL}),
    ):
        job = await enriched.run(slug, data, "t")
        assert (job["status"], job["error_count"]) == ("finished", 1)
    assert [ids for ids, _ in enriched.errors()] == [[errors]] * 2
    assert len(enriched.execute("select * from _vision_t where embedding is not null")) == 1
    assert len(enriched.execute("select * from t where label is not null")) == 1


@pytest.mark.asyncio
async def test_what_no_row_can_help_cancels_the_job(enriched: Enriched) -> None:
    data = {"column": "name", "model": "tiny-emoji", "output": "label", "what": LABEL}
    answer = await enriched.post("vision-classify", data)
    assert answer.status_code == 302
    database = enriched.datasette.get_database("photos")
    for _ in range(600):
        status, reason = tuple((await database.execute("select status, cancel_reason from _enrichment_jobs")).first())
        if status == "cancelled":
            break
        await asyncio.sleep(0.05)
    assert (status, reason) == ("cancelled", "name holds texts: expected a column of images")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("slug", "changes", "message"),
    [
        ("vision-classify", {"output": "name"}, "There is already a column name: choose another, or tick Overwrite."),
        ("vision-classify", {"output": "ID", "overwrite": "y"}, "ID is the key, or the column that is read"),
        ("vision-classify", {"output": "Image", "overwrite": "y"}, "Image is the key, or the column that is read"),
        ("vision-classify", {"output": " "}, "Give the column a name."),
        ("vision-classify", {"model": "gone"}, "Not a valid choice"),
        ("vision-classify", {"column": "gone"}, "Not a valid choice"),
        ("vision-zero-shot", {"labels": ""}, "Enter some labels, one per line."),
        ("vision-zero-shot", {"labels": '{"label": []}'}, "labels"),
    ],
)
async def test_forms_refuse(enriched: Enriched, slug: str, changes: dict[str, str], message: str) -> None:
    data = {"column": "image", "model": "tiny-emoji", "output": "label", "what": LABEL, "labels": "a\nb", **changes}
    answer = await enriched.post(slug, data)
    assert answer.status_code == 200
    assert message in answer.text
    assert '<ul class="errors">' in answer.text
    assert [row[1] for row in enriched.execute("pragma table_info(photos)")] == ["id", "name", "image"]


@pytest.mark.asyncio
async def test_a_column_that_is_there_is_overwritten_when_that_is_said(enriched: Enriched) -> None:
    data = {"column": "image", "model": "tiny-emoji", "output": "name", "what": LABEL, "overwrite": "y"}
    await enriched.run("vision-classify", data)
    names = dict(enriched.execute("select id, name from photos"))
    assert names[1] != "photo 1"
    assert names[3] == "photo 3"


@pytest.mark.asyncio
async def test_the_forms_choose_well(enriched: Enriched) -> None:
    for slug in ("vision-embed", "vision-classify", "vision-zero-shot"):
        path = f"/-/enrich/photos/photos/{slug}"
        text = (await enriched.datasette.client.get(path, cookies=enriched.cookies)).text
        assert '<option selected value="image">image</option>' in text
        assert '<option value="tiny-emoji">tiny-emoji</option>' in text
    text = (await enriched.datasette.client.get("/-/enrich/photos/photos", cookies=enriched.cookies)).text
    for name in ("Embed images or texts", "Classify images", "Label images with your own labels"):
        assert name in text


def test_what_cannot_be_read_keeps_its_embedding(tmp_path: Path, vision: Vision) -> None:
    path = tmp_path / "t.db"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, check_same_thread=False, isolation_level=None)

    with contextlib.closing(connect()) as connection:
        connection.execute("create table t (id integer primary key, image blob)")
        connection.execute("insert into t values (1, ?)", [PICTURES[0]])
        connection.execute("insert into t values (2, 'x')")
        connection.execute("insert into t values (3, ?)", [PICTURES[1]])
        for failed in ([1], [0, 1]):
            rows = [{"id": 1}, {"id": 2}]
            with contextlib.closing(Batch(connect, writer_on(connection), "t", "image", rows)) as batch:
                assert sorted(position for position, _ in batch.embed(vision, "tiny-emoji")) == failed
            count = "select count(embedding), count(error) from _vision_t"
            assert connection.execute(count).fetchone() == (1, 1), failed
            connection.execute("update t set image = 5 where id = 1")
