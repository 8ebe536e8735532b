"""Measures how much of an exact search's results an index finds, for `datasette vision index --check`."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from datasette_vision.errors import InvalidVector
from datasette_vision.retrieval.hits import from_index
from datasette_vision.tables.embedding_reader import Embeddings
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.index import View

RECALL_QUERIES = 100
RECALL_AT = 10


@dataclass(frozen=True)
class Recall:
    """The mean share of the k nearest that were found, the lowest of one query, and the median time of a search."""

    queries: int
    mean: float
    least: float
    milliseconds: float


def measure_recall(connection: sqlite3.Connection, wanted: Embeddings, view: View, dimensions: int) -> Recall | None:
    """Search for some rows of a table, and for points between two of them; None if the table is empty.

    Each search uses the index, and is compared with all embeddings in one pass over the table.
    """
    queries = _queries(connection, wanted, view, dimensions)
    if not len(queries):
        return None
    bounds, exact = _exact(connection, wanted, queries)
    found, seconds = [], []
    for query in queries:
        began = time.perf_counter()
        hits = from_index(connection, wanted, query, RECALL_AT, view, [])
        seconds.append(time.perf_counter() - began)
        found.append([hit.similarity for hit in hits])
    parts = [
        # By similarity, not by name: of two identical rows either is right.
        min(1.0, sum(similarity >= bound - 1e-6 for similarity in similarities) / count)
        for similarities, bound, count in zip(found, bounds, exact, strict=True)
    ]
    return Recall(len(queries), sum(parts) / len(parts), min(parts), 1000 * median(seconds))


def _queries(connection: sqlite3.Connection, wanted: Embeddings, view: View, dimensions: int) -> NDArray[np.float32]:
    labels = np.concatenate([view.base.labels, view.tail.labels])
    if not len(labels):
        return np.empty((0, dimensions), np.float32)
    random = np.random.default_rng(len(labels))
    rows = wanted.read_rows(connection, random.choice(labels, 2 * RECALL_QUERIES).tolist(), dimensions).vectors
    made = []
    for number, (one, other) in enumerate(zip(rows, rows[::-1], strict=True)):
        weight = 1.0 if number % 2 else 0.6
        try:
            made.append(vectors.normalise(weight * vectors.normalise(one) + (1 - weight) * vectors.normalise(other)))
        except InvalidVector:
            continue  # of length zero, or opposites
    return np.array(made[:RECALL_QUERIES], np.float32).reshape(-1, dimensions)


def _exact(
    connection: sqlite3.Connection, wanted: Embeddings, queries: NDArray[np.float32]
) -> tuple[list[float], list[int]]:
    """Return for each query the similarity of the k-th nearest row that is in the source, and how many there are."""
    best: list[list[float]] = [[] for _ in queries]
    rows_of_source = connection.execute(
        f"select side.{wanted.label} from {wanted.table} side {wanted.with_source}"
        " where side.model = ? and side.source_column = ?",
        (wanted.model, wanted.column),
    )
    there = np.array([row[0] for row in rows_of_source], np.int64)
    for labels, _, rows in wanted.read(connection, queries.shape[1]):
        lengths = np.linalg.norm(rows, axis=1)
        usable = np.isfinite(lengths) & (lengths > 0) & np.isin(labels, there)
        similarities = queries @ (rows[usable] / lengths[usable, None]).T
        for own, new in zip(best, similarities, strict=True):
            own[:] = sorted([*own, *np.sort(new)[-RECALL_AT:].tolist()], reverse=True)[:RECALL_AT]
    return [own[-1] if own else 1.0 for own in best], [max(1, len(own)) for own in best]
