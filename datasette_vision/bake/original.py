"""The PyTorch model to be baked, with the same interface for every architecture: an image tower, and possibly a text
tower.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from datasette_vision.errors import InstallFailed


@dataclass
class TextSide:
    """The text tower of an original, and its own tokenizer."""

    module: torch.nn.Module  # (input_ids, attention_mask) -> (n, d)
    tokenizer: Any  # from transformers
    backend: Any  # from tokenizers: saved as tokenizer.json
    context_length: int
    causal: bool  # tokens after the end token have no effect: texts need no padding
    pad_token_id: int

    def ids(self, text: str) -> list[int]:
        """Tokenise like the original, cut to the context length, and padded to it if the tower needs that."""
        padding = False if self.causal else "max_length"
        encoded = self.tokenizer(text, truncation=True, max_length=self.context_length, padding=padding)
        return list(encoded["input_ids"])


@dataclass
class Original:
    """A PyTorch model with its own preprocessing."""

    task: str
    model: Any
    image: torch.nn.Module  # pixel_values (n, 3, h, w) -> (n, d)
    processor: Any
    dimensions: int
    description: str
    text: TextSide | None = None
    logit_scale: float = 1.0
    logit_bias: float = 0.0
    activation: str = "softmax"
    labels: list[str] = field(default_factory=list)
    bgr: bool = False  # the processor reverses the channels; here the tower does it

    @property
    def processor_config(self) -> dict[str, Any]:
        """Return the processor's settings, without those that the tower implements."""
        config = {key: value for key, value in self.processor.to_dict().items() if value is not None}
        if self.bgr:
            config.pop("do_flip_channel_order")
        return {**config, "do_normalize": bool(getattr(self.processor, "do_normalize", False))}

    def pixels(self, picture: Image.Image) -> NDArray[np.float32]:
        """Preprocess an RGB image like the original: -> (3, h, w)."""
        found = np.asarray(self.processor(picture, return_tensors="np")["pixel_values"][0], dtype=np.float32)
        return found[::-1] if self.bgr else found


def load_model(kind: Any, folder: Path) -> Any:
    """Load `folder` as a model of this transformers class, in fp32 and evaluation mode. Raises InstallFailed."""
    with reported(folder):
        model = kind.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    return model.eval()


def load_processor(folder: Path) -> Any:
    """Load the image processor of `folder`: the one based on Pillow, with which models were trained."""
    with reported(folder):
        return transformers.AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, backend="pil")


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of `folder`."""
    with reported(folder):
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@contextlib.contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Turn errors of transformers into InstallFailed, without its warnings."""
    try:
        with quiet():
            yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InstallFailed(f"{folder}: transformers cannot load it: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' warnings and progress bars, which are meant for authors of models."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


class OriginalTower(torch.nn.Module):
    """One computation of a model, as a separate module that can be exported."""

    def __init__(self, model: Any, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.compute = compute

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.compute(self.model, *inputs)
