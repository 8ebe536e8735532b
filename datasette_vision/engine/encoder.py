"""A dual encoder: an image tower and a text tower whose embeddings can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine.runtime import OnnxSession, Session
from datasette_vision.engine.tokenizer import Tokenizer
from datasette_vision.errors import EngineFailure
from datasette_vision.models.store import InstalledModel
from datasette_vision.util.lazy import Lazy

# (path, input names, output name) -> a loaded graph
LoadSession = Callable[[Path, tuple[str, ...], str], Session]


def load_on(threads: int | None, providers: Sequence[str] = ()) -> LoadSession:
    """Return a loader of graphs that run on this many threads (None: one for each core).

    `providers` are ONNX Runtime's execution providers, best first; the CPU if empty.
    """
    return lambda path, inputs, output: OnnxSession(
        path, inputs=inputs, output=output, threads=threads, providers=providers
    )


class DualEncoder:
    """The two towers of an installed model, each loaded on first use. Thread-safe."""

    def __init__(self, model: InstalledModel, load: LoadSession) -> None:
        manifest = model.manifest
        assert manifest.text is not None, "a dual encoder's manifest has a text tower"
        text, image = manifest.text, manifest.image
        text_inputs = (text.input_ids,) if text.attention_mask is None else (text.input_ids, text.attention_mask)
        self.manifest = manifest
        self._text = text
        self.image_tower: Lazy[Session] = Lazy(lambda: load(model.path(image.file), (image.input,), image.output))
        self.text_tower: Lazy[Session] = Lazy(lambda: load(model.path(text.file), text_inputs, text.output))
        self.tokenizer: Lazy[Tokenizer] = Lazy(lambda: Tokenizer(model.path(text.tokenizer), text))

    def padded_length(self, sequence: list[int]) -> int:
        """Return how many tokens the text tower reads of a tokenised text that is alone in a batch."""
        return self._text.context_length if self._text.padding == "max_length" else len(sequence)

    def encode_tokens(self, sequences: Sequence[list[int]]) -> NDArray[np.float32]:
        """Embed n tokenised texts: -> (n, d) float32, not normalised."""
        session = self.text_tower.get()
        if session.one_by_one and len(sequences) > 1:
            return np.concatenate([self.encode_tokens([sequence]) for sequence in sequences])
        padded = self.tokenizer.get().pad(sequences)
        inputs = {self._text.input_ids: padded["input_ids"]}
        if self._text.attention_mask is not None:
            inputs[self._text.attention_mask] = padded["attention_mask"]
        return self._checked(session.run(inputs), len(sequences))

    def encode_pixels(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed preprocessed images: (n, 3, h, w) float32 -> (n, d) float32, not normalised."""
        return self._checked(self.image_tower.get().run({self.manifest.image.input: pixels}), len(pixels))

    def _checked(self, embeddings: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        return checked(embeddings, (count, self.manifest.dimensions), self.manifest.name)


def checked(output: NDArray[np.float32], shape: tuple[int, int], name: str) -> NDArray[np.float32]:
    """Return the output of a model's graph. Raises EngineFailure if it has another shape or is not finite."""
    if output.shape != shape:
        raise EngineFailure(f"{name}: expected an output of {shape}, found {output.shape}")
    if not np.isfinite(output).all():
        raise EngineFailure(f"{name}: expected finite numbers, found a NaN or an infinity in the output")
    return output
