"""What training says about itself while it runs: losses, and the recall of a style that it watches."""

from __future__ import annotations

import time

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from data import encode
from emoji_set import emoji_set
from model import DualEncoder, Shape
from render import Drawings, load_drawings

PRINT_EVERY, MEASURE_EVERY = 50, 400


def recall(model: DualEncoder, style: Drawings, names: tuple[Tensor, Tensor], size: int) -> dict[int, float]:
    """Text-to-image recall@1 and @10 of the English names over one cached style, on white, by the torch model."""
    pictures = []
    for drawing in style.pixels:
        picture = Image.fromarray(drawing)
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        pictures.append(np.asarray(white.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)))
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        images = F.normalize(torch.cat([model.image(part) for part in pixels.split(256)]))
        texts = F.normalize(model.text(*names))
    best = (texts @ images.T).topk(10).indices.numpy()
    present = sorted(set(style.classes.tolist()))
    hits = style.classes[best[present]] == np.array(present)[:, None]
    return {k: float(hits[:, :k].any(1).mean()) for k in (1, 10)}


class Progress:
    """Prints the mean losses, and now and then the recall of the styles left out (of Noto when none is)."""

    def __init__(self, shape: Shape, tokenizer: Tokenizer, held_out: list[str], trained: list[Drawings]) -> None:
        left_out = [style for style in load_drawings() if style.style.startswith(tuple(held_out))]
        self.watched = left_out or trained[:1]
        self.size = shape.image_size
        self.names = encode(tokenizer, [emoji.name for emoji in emoji_set()], shape.context_length)
        self.started = time.monotonic()
        self.total = torch.zeros(3)

    def after_step(self, step: int, losses: Tensor, model: DualEncoder, average: DualEncoder, *, last: bool) -> None:
        """losses: (3,), as train.losses returns them."""
        self.total += losses
        if step % PRINT_EVERY == 0:
            means = " ".join(f"{value:.3f}" for value in (self.total / PRINT_EVERY).tolist())
            seconds = time.monotonic() - self.started
            print(f"step {step} losses {means} scale {model.log_scale.exp():.1f} {seconds:.0f} s", flush=True)
            self.total.zero_()
        if step % MEASURE_EVERY == 0 or last:
            for style in self.watched:
                measured = recall(average, style, self.names, self.size)
                print(f"  {style.style}: recall@1 {measured[1]:.3f} recall@10 {measured[10]:.3f}", flush=True)
