"""Embeddings in an HNSW graph, by usearch: compares a few thousand with a query, and finds nearly all neighbours.

For more vectors than can all be compared in a few milliseconds. A graph takes minutes to build, and cannot remove
vectors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from datasette_vision.util.progress import OnProgress, Progress, no_progress
from datasette_vision.vectors.eight_bit import SPARE, Coded, Flat, Mask, Positions, RowLabels, Similarities, coded

# HNSW parameters: neighbours of a vector in the graph, and candidates held when one is added. The Malkov and Yashunin
# paper (https://arxiv.org/abs/1603.09320) recommends 12 to 48 and 100 to 200. Searching more candidates makes up for
# fewer here.
CONNECTIVITY = 16
EXPANSION_ADD = 96
# The first vectors are added one by one. Two that are added at the same time do not see each other, which makes a few
# unreachable: in a small graph one or two in a thousand, in larger ones one in ten thousand, which is well below the
# loss of recall of a graph (benchmarks/lost_in_graph.py).
ONE_BY_ONE = 8192
# Candidates held while searching: the lowest of these that finds nearly all neighbours.
EXPANSIONS = (256, 384, 512, 768, 1024, 1536, 2048)
RECALL = 0.96


class HnswGraph:
    """Vectors in an HNSW graph of usearch, whose keys are positions in `labels`. Thread-safe to search."""

    def __init__(self, labels: RowLabels, graph: Any, expansion: int, memory: object = None) -> None:
        self.labels = labels
        self._memory = memory  # of a mapped graph: usearch itself does not hold it
        self.graph = graph
        self.expand(expansion)
        # usearch supports as many searches at a time as there are cores, and fails beyond.
        self._one_at_a_time = threading.Lock()

    def __len__(self) -> int:
        return len(self.labels)

    def expand(self, expansion: int) -> None:
        """Set the number of candidates in a search: more find more, and take longer."""
        self.expansion = self.graph.expansion_search = expansion

    def search(self, query: Coded, k: int, alive: Mask | None) -> tuple[Positions, Similarities]:
        """Return (positions, similarities) of about the k nearest to query (1, d) that are alive, best first."""
        wanted = min(k, len(self.labels))
        while True:
            with self._one_at_a_time:
                # For so many neighbours, comparing all is faster than walking the graph.
                found = self.graph.search(query.codes[0], wanted, exact=wanted * 20 > len(self.labels))
            positions = found.keys.astype(np.intp)
            similarities = (1 - found.distances).astype(np.float32)
            if alive is not None:
                kept = alive[positions]
                positions, similarities = positions[kept], similarities[kept]
            if len(positions) >= k or wanted == len(self.labels):
                return positions[:k], similarities[:k]
            wanted = min(wanted * 4, len(self.labels))


def new_graph(dimensions: int) -> Any:
    """Return an empty graph for codes with this many dimensions."""
    from usearch.index import Index  # heavy, and only for large tables

    return Index(
        ndim=dimensions,
        metric="cos",
        dtype="i8",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        enable_key_lookups=False,
    )


def build_graph(
    parts: Sequence[Flat],
    dimensions: int,
    *,
    onto: HnswGraph | None = None,
    threads: int = 0,
    on_progress: OnProgress[Progress] = no_progress,
    stop: Callable[[], bool] = lambda: False,
    chunk: int = 2048,
) -> HnswGraph | None:
    """Build a graph of the vectors of some Flats, or of an existing graph and these, which stays unchanged.

    Calls `on_progress` after each chunk. Returns None if `stop()` is true.
    """
    graph = new_graph(dimensions) if onto is None else onto.graph.copy()
    labels = [np.empty(0, np.int64)] if onto is None else [onto.labels]
    done = len(labels[0])
    total = done + sum(map(len, parts))
    for part in parts:
        labels.append(part.labels)
        for start in range(0, len(part), chunk):
            codes = part.vectors.codes[start : start + chunk]
            keys = np.arange(done, done + len(codes), dtype=np.uint64)
            graph.add(keys, codes, threads=1 if done < ONE_BY_ONE else threads)
            done += len(codes)
            on_progress(Progress("building the graph", done, total))
            if stop():
                return None
    return HnswGraph(np.concatenate(labels), graph, EXPANSIONS[0] if onto is None else onto.expansion)


def tune(
    graph: HnswGraph,
    vectors: Flat,
    k: int = 10,
    spare: int = SPARE,
    sample: int = 64,
    expansions: Sequence[int] = EXPANSIONS,
) -> float:
    """Have a graph of these vectors look at as many candidates as it takes to find nearly all, and return the recall.

    Measured for some of the vectors, and for points between two of them: the share of the k nearest that are among the
    k + spare results.
    """
    if not len(vectors):
        return 1.0
    random = np.random.default_rng(len(vectors))
    chosen = random.integers(0, len(vectors), (sample, 2))
    # Half of the queries are vectors of the graph. The others lie off them, like real queries. For points half-way
    # between two clusters, which nobody searches for, twice as many candidates would not be enough.
    weights = np.where(np.arange(sample) % 2, 0.8, 1.0)[:, None]
    codes = vectors.vectors.codes
    queries, _ = coded((weights * codes[chosen[:, 0]] + (1 - weights) * codes[chosen[:, 1]]).astype(np.float32))
    each = [Coded(queries.codes[row : row + 1], queries.scales[row : row + 1]) for row in range(len(queries.codes))]
    expected = [set(vectors.search(query, k, None)[0].tolist()) for query in each]
    recall = 0.0
    for expansion in expansions:
        graph.expand(expansion)
        found = [set(graph.search(query, k + spare, None)[0].tolist()) for query in each]
        recall = sum(len(e & f) / len(e) for e, f in zip(expected, found, strict=True)) / len(each)
        if recall >= RECALL:
            break
    return recall
