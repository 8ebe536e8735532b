"""A set of very many texts, at 16 bytes each: a hundred million paths take 1.6 GB, not 16."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16  # among 10^10 texts, two have the same 128 bits in one of 10^19 such sets
FEWEST_PENDING = 100_000


class DigestSet:
    """A set of texts that can only grow. Not thread-safe; may be sent to another process."""

    def __init__(self, texts: Iterable[str] = (), fewest_pending: int = FEWEST_PENDING) -> None:
        self._sorted: NDArray[np.bytes_] = np.empty(0, dtype=f"S{DIGEST_BYTES}")
        self._pending: set[bytes] = set()
        self._fewest_pending = fewest_pending
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._sorted) + len(self._pending)

    def add(self, text: str) -> bool:
        """Add a text; return whether it is new."""
        key = _key(text)
        if key in self._pending or self._is_sorted(key):
            return False
        self._pending.add(key)
        # Each merge moves all entries: the more there are, the rarer it is.
        if len(self._pending) >= max(self._fewest_pending, len(self._sorted) // 8):
            self._merge()
        return True

    def __contains__(self, text: str) -> bool:
        key = _key(text)
        return key in self._pending or self._is_sorted(key)

    def contains(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Say for each of n texts whether it is in the set: -> (n,) bool."""
        self._merge()
        keys = np.array([_key(text) for text in texts], dtype=self._sorted.dtype)
        if not len(self._sorted):
            return np.zeros(len(keys), dtype=bool)
        found = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return self._sorted[found] == keys

    def __getstate__(self) -> dict[str, object]:
        self._merge()  # once, and not on each receiving machine
        return self.__dict__

    def _merge(self) -> None:
        if self._pending:
            new = np.array(sorted(self._pending), dtype=self._sorted.dtype)
            self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, new), new)
            self._pending.clear()

    def _is_sorted(self, key: bytes) -> bool:
        # NumPy removes zeros at the end of byte strings, on both sides alike.
        at = int(np.searchsorted(self._sorted, np.bytes_(key)))
        return at < len(self._sorted) and bool(self._sorted[at] == np.bytes_(key).rstrip(b"\0"))


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
