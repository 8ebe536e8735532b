"""Text to token ids, by the `tokenizers` library and the model's own tokenizer.json."""

from __future__ import annotations

import json
import logging
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.errors import ModelCorrupt
from datasette_vision.models.manifest import TextTower

logger = logging.getLogger(__name__)


class Tokenizer:
    """Cuts text into the ids that a text tower expects. Thread-safe."""

    def __init__(self, path: Path, tower: TextTower) -> None:
        """Load tokenizer.json. Raises ModelCorrupt when it cannot be read, or when tokenizers does not follow it."""
        import tokenizers  # loaded with the first text, never at start

        load: Any = tokenizers.Tokenizer.from_file  # 1.0 has other methods than the types say
        library = f"tokenizers {tokenizers.__version__}"
        try:
            self._tokenizer = load(str(path))
        except Exception as error:
            logger.error("%s: %s: %s", path, library, error)
            raise ModelCorrupt(f"{path}: expected a tokenizer; the log says why it cannot be read") from None
        # Special tokens count, and stay: a CLIP text tower reads its answer at the end token.
        if hasattr(tokenizers, "Truncation"):  # 1.0
            self._tokenizer.padding = None
            self._tokenizer.truncation = tokenizers.Truncation(tower.context_length)
            self._check_word_ends(path, library)
        else:
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(max_length=tower.context_length)
        self._tower = tower

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, special tokens included, at most context_length of them."""
        return self._tokenizer.encode(_well_formed(text)).ids

    def _check_word_ends(self, path: Path, library: str) -> None:
        """Raise ModelCorrupt when a word of one letter does not end with the file's end_of_word_suffix.

        tokenizers 1.0.0rc3 forgets it there, which gives CLIP other tokens and makes nonsense of its embeddings.
        """
        model = json.loads(path.read_text("utf-8"))["model"]
        suffix = model.get("end_of_word_suffix")
        for letter in string.ascii_lowercase if suffix else "":
            expected = model["vocab"].get(letter + suffix)
            found = self._tokenizer.encode(letter, add_special_tokens=False).ids
            if expected is not None and found != [expected]:
                raise ModelCorrupt(
                    f"{path}: expected the word {letter!r} to be the token {expected}, and {library} gives {found}:"
                    " it does not follow this file; pip install 'tokenizers<1'"
                )

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
