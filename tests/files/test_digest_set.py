"""files/digest_set.py: a compact set of texts."""

from __future__ import annotations

import pickle

import pytest

from datasette_vision.files import digest_set
from datasette_vision.files.digest_set import DigestSet


def test_what_was_added_is_there() -> None:
    texts = [f"photos/{number}.jpg" for number in range(1000)]
    found = DigestSet(texts)
    assert len(found) == 1000
    assert all(text in found for text in texts)
    assert found.contains([*texts, "other"]).tolist() == [True] * 1000 + [False]


def test_an_empty_set() -> None:
    assert DigestSet().contains(["a"]).tolist() == [False]
    assert DigestSet(["a"]).contains([]).tolist() == []
    assert "a" not in DigestSet()


def test_add_says_what_is_new() -> None:
    found = DigestSet(["a"])
    assert [found.add(text) for text in ("a", "b", "b", "a")] == [False, True, False, False]


def test_many_merges() -> None:
    """The same answers when most of the set has long been sorted away."""
    found = DigestSet(fewest_pending=3)
    for number in range(500):
        assert found.add(str(number % 250)) == (number < 250)
    assert len(found) == 250
    assert found.contains([str(number) for number in range(300)]).tolist() == [True] * 250 + [False] * 50


def test_digests_that_end_with_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy cuts zeros off the end of bytes: they must not make two texts one, nor hide one."""
    monkeypatch.setattr(digest_set, "_key", lambda text: text.encode().ljust(16, b"\0"))
    found = DigestSet(["a", "ab"], fewest_pending=1)
    assert [text in found for text in ("a", "ab", "b", "abc")] == [True, True, False, False]
    assert found.contains(["a", "b", "abc"]).tolist() == [True, False, False]


def test_it_travels() -> None:
    there = pickle.loads(pickle.dumps(DigestSet(["a", "\udcff"])))
    assert there.contains(["a", "\udcff", "b"]).tolist() == [True, True, False]
