"""Text to token ids, by the `tokenizers` library and the model's own tokenizer.json."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasette_vision.errors import ModelCorrupt
from datasette_vision.models.manifest import TextTower

logger = logging.getLogger(__name__)


class Tokenizer:
    """Cuts text into the ids that a text tower expects. Thread-safe."""

    def __init__(self, path: Path, tower: TextTower) -> None:
        """Load tokenizer.json. Raises ModelCorrupt when it cannot be read."""
        import tokenizers  # loaded with the first text, never at start

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            logger.error("%s: %s", path, error)
            raise ModelCorrupt(f"{path}: expected a tokenizer; the log says why it cannot be read") from None
        self._tokenizer.no_padding()
        # Special tokens count, and stay: a CLIP text tower reads its answer at the end token.
        self._tokenizer.enable_truncation(max_length=tower.context_length)
        self._tower = tower

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, special tokens included, at most context_length of them."""
        return self._tokenizer.encode(_well_formed(text)).ids

    def pad(self, sequences: Sequence[list[int]]) -> dict[str, NDArray[np.int64]]:
        """Return input_ids and attention_mask, each of shape (n, length) int64.

        The length is that of the longest sequence, or context_length where the tower was trained so.
        """
        tower = self._tower
        longest = max(1, *(len(ids) for ids in sequences)) if sequences else 1
        length = tower.context_length if tower.padding == "max_length" else longest
        ids = np.full((len(sequences), length), tower.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(sequences), length), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def _well_formed(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 can hold, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
