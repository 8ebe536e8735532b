"""Turns the rows that an index names into hits: existing rows, with the similarity of their stored embeddings.

An index rounds, may be of another moment than the connection's snapshot, and does not know the source table. So its
rows are looked up in the side table by rowid, and in the source by key.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.retrieval.row_filter import RowFilter
from datasette_vision.tables.embedding_reader import Embeddings
from datasette_vision.util.sql_names import quote
from datasette_vision.vectors.codes import SPARE, RowLabels
from datasette_vision.vectors.embedding import FLOAT32, Vector
from datasette_vision.vectors.index import View

# The maximum error of an index's similarity.
SIMILARITY_TOLERANCE = 0.05
# Among the rows of a filter, which may all be about as far from the query: how many more than wanted are looked at.
FILTERED_SPARE = 500
# Where the rounding leaves it in doubt which are the nearest, so many are looked at: some 10 ms.
MOST_DOUBTFUL = 2048
# And among the rows of a filter, which go against the query where it takes that many; then all of them are compared.
MOST_DOUBTFUL_FILTERED = 2000
# A row is in doubt within so many standard deviations of the errors that are found.
DEVIATIONS = 4.0


@dataclass(frozen=True)
class Hit:
    """A row that was found. `rowid` is None if it has none; `key` holds the columns that identify it."""

    rowid: int | None
    key: dict[str, Any]
    similarity: float

    def to_json(self) -> dict[str, Any]:
        """Return the hit as vision_search() writes it. A key that is the rowid is left out."""
        result: dict[str, Any] = {} if self.rowid is None else {"rowid": self.rowid}
        if self.rowid is None or list(self.key.values()) != [self.rowid]:
            result["key"] = {
                name: value.hex().upper() if isinstance(value, bytes) else value for name, value in self.key.items()
            }
        return {**result, "similarity": self.similarity}


class IndexMismatch(Exception):
    """An index has other similarities than the table: it belongs to something else, or is damaged."""


def from_index(
    connection: sqlite3.Connection,
    wanted: Embeddings,
    query: Vector,
    k: int,
    view: View,
    others: list[int],
    only: RowFilter | None = None,
) -> list[Hit]:
    """Return the k best hits for a unit-length query (d,), from an index and some other rows.

    `others` are rows of the side table in which the index may differ from it, `only` those that may be found at all.
    Raises IndexMismatch.
    """
    different = np.array(others, dtype=np.int64)
    if only is not None and others:
        labels, keys, _ = wanted.read_rows(connection, others, len(query))
        others = labels[only.allows(labels, keys)].tolist()
    changed = _rows(connection, wanted, query, others)
    asked = k + max(SPARE if only is None else FILTERED_SPARE, k // 4)
    while True:
        labels, approximate = view.search(query, asked + len(different), None if only is None else only.allows_codes)
        exhausted = len(labels) < asked + len(different)
        same = ~np.isin(labels, different)
        known = dict(zip(labels[same].tolist(), approximate[same].tolist(), strict=True))
        found = _rows(connection, wanted, query, list(known))
        if any(not abs(hit.similarity - known[label]) <= SIMILARITY_TOLERANCE for label, hit in found.items()):
            raise IndexMismatch
        hits = _best(found, changed, k=k)
        # Where the last that the index names may be nearer than the last of these, others that it did not may be too.
        margin, most = 0.0, MOST_DOUBTFUL
        if only is not None and found:
            errors = [found[label].similarity - known[label] for label in found]
            margin, most = DEVIATIONS * float(np.std(errors)), MOST_DOUBTFUL_FILTERED
        doubtful = len(hits) == k and approximate[-1:].sum() + margin > hits[-1].similarity
        if exhausted or (len(found) >= k and not doubtful):
            return hits
        if asked >= most and len(found) >= k:
            return hits if only is None else from_table(connection, wanted, query, k, only)
        asked *= 4  # so many are gone from the source, or so near to each other


def from_table(
    connection: sqlite3.Connection, wanted: Embeddings, query: Vector, k: int, only: RowFilter | None = None
) -> list[Hit]:
    """Return the k best hits for a unit-length query (d,), comparing with every embedding that the connection sees.

    `only` are those that may be found.
    """
    labels: list[RowLabels] = []
    similarities: list[NDArray[np.float64]] = []
    for batch, keys, vectors in wanted.read(connection, len(query)):
        if only is not None:
            passing = only.allows(batch, keys)
            batch, vectors = batch[passing], vectors[passing]
        labels.append(batch)
        similarities.append(_cosines(vectors, query))
    if not labels:
        return []
    everything, scores = np.concatenate(labels), np.concatenate(similarities)
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    found: dict[int, Hit] = {}
    for start in range(0, len(order), k + SPARE):
        found |= _rows(connection, wanted, query, everything[order[start : start + k + SPARE]].tolist())
        if len(found) >= k:
            break
    return _best(found, k=k)


def _rows(connection: sqlite3.Connection, wanted: Embeddings, query: Vector, labels: list[int]) -> dict[int, Hit]:
    """Return the hits with these labels whose row is in the source table."""
    if not labels:
        return {}
    source = wanted.source
    rowid = f"source.{source.rowid}" if source.rowid else "null"
    key = ", ".join(f"source.{quote(column)}" for column in source.key)
    cursor = connection.cursor()
    cursor.row_factory = None
    rows = cursor.execute(
        f"select side.{wanted.label}, side.embedding, {rowid}, {key} from json_each(?) chosen"
        f" cross join {wanted.table} side on side.{wanted.label} = chosen.value"
        f" {wanted.with_source}"
        " where side.model = ? and side.source_column = ? and typeof(side.embedding) = 'blob'"
        " and length(side.embedding) = ?",
        (json.dumps(labels), wanted.model, wanted.column, 4 * len(query)),
    ).fetchall()
    if not rows:
        return {}
    matrix = np.frombuffer(b"".join(row[1] for row in rows), dtype=FLOAT32).reshape(len(rows), len(query))
    return {
        row[0]: Hit(row[2], dict(zip(source.key, row[3:], strict=True)), similarity)
        for row, similarity in zip(rows, _cosines(matrix, query).tolist(), strict=True)
        if np.isfinite(similarity)
    }


def _cosines(vectors: NDArray[np.float32], query: Vector) -> NDArray[np.float64]:
    """Return the cosines of (n, d) and a unit-length (d,); NaN for embeddings of length zero."""
    wide = vectors.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (wide @ query.astype(np.float64)) / np.sqrt(np.einsum("ij,ij->i", wide, wide))
    return np.clip(cosines, -1, 1)


def _best(*found: dict[int, Hit], k: int) -> list[Hit]:
    hits: Iterable[tuple[int, Hit]] = [pair for some in found for pair in some.items()]
    return [hit for _, hit in sorted(hits, key=lambda pair: (-pair[1].similarity, pair[0]))[:k]]
