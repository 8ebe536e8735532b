"""index.py and codes.py: neighbours found are those that NumPy finds, whatever was added and removed."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from datasette_vision.vectors import codes
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.codes import Codes, empty, encode, joined, query_in, space_of
from datasette_vision.vectors.index import Index, alive_parts

Matrix = NDArray[np.float32]
NONE = np.empty(0, np.int64)


def clustered(count: int, dimensions: int = 64, seed: int = 0) -> Matrix:
    """Unit-length vectors in clusters, as embeddings are."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(2, count // 50), dimensions))
    noise = random.standard_normal((count, dimensions))
    return vectors.normalise(centres[random.integers(0, len(centres), count)] + 0.7 * noise)


def index_of(matrix: Matrix) -> Index:
    """An index of the rows of a matrix, by their places; their keys are a thousand times that."""
    space, labels = space_of(matrix, matrix.shape[1]), np.arange(len(matrix))
    return Index(space, encode(space, labels, 1000 * labels, matrix))


def change(index: Index, removed: Matrix, labels: Matrix, added: Matrix) -> None:
    index.change(removed, labels, 1000 * labels, added)


def nearest(matrix: Matrix, query: Matrix, k: int) -> list[int]:
    return [int(place) for place in np.argsort(-(matrix @ query), kind="stable")[:k]]


def recall(index: Index, matrix: Matrix, queries: Matrix, k: int = 10) -> float:
    """The part of the k nearest that is among the k + SPARE that the index names."""
    found = [set(index.search(query, k + codes.SPARE)[0].tolist()) for query in queries]
    return float(np.mean([len(set(nearest(matrix, q, k)) & f) / k for q, f in zip(queries, found, strict=True)]))


# Codes


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("dimensions", [1, 2, 5, 64, 257, 512, 1000])
def test_similarities(dimensions: int, scale: float) -> None:
    matrix = clustered(300, dimensions)
    query = clustered(1, dimensions, seed=1)[0]
    index = index_of(matrix * np.float32(scale))
    labels, similarities = index.search(query, 300)
    exact = (matrix @ query)[labels]
    assert sorted(labels.tolist()) == list(range(300))
    assert np.abs(similarities - exact).max() < 0.025
    assert (np.diff(similarities) <= 0).all()


def test_one_large_number_among_small_ones() -> None:
    """As CLIP has them: the rotation spreads it over all."""
    matrix = clustered(1000, 512)
    matrix[:, 7] = np.random.default_rng(0).normal(0, 1, 1000)
    matrix = vectors.normalise(matrix)
    labels, similarities = index_of(matrix).search(matrix[3], 1000)
    assert np.abs(similarities - (matrix @ matrix[3])[labels]).max() < 0.025


def test_what_all_have_in_common_costs_no_precision() -> None:
    matrix = vectors.normalise(clustered(1000, 512) + 10 * clustered(1, 512, seed=3))
    labels, similarities = index_of(matrix).search(matrix[3], 1000)
    assert np.abs(similarities - (matrix @ matrix[3])[labels]).max() < 0.002


@pytest.mark.parametrize("dimensions", [1, 8, 256, 257, 512, 768])
def test_a_rotation_keeps_lengths_and_angles(dimensions: int) -> None:
    matrix = clustered(20, dimensions)
    rotated = space_of(matrix, dimensions).rotate(matrix)
    assert rotated.shape[1] % 8 == 0
    assert rotated.shape[1] >= dimensions
    np.testing.assert_allclose(rotated @ rotated.T, matrix @ matrix.T, atol=1e-5)


def test_embeddings_of_one_number() -> None:
    """The rotation spreads that over all, too."""
    matrix = np.eye(512, dtype=np.float32)
    query = vectors.normalise(matrix[3] + matrix[40] + 0.5 * matrix[41])
    labels, similarities = index_of(matrix).search(query, 512)
    assert np.abs(similarities - (matrix @ query)[labels]).max() < 0.03


def test_what_has_no_direction_is_left_out() -> None:
    matrix = clustered(6)
    matrix[1] = 0
    matrix[2, 5] = np.nan
    matrix[4, 5] = np.inf
    index = index_of(matrix)
    assert index.view.base.labels.tolist() == [0, 3, 5]
    assert index.view.base.keys.tolist() == [0, 3000, 5000]
    assert index.search(matrix[0], 10)[0].tolist()[0] == 0


@pytest.mark.parametrize("query", [np.zeros(64), np.full(64, np.nan)])
def test_a_query_without_direction_finds_nothing(query: Matrix) -> None:
    assert len(index_of(clustered(10)).search(query.astype(np.float32), 3)[0]) == 0


@pytest.mark.parametrize("count", [0, 1, 5, 3000])
@pytest.mark.parametrize("k", [1, 5, 10, 700, 5000])
def test_the_k_largest(count: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "CANDIDATES", 5000)
    index = index_of(clustered(count, 16))
    labels, similarities = index.search(clustered(1, 16, seed=5)[0], k)
    assert len(labels) == len(set(labels.tolist())) == min(k, count)
    everything = index.search(clustered(1, 16, seed=5)[0], count)[1]
    np.testing.assert_array_equal(similarities, everything[: min(k, count)])


def test_many_of_the_same() -> None:
    matrix = np.repeat(clustered(2, 16), 3000, axis=0)
    labels, _ = index_of(matrix).search(matrix[0], 10)
    assert len(set(labels.tolist())) == 10
    assert all(label < 3000 for label in labels)


def test_candidates_are_nearly_all_of_the_nearest() -> None:
    matrix = clustered(40_000)
    index = index_of(matrix)
    assert recall(index, matrix, clustered(40, seed=1)) > 0.98
    labels, _ = index.search(matrix[17], 5)
    assert labels[0] == 17


def test_candidates_are_those_whose_signs_differ_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "CHUNK", 700)  # not a divisor of the number of rows
    matrix = clustered(5000)
    base = index_of(matrix).view
    query = query_in(base.space, matrix[3])
    found = base.base._candidates(query, 100, None)
    differ = np.unpackbits(base.base.signs ^ query.signs, axis=1).sum(axis=1)
    assert set(found.tolist()) == set(np.flatnonzero(differ <= np.sort(differ)[99]).tolist())
    odd = np.arange(5000) % 2 > 0
    found = base.base._candidates(query, 100, odd)
    assert set(found.tolist()) == set(np.flatnonzero(odd & (differ <= np.sort(differ[odd])[99])).tolist())


@pytest.mark.parametrize("passing", [1, 10, 1999, 2000, 2001, 3000, 6000])
def test_a_search_among_some(passing: int) -> None:
    matrix = clustered(6000, 512)
    index = index_of(matrix)
    chosen = np.random.default_rng(0).permutation(6000)[:passing]
    allowed = np.isin(np.arange(6000), chosen)
    for query in (matrix[0], -matrix[0], matrix[chosen[0]]):
        labels, _ = index.view.search(query, 42, lambda rows: allowed[rows.keys // 1000])
        assert len(labels) == min(42, passing)
        assert set(labels.tolist()) <= set(chosen.tolist())
        expected = chosen[nearest(matrix[chosen], query, 10)]
        assert len(set(expected.tolist()) - set(labels.tolist())) <= (passing > 2000)


def test_nearly_all_gone() -> None:
    matrix = clustered(6000)
    index = index_of(matrix)
    best = nearest(matrix, matrix[0], 5900)
    index.change(np.array(best), NONE, NONE, np.empty((0, 64), np.float32))
    labels, _ = index.search(matrix[0], 10)
    assert len(labels) == 10
    assert not set(labels.tolist()) & set(best)


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
            assert similarity == pytest.approx(float(expected[label] @ query), abs=0.025)


def test_any_sequence_of_changes() -> None:
    random = np.random.default_rng(3)
    matrix = clustered(800)
    index = index_of(matrix)
    expected = dict(enumerate(matrix))
    for step in range(12):
        removed = random.integers(0, 2500, 40)
        labels = random.choice(2500, 60, replace=False) - 200  # some new, some there, some below zero
        added = clustered(60, seed=10 + step)
        change(index, removed, labels, added)
        for label in removed:
            expected.pop(int(label), None)
        expected |= dict(zip(labels.tolist(), added, strict=True))
        check(index, expected, np.array([added[0], matrix[step]]))
        if step in (4, 8):
            before = index.view
            change(index, np.array([int(labels[0])]), np.array([5000 + step]), added[:1])
            expected.pop(int(labels[0]))
            expected[5000 + step] = added[0]
            base = joined(alive_parts(before))
            assert len(base) == len(before)
            index.replace_base(before, base)
            check(index, expected, np.array([added[0], matrix[step]]))


def test_a_base_is_replaced_while_it_changes() -> None:
    matrix = clustered(1000)
    index = index_of(matrix)
    change(index, np.arange(100), np.array([2000, 2001]), matrix[:2])
    before = index.view
    made = joined(alive_parts(before))
    change(index, np.array([500, 2000]), np.array([501, 2002]), matrix[5:7])
    index.replace_base(before, made)
    expected = {label: vector for label, vector in enumerate(matrix) if label >= 100}
    expected |= {2001: matrix[1], 501: matrix[5], 2002: matrix[6]}
    del expected[500]
    check(index, expected, matrix[500:520])


def test_a_view_stays_as_it_was() -> None:
    matrix = clustered(300)
    index = index_of(np.empty((0, 64), np.float32))
    change(index, np.empty(0, np.int64), np.arange(200), matrix[:200])
    view = index.view
    before = view.search(matrix[0], 300)
    for start in range(200, 300, 10):
        change(index, np.arange(start - 200, start - 190), np.arange(start, start + 10), matrix[start : start + 10])
    after = view.search(matrix[0], 300)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    assert sorted(index.search(matrix[0], 300)[0].tolist()) == list(range(100, 300))


def test_searching_on_threads_while_it_changes() -> None:
    matrix = clustered(2000)
    index = index_of(matrix[:1000])
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
        change(index, labels - 500, labels, matrix[start : start + 20])
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(index) == 1000


def test_codes_in_memory_of_another_kind() -> None:
    made = empty(space_of(clustered(5), 64), 3, allocate=np.zeros)
    assert isinstance(made, Codes)
    assert not made.labels.any()
