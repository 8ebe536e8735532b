"""Train the two towers together and leave a checkpoint in `.cache/`.

    python training/train.py [--hold-out STYLE] [--minutes M]

Three things pull at once: captions against the drawings of the batch (Radford et al. 2021, arXiv:2103.00020, with
every fitting pair a positive), drawings against one learned prototype per class, and captions against the same
prototypes. The prototypes make all 1,906 emoji the negatives of every step, and bring the drawings of one emoji by
different hands together.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional as F

from captions import Captions
from checkpoint import TOKENIZER, TRAINED, save_checkpoint
from data import Batch, Batches, seen_colours
from model import DualEncoder, Shape
from progress import Progress
from render import Drawings, load_drawings
from tokenise import train_tokenizer


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result. The shipped weights were made with these defaults."""

    seed: int = 20
    steps: int = 3400
    batch: int = 256
    learning_rate: float = 2e-3
    warm_up: int = 250
    # Smaller pictures first: nearly twice as fast (Tan and Le 2021, arXiv:2104.00298).
    early_size: int = 48
    early_share: float = 0.6
    weight_decay: float = 0.05
    average: float = 0.998  # of the weights, per step
    prototype_scale: float = 18.0
    label_smoothing: float = 0.05
    largest_scale: float = 40.0
    processes: int = 2


def soft_cross_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy against targets proportional to `weights`; rows without a target count nothing."""
    totals = weights.sum(1, keepdim=True)
    targets = weights / totals.clamp(min=1e-6)
    losses = -(targets * logits.log_softmax(1)).sum(1)
    return losses.sum() / (totals > 0).sum().clamp(min=1)


def embed(model: DualEncoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Drawings (n, d) and captions (n, d) of a batch, of unit length."""
    with torch.autocast("cpu", torch.bfloat16):
        images = model.image(batch.pixels.contiguous(memory_format=torch.channels_last))
        texts = model.text(batch.input_ids, batch.attention_mask)
    return F.normalize(images.float()), F.normalize(texts.float())


def losses(model: DualEncoder, batch: Batch, images: Tensor, texts: Tensor, settings: Settings) -> Tensor:
    """The contrastive loss, the images' and the captions' loss against the prototypes: (3,)."""
    prototypes = F.normalize(model.prototypes)
    fits = batch.fits.float()

    logits = texts @ images.T * model.log_scale.exp().clamp(max=settings.largest_scale)
    pairs = fits[:, batch.classes] * ~(batch.colour[:, None] & batch.colourless[None])
    # Seen from the image, a caption that fits few classes says more than one that fits many.
    telling = pairs / fits.sum(1, keepdim=True).clamp(min=1)
    contrastive = (soft_cross_entropy(logits, pairs) + soft_cross_entropy(logits.T, telling.T)) / 2

    by_image = F.cross_entropy(
        images @ prototypes.T * settings.prototype_scale, batch.classes, label_smoothing=settings.label_smoothing
    )
    by_text = soft_cross_entropy(texts @ prototypes.T * settings.prototype_scale, fits)
    return torch.stack([contrastive, by_image, by_text])


def parameter_groups(model: DualEncoder, settings: Settings) -> list[dict[str, object]]:
    """Weight decay for matrices only."""
    named = list(model.named_parameters())
    decayed = [p for name, p in named if p.ndim > 1 and "tokens" not in name and "positions" not in name]
    rest = [p for name, p in named if p.ndim <= 1 or "tokens" in name or "positions" in name]
    return [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def update_average(average: DualEncoder, model: DualEncoder, decay: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def _prepare(held_out: list[str]) -> tuple[list[Drawings], Captions, Tokenizer]:
    """The styles to train on, the captions, and the tokenizer; all of it the same in every process."""
    styles = [style for style in load_drawings() if not style.style.startswith(tuple(held_out))]
    captions = Captions(seen_colours(styles))
    tokenizer = train_tokenizer(captions.all_texts())
    return styles, captions, tokenizer


def share_gradients(model: DualEncoder) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def work(rank: int, settings: Settings, held_out: list[str], checkpoint: Path) -> None:
    """One of the training processes; the first prints the progress and saves the averaged weights."""
    torch.set_num_threads(1)
    rendezvous = checkpoint.with_suffix(".rendezvous").absolute().as_uri()
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=settings.processes)
    styles, captions, tokenizer = _prepare(held_out)
    shape = Shape(vocabulary=tokenizer.get_vocab_size())
    batches = Batches(styles, captions, tokenizer, settings.seed + rank)
    torch.manual_seed(settings.seed)
    model = DualEncoder(shape, captions.classes).to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).eval()
    optimiser = torch.optim.AdamW(parameter_groups(model, settings), betas=(0.9, 0.98))
    progress = None
    if rank == 0:
        tokenizer.save(str(checkpoint.with_name(TOKENIZER.name)))
        progress = Progress(shape, tokenizer, held_out, styles)
    for step in range(1, settings.steps + 1):
        warm = min(1.0, step / settings.warm_up)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / settings.steps))
        size = settings.early_size if step <= settings.early_share * settings.steps else shape.image_size
        batch = batches.draw(settings.batch // settings.processes, size, shape.context_length)
        parts = losses(model, batch, *embed(model, batch), settings)
        parts.sum().backward()
        share_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        optimiser.zero_grad()
        if progress is not None:
            update_average(average, model, min(settings.average, step / (step + 20)))
            progress.after_step(step, parts.detach(), model, average, last=step == settings.steps)
    if rank == 0:
        save_checkpoint(checkpoint, average, shape, settings.largest_scale)
    distributed.barrier()
    distributed.destroy_process_group()


def train(settings: Settings, held_out: list[str], checkpoint: Path) -> None:
    """Train in `settings.processes` processes of one thread each.

    Threads that wait for each other at every operation come to a crawl as soon as anything else runs on the machine;
    processes meet once per step.
    """
    load_drawings()  # rendered once, before the processes would do it side by side
    started = time.monotonic()
    checkpoint.with_suffix(".rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(work, (settings, held_out, checkpoint), nprocs=settings.processes)
    print(f"{checkpoint}: {(time.monotonic() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--hold-out", action="append", default=[], help="leave out the styles whose name starts so")
    parser.add_argument("--checkpoint", type=Path, default=TRAINED)
    arguments = parser.parse_args()
    train(Settings(steps=arguments.steps), arguments.hold_out, arguments.checkpoint)
