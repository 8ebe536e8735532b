"""A cache of embeddings, keyed by their inputs."""

from __future__ import annotations

import threading
from collections import OrderedDict

from datasette_vision.vectors.embedding import Matrix, Vector
from datasette_vision.vectors.zero_shot import LabelSet

# The overhead of an entry besides its floats: key, array header, dictionary slot (measured with sys.getsizeof).
ENTRY_OVERHEAD = 350


class EmbeddingCache:
    """Keeps the most recently used embeddings, up to a number of bytes. Thread-safe.

    A key must contain the model's identity and a digest of the whole input: anything less does not distinguish two
    inputs.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, Vector] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, key: bytes) -> Vector | None:
        """Return the embedding with this key, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self.misses += 1
            else:
                self.hits += 1
                self._entries.move_to_end(key)
            return found

    def put(self, key: bytes, vector: Vector) -> None:
        """Store an embedding, and remove the least recently used ones if necessary."""
        kept = vector.copy()  # a row of a batch would keep the whole batch in memory
        kept.flags.writeable = False
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self.bytes -= old.nbytes + ENTRY_OVERHEAD
            self._entries[key] = kept
            self.bytes += kept.nbytes + ENTRY_OVERHEAD
            while self.bytes > self._max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.bytes -= oldest.nbytes + ENTRY_OVERHEAD


class LabelSets:
    """Keeps the most recently used label sets with the embeddings of their prompts, up to a number of bytes.
    Thread-safe.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, str | None], tuple[LabelSet, Matrix]] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: tuple[str, str | None]) -> tuple[LabelSet, Matrix] | None:
        """Return the labels and the (n, d) embeddings with the key (model, labels as text), or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: tuple[str, str | None], labels: LabelSet, prompts: Matrix) -> None:
        """Store a label set, and remove the least recently used ones if necessary."""
        with self._lock:
            self._drop(key)
            self._entries[key] = labels, prompts
            self.bytes += _size_of_set(key, labels, prompts)
            while self.bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: tuple[str, str | None]) -> None:
        old = self._entries.pop(key, None)
        if old is not None:
            self.bytes -= _size_of_set(key, *old)


def _size_of_set(key: tuple[str, str | None], labels: LabelSet, prompts: Matrix) -> int:
    # A character takes up to 4 bytes, and a string about 60 more.
    texts = sum(map(len, labels.labels)) + sum(map(len, labels.prompts)) + len(key[1] or "")
    return prompts.nbytes + 4 * texts + 120 * len(labels.labels)
