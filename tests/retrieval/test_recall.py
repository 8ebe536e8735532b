"""retrieval/recall.py: how much of an exact search an index finds."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

import numpy as np
import pytest

from datasette_vision.retrieval.index_entry import IndexEntry
from datasette_vision.retrieval.recall import RECALL_AT, RECALL_QUERIES, measure_recall
from datasette_vision.tables.embedding_reader import Embeddings
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.tables.side_tables import find_source
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.embedding import Vector
from datasette_vision.vectors.index import Index, View

SIDE = SideTable("photos", ("id",))


def table(matrix: np.ndarray) -> tuple[sqlite3.Connection, Embeddings, View]:
    """A table of these embeddings, and its index."""
    connection = sqlite3.connect(":memory:")
    connection.execute("create table photos (id integer primary key)")
    connection.executemany("insert into photos values (?)", ((key,) for key in range(len(matrix))))
    SIDE.create(connection)
    rows = (SideTableRow((key,), "image", "m", "h", np.float32(row).tobytes()) for key, row in enumerate(matrix))
    SIDE.write(connection, rows)
    source = find_source(connection, "photos")
    assert source is not None
    wanted = Embeddings.of(connection, source, "m", "image")
    entry = IndexEntry()
    entry.read(connection, wanted, matrix.shape[1])
    assert entry.index is not None
    return connection, wanted, entry.index.view


def directions(count: int, dimensions: int = 8) -> np.ndarray:
    return vectors.normalise(np.random.default_rng(1).standard_normal((count, dimensions)))


def without(view: View, count: int, dimensions: int = 8) -> View:
    """The same index, and some of its rows are missing."""
    index, none = Index(view.space, view.base), np.empty(0, np.int64)
    index.change(view.base.labels[:count], none, none, np.empty((0, dimensions), np.float32))
    return index.view


def test_an_index_that_finds_everything() -> None:
    connection, wanted, view = table(directions(300))
    measured = measure_recall(connection, wanted, view, 8)
    assert measured is not None
    assert (measured.queries, measured.mean, measured.least) == (RECALL_QUERIES, 1.0, 1.0)
    assert measured.milliseconds > 0


@pytest.mark.parametrize("length", [0.2, 5.0])
def test_the_length_of_embeddings_does_not_matter(length: float) -> None:
    connection, wanted, view = table(directions(300) * length)
    measured = measure_recall(connection, wanted, view, 8)
    assert measured is not None
    assert measured.least == 1.0


def test_an_index_that_has_half_of_a_small_table() -> None:
    """All twelve rows compete for ten places: what is missing is missed."""
    connection, wanted, view = table(directions(12))
    measured = measure_recall(connection, wanted, without(view, 7), 8)
    assert measured is not None
    assert RECALL_AT == 10
    assert 0.3 <= measured.least <= measured.mean <= 0.5


def test_rows_that_the_source_has_no_more_are_not_missed() -> None:
    connection, wanted, view = table(directions(40))
    connection.execute("delete from photos where id < 20")
    measured = measure_recall(connection, wanted, without(view, 20), 8)
    assert measured is not None
    assert measured.least == 1.0


def test_an_empty_table() -> None:
    connection, wanted, view = table(np.empty((0, 8)))
    assert measure_recall(connection, wanted, view, 8) is None


@dataclass
class Recording:
    """A view that keeps what is searched for."""

    view: View
    queries: list[Vector] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.view, name)

    def search(self, query: Vector, k: int, allowed: None = None) -> tuple[np.ndarray, np.ndarray]:
        self.queries.append(query)
        return self.view.search(query, k, allowed)


def test_what_is_searched_for_are_rows_and_points_between_two() -> None:
    connection, wanted, view = table(np.array([[2.0, 0.0], [0.0, 3.0]]))
    recording = Recording(view)
    measure_recall(connection, wanted, recording, 2)  # type: ignore[arg-type]
    assert len(recording.queries) == RECALL_QUERIES
    assert all(float(np.linalg.norm(query)) == pytest.approx(1) for query in recording.queries)
    assert all(query.min() >= 0 for query in recording.queries)
    rows = sum(query.max() == 1 for query in recording.queries)
    assert RECALL_QUERIES / 2 <= rows < RECALL_QUERIES
