"""index.py and what it is made of: neighbours found are those that NumPy finds, whatever was added and removed."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from datasette_vision.util.progress import Progress
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors import hnsw
from datasette_vision.vectors.eight_bit import Flat, coded, empty, joined
from datasette_vision.vectors.index import Index, alive_parts

Matrix = NDArray[np.float32]


def clustered(count: int, dimensions: int = 64, seed: int = 0) -> Matrix:
    """Unit-length vectors in clusters, as embeddings are."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(2, count // 50), dimensions))
    noise = random.standard_normal((count, dimensions))
    return vectors.normalise(centres[random.integers(0, len(centres), count)] + 0.7 * noise)


def flat(matrix: Matrix, first: int = 0) -> Flat:
    codes, usable = coded(matrix)
    return Flat(np.arange(first, first + len(matrix), dtype=np.int64)[usable], codes)


def graph(matrix: Matrix) -> hnsw.HnswGraph:
    made = hnsw.build_graph([flat(matrix)], matrix.shape[1])
    assert made is not None
    return made


def nearest(matrix: Matrix, query: Matrix, k: int) -> list[int]:
    return [int(place) for place in np.argsort(-(matrix @ query), kind="stable")[:k]]


def recall(index: Index, matrix: Matrix, queries: Matrix, k: int = 10) -> float:
    """The part of the k nearest that is among the 2 k + 10 that the index names."""
    found = [set(index.search(query, 2 * k + 10)[0].tolist()) for query in queries]
    return float(np.mean([len(set(nearest(matrix, q, k)) & f) / k for q, f in zip(queries, found, strict=True)]))


# 8 bits


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("dimensions", [1, 2, 5, 64, 512, 1000])
def test_similarities_in_8_bits(dimensions: int, scale: float) -> None:
    matrix = clustered(300, dimensions)
    query = clustered(1, dimensions, seed=1)[0]
    with np.errstate(over="ignore"):
        index = Index(flat(matrix * np.float32(scale)), dimensions)
    labels, similarities = index.search(query, 300)
    exact = (matrix @ query)[labels]
    assert sorted(labels.tolist()) == list(range(300))
    assert np.abs(similarities - exact).max() < 0.01
    assert (np.diff(similarities) <= 0).all()


def test_one_large_number_among_small_ones() -> None:
    """As CLIP has them: the others are left with few levels, and yet the error stays small."""
    matrix = clustered(1000, 512)
    matrix[:, 7] = 1.0
    matrix = vectors.normalise(matrix)
    labels, similarities = Index(flat(matrix), 512).search(matrix[3], 1000)
    assert np.abs(similarities - (matrix @ matrix[3])[labels]).max() < 0.02


def test_what_has_no_direction_is_left_out() -> None:
    matrix = clustered(6)
    matrix[1] = 0
    matrix[2, 5] = np.nan
    matrix[4, 5] = np.inf
    codes, usable = coded(matrix)
    assert usable.tolist() == [True, False, False, True, False, True]
    assert codes.codes.shape == (3, 64)
    assert Index(flat(matrix), 64).search(matrix[0], 10)[0].tolist()[0] == 0


@pytest.mark.parametrize("query", [np.zeros(64), np.full(64, np.nan)])
def test_a_query_without_direction_finds_nothing(query: Matrix) -> None:
    index = Index(flat(clustered(10)), 64)
    assert len(index.search(query.astype(np.float32), 3)[0]) == 0


@pytest.mark.parametrize("count", [0, 1, 5, 3000])
@pytest.mark.parametrize("k", [1, 5, 10, 700, 5000])
def test_the_k_largest(count: int, k: int) -> None:
    matrix = clustered(count, 16)
    index = Index(flat(matrix), 16)
    labels, similarities = index.search(clustered(1, 16, seed=5)[0], k)
    assert len(labels) == len(set(labels.tolist())) == min(k, count)
    everything = index.search(clustered(1, 16, seed=5)[0], count)[1]
    np.testing.assert_array_equal(similarities, everything[: min(k, count)])


def test_many_of_the_same() -> None:
    matrix = np.repeat(clustered(2, 16), 3000, axis=0)
    labels, _ = Index(flat(matrix), 16).search(matrix[0], 10)
    assert len(set(labels.tolist())) == 10
    assert all(label < 3000 for label in labels)


# HNSW


def test_a_graph_finds_nearly_all() -> None:
    matrix = clustered(5000)
    index = Index(graph(matrix), 64)
    assert recall(index, matrix, clustered(50, seed=1)) > 0.98
    labels, similarities = index.search(matrix[17], 5)
    assert labels[0] == 17
    assert np.abs(similarities - (matrix @ matrix[17])[labels]).max() < 0.01


def test_a_graph_gives_all_when_asked() -> None:
    matrix = clustered(500)
    labels, _ = Index(graph(matrix), 64).search(matrix[0], 1000)
    assert sorted(labels.tolist()) == list(range(500))


def test_a_graph_looks_further_when_most_are_gone() -> None:
    matrix = clustered(2000)
    index = Index(graph(matrix), 64)
    best = nearest(matrix, matrix[0], 500)
    index.change(np.array(best), np.empty(0, np.int64), np.empty((0, 64), np.float32))
    labels, _ = index.search(matrix[0], 10)
    assert len(labels) == 10
    assert not set(labels.tolist()) & set(best)


def test_every_vector_of_a_graph_is_found_again() -> None:
    matrix = clustered(6000)
    made = graph(matrix)
    found = made.graph.search(flat(matrix).vectors.codes, 10, threads=1).keys
    assert (found == np.arange(len(matrix))[:, None]).any(axis=1).all()


def test_building_a_graph_can_be_stopped() -> None:
    seen: list[Progress] = []
    stopped = hnsw.build_graph(
        [flat(clustered(500))], 64, on_progress=seen.append, stop=lambda: len(seen) == 2, chunk=100
    )
    assert stopped is None
    assert seen == [Progress("building the graph", 100, 500), Progress("building the graph", 200, 500)]


def test_a_graph_that_is_added_to_leaves_the_first_as_it_is() -> None:
    matrix = clustered(3000)
    first = graph(matrix[:2000])
    second = hnsw.build_graph([flat(matrix[2000:], 2000)], 64, onto=first)
    assert second is not None
    assert (len(first), len(second)) == (2000, 3000)
    assert recall(Index(second, 64), matrix, matrix[::10]) > 0.98
    assert max(Index(first, 64).search(matrix[2500], 500)[0]) < 2000


def test_a_graph_looks_at_as_many_as_it_takes() -> None:
    matrix = vectors.normalise(np.random.default_rng(0).standard_normal((6000, 64)))  # the hardest: no clusters
    made = graph(matrix)
    measured = hnsw.tune(made, flat(matrix), spare=0, expansions=(1, 2000))
    assert made.expansion == 2000
    assert measured > 0.98
    assert hnsw.tune(made, flat(matrix), spare=0, expansions=(1,)) < measured
    assert hnsw.tune(made, empty(64)) == 1.0


# Changes


def check(index: Index, expected: dict[int, Matrix], queries: Matrix) -> None:
    """The index holds these vectors under these labels, and no others."""
    assert len(index) == len(expected)
    labels = np.array(sorted(expected))
    matrix = np.array([expected[int(label)] for label in labels])
    for query in queries:
        found, similarities = index.search(query, 40)  # it rounds
        wanted = labels[nearest(matrix, query, 5)]
        assert set(wanted.tolist()) <= set(found.tolist())
        for label, similarity in zip(found.tolist(), similarities.tolist(), strict=True):
            assert similarity == pytest.approx(float(expected[label] @ query), abs=0.01)


@pytest.mark.parametrize("kind", ["flat", "graph"])
def test_any_sequence_of_changes(kind: str) -> None:
    random = np.random.default_rng(3)
    matrix = clustered(800)
    index = Index(flat(matrix) if kind == "flat" else graph(matrix), 64)
    expected = dict(enumerate(matrix))
    for step in range(12):
        removed = random.integers(0, 2500, 40)
        labels = random.choice(2500, 60, replace=False) - 200  # some new, some there, some below zero
        added = clustered(60, seed=10 + step)
        index.change(removed, labels, added)
        for label in removed:
            expected.pop(int(label), None)
        expected |= dict(zip(labels.tolist(), added, strict=True))
        check(index, expected, np.array([added[0], matrix[step]]))
        if step in (4, 8):
            before = index.view
            parts = [part.labels for part in (alive_parts(before) if kind == "flat" else [])]
            index.change(np.array([int(labels[0])]), np.array([5000 + step]), added[:1])
            expected.pop(int(labels[0]))
            expected[5000 + step] = added[0]
            if kind == "flat":
                index.replace_base(before, joined(alive_parts(before)))
                assert len(index.view.base) == sum(map(len, parts))
            else:
                assert isinstance(before.base, hnsw.HnswGraph)
                alive = before.tail if before.tail_alive is None else before.tail.take(before.tail_alive)
                grown = hnsw.build_graph([alive], 64, onto=before.base)
                assert grown is not None
                index.replace_base(before, grown, holds_dead=True)
            check(index, expected, np.array([added[0], matrix[step]]))


def test_a_flat_becomes_a_graph_while_it_changes() -> None:
    matrix = clustered(1000)
    index = Index(flat(matrix), 64)
    index.change(np.arange(100), np.array([2000, 2001]), matrix[:2])
    before = index.view
    made = hnsw.build_graph(alive_parts(before), 64)
    assert made is not None
    index.change(np.array([500, 2000]), np.array([501, 2002]), matrix[5:7])
    index.replace_base(before, made)
    expected = {label: vector for label, vector in enumerate(matrix) if label >= 100}
    expected |= {2001: matrix[1], 501: matrix[5], 2002: matrix[6]}
    del expected[500]
    check(index, expected, matrix[500:520])


def test_a_view_stays_as_it_was() -> None:
    matrix = clustered(300)
    index = Index(empty(64), 64)
    index.change(np.empty(0, np.int64), np.arange(200), matrix[:200])
    view = index.view
    before = view.search(matrix[0], 300)
    for start in range(200, 300, 10):
        index.change(np.arange(start - 200, start - 190), np.arange(start, start + 10), matrix[start : start + 10])
    after = view.search(matrix[0], 300)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    assert sorted(index.search(matrix[0], 300)[0].tolist()) == list(range(100, 300))


@pytest.mark.parametrize("kind", ["flat", "graph"])
def test_searching_on_threads_while_it_changes(kind: str) -> None:
    matrix = clustered(2000)
    index = Index(flat(matrix[:1000]) if kind == "flat" else graph(matrix[:1000]), 64)
    wrong: list[object] = []
    done = threading.Event()

    def search() -> None:
        position = 0
        while not done.is_set():
            position = (position + 1) % 500  # these stay
            try:
                labels, _ = index.search(matrix[position], 5)
                if position not in labels.tolist():
                    wrong.append(position)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for start in range(1000, 2000, 20):
        labels = np.arange(start, start + 20)
        index.change(labels - 500, labels, matrix[start : start + 20])
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(index) == 1000
