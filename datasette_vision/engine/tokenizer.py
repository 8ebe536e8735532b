"""Text to token ids, with the `tokenizers` library and the model's own tokenizer.json."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.errors import ModelCorrupt
from datasette_vision.models.manifest import TextTower

logger = logging.getLogger(__name__)

# The first part of a text to tokenise, in characters for each token that the tower reads. English has 4 or 5.
PART_CHARS_PER_TOKEN = 16
# If that is not enough, the next part is this many times as long: all parts together are at most 2.4 times the text.
GROWTH = 4
# Only nearby text after a token can change it: a word continues, an accent follows, the name of a special token ends.
# Byte pairs are merged from the beginning, even in a word of 100,000 letters, so a cut changes only the end.
MARGIN_TOKENS = 128
# But any number of accents on one letter are sorted first, and each is up to 4 tokens.
MARGIN_ACCENTS = 16
LAST_RUN = re.compile(r"\S+\Z")
# Texts that show which special tokens come before and after a text.
PROBE_TEXTS = ("a", "1", ".", "\u4e2d")


class Tokenizer:
    """Turns text into the ids that a text tower expects. Thread-safe."""

    def __init__(self, path: Path, tower: TextTower) -> None:
        """Load tokenizer.json. Raises ModelCorrupt if it cannot be read, or if tokenizers does not implement it
        correctly.
        """
        import tokenizers  # loaded with the first text, never at start

        load: Any = tokenizers.Tokenizer.from_file  # 1.0 has other methods than its type stubs
        library = f"tokenizers {tokenizers.__version__}"
        try:
            with _panics_as_errors():
                self._tokenizer = load(str(path))
        except Exception as error:
            logger.error("%s: %s: %s", path, library, error)
            raise ModelCorrupt(f"{path}: expected a tokenizer; see the log") from None
        if hasattr(tokenizers, "Truncation"):  # 1.0
            self._tokenizer.padding = None
            self._tokenizer.truncation = None
            self._check_word_ends(path, library)
        else:
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        self._tower = tower
        # Special tokens count, and stay: a CLIP text tower uses its output at the end token.
        self._before, self._after = self._special_tokens(path)
        self._room = max(0, tower.context_length - len(self._before) - len(self._after))
        # A number may be split into threes from its end, by a regular expression with a lookahead.
        self._looks_ahead = b"(?=" in path.read_bytes()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, special tokens included, at most context_length of them.

        They are those of the whole text, but only the necessary part of it is tokenised: a text of 100,000 characters
        costs as much as its first words, unless it is constructed so that its beginning depends on its end.
        """
        text = _well_formed(text)
        length = PART_CHARS_PER_TOKEN * self._tower.context_length
        ids: list[int] | None = None
        while length < len(text) and ids is None:
            ids = self._begins(text[:length])
            length *= GROWTH
        if ids is None:
            ids = self._content(text)
        return [*self._before, *ids[: self._room], *self._after]

    def _begins(self, part: str) -> list[int] | None:
        """Return the tokens that the tower reads of any text that begins with this part, None if more of the text is
        needed.
        """
        if all(map(unicodedata.combining, part[-MARGIN_ACCENTS:])):
            return None
        ids = self._content(LAST_RUN.sub("", part) if self._looks_ahead else part)
        return ids if len(ids) >= self._room + MARGIN_TOKENS else None

    def _content(self, text: str) -> list[int]:
        with _panics_as_errors():
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _special_tokens(self, path: Path) -> tuple[list[int], list[int]]:
        """Return the special tokens before and after every text."""
        for sample in PROBE_TEXTS:
            whole, inner = self._tokenizer.encode(sample).ids, self._content(sample)
            for start in range(len(whole) - len(inner) + 1) if inner else ():
                if whole[start : start + len(inner)] == inner:
                    return whole[:start], whole[start + len(inner) :]
        raise ModelCorrupt(
            f"{path}: expected a tokenizer that has tokens for one of {', '.join(PROBE_TEXTS)}, found none"
        )

    def _check_word_ends(self, path: Path, library: str) -> None:
        """Raise ModelCorrupt if a word of one letter does not end with the file's end_of_word_suffix.

        tokenizers 1.0.0rc3 omits it there, which gives CLIP other tokens and makes its embeddings useless.
        """
        model = json.loads(path.read_text("utf-8"))["model"]
        suffix = model.get("end_of_word_suffix")
        for letter in string.ascii_lowercase if suffix else "":
            expected = model["vocab"].get(letter + suffix)
            found = self._tokenizer.encode(letter, add_special_tokens=False).ids
            if expected is not None and found != [expected]:
                raise ModelCorrupt(
                    f"{path}: expected the word {letter!r} to be the token {expected}, and {library} gives {found}:"
                    " it does not implement this file; pip install 'tokenizers<1'"
                )

    def pad(self, sequences: Sequence[list[int]]) -> dict[str, NDArray[np.int64]]:
        """Return input_ids and attention_mask, each of shape (n, length) int64.

        The length is that of the longest sequence, or context_length if the tower was trained that way.
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


@contextlib.contextmanager
def _panics_as_errors() -> Iterator[None]:
    """Turn a Rust panic, which is not an Exception and would end a worker, into a RuntimeError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"tokenizers gave up: {error}") from None


def _well_formed(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot hold, with U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
