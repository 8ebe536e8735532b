"""The last few minutes of training: the labels that ship with the model, and colours in every shade.

    python training/polish.py

Starts from train.py's checkpoint, at a lower learning rate. The same losses go on; beside them every drawing is told
apart by the wordings of the groups and of the subgroups, and every coloured shape by the names of the colours, as
zero-shot classification will do it.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional as F

from captions import Captions
from checkpoint import POLISHED, TOKENIZER, TRAINED, load_checkpoint, save_checkpoint
from colours import COLOURS, SYNONYMS
from data import Batches, encode, seen_colours
from emoji_set import emoji_set
from labels import GROUPS, SUBGROUPS
from manifest import group_labels, subgroup_labels
from model import DualEncoder
from progress import Progress
from render import load_drawings, load_polish_drawings
from shapes import SHAPES, synthetic_classes
from train import Settings, embed, losses, parameter_groups, share_gradients, update_average

SETTINGS = replace(Settings(), seed=21, steps=1200, learning_rate=5e-4, warm_up=30, average=0.99)


@dataclass(frozen=True)
class LabelTask:
    """One zero-shot task: wordings of every label, and the label of every class (-100 where it has none).

    `forms` are what a wording may stand in, the same one for all labels of a step.
    """

    phrases: list[tuple[str, ...]]
    label_of: Tensor
    forms: tuple[str, ...] = ("{}",)

    def prompts(self, chance: random.Random) -> list[str]:
        """For every label its prompt or, as often, another wording."""
        form = chance.choice(self.forms)
        return [
            form.format(wordings[0] if chance.random() < 0.5 else chance.choice(wordings)) for wordings in self.phrases
        ]


def label_tasks(classes: int) -> list[LabelTask]:
    """The nine groups, the subgroups, and the colours of shapes and swatches."""
    synthetic = [COLOURS.index(one.colours[0]) if len(one.colours) == 1 else -100 for one in synthetic_classes()]
    label_of = torch.tensor([-100] * len(emoji_set()) + synthetic)
    forms = ("{}", *(f"{{}} {shape}" for shape in SHAPES), *(f"a {{}} {shape}" for shape in SHAPES))
    found = [LabelTask([SYNONYMS[colour] for colour in COLOURS], label_of, forms)]
    for key, labels, wordings in (("group", group_labels(), GROUPS), ("subgroup", subgroup_labels(), SUBGROUPS)):
        names = [label["label"] for label in labels]
        of_emoji = [names.index(getattr(emoji, key)) for emoji in emoji_set()]
        label_of = torch.tensor(of_emoji + [-100] * (classes - len(of_emoji)))
        found.append(LabelTask([wordings[name] for name in names], label_of))
    return found


def label_loss(
    model: DualEncoder,
    images: Tensor,
    classes: Tensor,
    tasks: list[LabelTask],
    tokenizer: Tokenizer,
    chance: random.Random,
) -> Tensor:
    """Cross entropy of drawings (n, d), of the classes (n,), against the wordings of each task's labels."""
    scale = model.log_scale.detach().exp()
    total = images.new_zeros(())
    for task in tasks:
        with torch.autocast("cpu", torch.bfloat16):
            texts = model.text(*encode(tokenizer, task.prompts(chance), 32))
        logits = images @ F.normalize(texts.float()).T * scale
        total = total + F.cross_entropy(logits, task.label_of[classes], label_smoothing=0.05)
    return total


def work(rank: int) -> None:
    """One of the processes; the first prints the progress and saves the averaged weights."""
    torch.set_num_threads(1)
    rendezvous = POLISHED.with_suffix(".rendezvous").absolute().as_uri()
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=SETTINGS.processes)
    styles = load_polish_drawings()
    captions = Captions(seen_colours(styles))
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    model, shape, _ = load_checkpoint(TRAINED)
    model = model.to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).eval()
    batches = Batches(styles, captions, tokenizer, SETTINGS.seed + rank)
    tasks, chance = label_tasks(captions.classes), random.Random(SETTINGS.seed + rank)
    optimiser = torch.optim.AdamW(parameter_groups(model, SETTINGS), betas=(0.9, 0.98))
    progress = Progress(shape, tokenizer, [], styles) if rank == 0 else None
    for step in range(1, SETTINGS.steps + 1):
        rate = min(1.0, step / SETTINGS.warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / SETTINGS.steps))
        for group in optimiser.param_groups:
            group["lr"] = SETTINGS.learning_rate * rate
        batch = batches.draw(SETTINGS.batch // SETTINGS.processes, shape.image_size, shape.context_length)
        images, texts = embed(model, batch)
        parts = losses(model, batch, images, texts, SETTINGS)
        (parts.sum() + label_loss(model, images, batch.classes, tasks, tokenizer, chance)).backward()
        share_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        optimiser.zero_grad()
        if progress is not None:
            update_average(average, model, min(SETTINGS.average, step / (step + 20)))
            progress.after_step(step, parts.detach(), model, average, last=step == SETTINGS.steps)
    if rank == 0:
        save_checkpoint(POLISHED, average, shape, SETTINGS.largest_scale)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    load_drawings()
    load_polish_drawings()  # rendered once, before the processes would do it side by side
    POLISHED.with_suffix(".rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(work, nprocs=SETTINGS.processes)
