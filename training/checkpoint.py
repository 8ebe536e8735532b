"""What one step of training leaves for the next: averaged weights, the shape of the model, the scale of its cosines."""

from __future__ import annotations

from pathlib import Path

import torch

import packages
from model import DualEncoder, Shape

TRAINED = packages.CACHE / "tiny-emoji.pt"
POLISHED = packages.CACHE / "tiny-emoji-polished.pt"
TOKENIZER = packages.CACHE / "tokenizer.json"


def save_checkpoint(path: Path, model: DualEncoder, shape: Shape, largest_scale: float) -> None:
    """Write the weights of `model` to `path`."""
    scale = float(model.log_scale.detach().exp().clamp(max=largest_scale))
    torch.save({"shape": shape.as_dict(), "weights": model.state_dict(), "logit_scale": scale}, path)


def load_checkpoint(path: Path) -> tuple[DualEncoder, Shape, float]:
    """The model in fp32, its shape, and the scale of its cosines."""
    stored = torch.load(path, weights_only=True)
    shape = Shape(**stored["shape"])
    model = DualEncoder(shape, len(stored["weights"]["prototypes"]))
    model.load_state_dict(stored["weights"])
    return model.eval(), shape, stored["logit_scale"]
