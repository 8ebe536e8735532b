"""engine/cache.py: what was used last stays, and no more of it than was allowed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from datasette_vision.engine.cache import ENTRY_OVERHEAD, EmbeddingCache

SIZE = 4 * 8 + ENTRY_OVERHEAD


def vector(value: float, size: int = 8) -> np.ndarray:
    return np.full(size, value, dtype=np.float32)


def test_what_was_put_comes_back() -> None:
    cache = EmbeddingCache(10 * SIZE)
    assert cache.get(b"a") is None
    cache.put(b"a", vector(1))
    cache.put(b"b", vector(2))
    assert cache.get(b"a").tolist() == [1] * 8
    assert cache.get(b"b").tolist() == [2] * 8
    assert (cache.hits, cache.misses, cache.bytes) == (2, 1, 2 * SIZE)


def test_those_unused_longest_make_room() -> None:
    cache = EmbeddingCache(3 * SIZE)
    for key in (b"a", b"b", b"c"):
        cache.put(key, vector(1))
    assert cache.get(b"a") is not None
    cache.put(b"d", vector(1))
    assert [key for key in (b"a", b"b", b"c", b"d") if cache.get(key) is not None] == [b"a", b"c", b"d"]
    assert cache.bytes == 3 * SIZE


def test_the_limit_is_exact() -> None:
    for limit, expected in ((2 * SIZE, 2), (2 * SIZE - 1, 1), (SIZE, 1), (SIZE - 1, 0), (0, 0)):
        cache = EmbeddingCache(limit)
        for key in (b"a", b"b", b"c"):
            cache.put(key, vector(1))
        assert cache.bytes == expected * SIZE


def test_putting_again_replaces_and_counts_once() -> None:
    cache = EmbeddingCache(10_000)
    cache.put(b"a", vector(1, 100))
    cache.put(b"a", vector(2))
    assert cache.get(b"a").tolist() == [2] * 8
    assert cache.bytes == SIZE


def test_putting_again_counts_as_use() -> None:
    cache = EmbeddingCache(2 * SIZE)
    for key in (b"a", b"b", b"a", b"c"):
        cache.put(key, vector(1))
    assert cache.get(b"a") is not None
    assert cache.get(b"b") is None


def test_one_that_does_not_fit_is_not_kept() -> None:
    cache = EmbeddingCache(SIZE)
    cache.put(b"large", vector(1, 1000))
    assert cache.get(b"large") is None
    assert cache.bytes == 0
    cache.put(b"small", vector(1))
    assert cache.get(b"small") is not None


def test_a_row_does_not_keep_its_batch_alive() -> None:
    cache = EmbeddingCache(10_000)
    batch = np.zeros((32, 8), dtype=np.float32)
    cache.put(b"a", batch[3])
    kept = cache.get(b"a")
    assert kept.base is None
    batch[3] = 7
    assert kept.tolist() == [0] * 8


def test_nobody_can_change_what_is_kept() -> None:
    cache = EmbeddingCache(10_000)
    given = vector(1)
    cache.put(b"a", given)
    with pytest.raises(ValueError, match="read-only"):
        cache.get(b"a")[0] = 5
    given[0] = 5
    assert cache.get(b"a").tolist() == [1] * 8


def test_many_threads() -> None:
    cache = EmbeddingCache(20 * SIZE)
    together = threading.Barrier(8)

    def work(thread: int) -> None:
        together.wait(10)
        for step in range(500):
            value = (thread + step) % 50
            found = cache.get(bytes([value]))
            assert found is None or found[0] == value
            cache.put(bytes([value]), vector(value))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache.bytes == 20 * SIZE
    assert cache.hits + cache.misses == 8 * 500
