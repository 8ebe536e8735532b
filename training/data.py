"""Batches: drawings with a caption each, and which of the batch's captions fit which drawings and classes."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from augment import augment
from captions import Captions
from colours import colour_shares, named_colours
from emoji_set import emoji_set
from render import SYNTHETIC, Drawings
from tokenise import PAD, PAD_ID

#: How often a style is drawn from, relative to a coloured style as its author drew it.
INKED_WEIGHT, COLOURLESS_WEIGHT = 0.8, 0.35
#: Of a batch, how much is synthetic: shapes, swatches, patterns.
SYNTHETIC_SHARE = 0.10
#: Drawings that mean something else, or nothing, in a mirror.
SIDED = re.compile(r"left|right|clockwise|button|north|south|east|west|facing|mark\b|sign\b|letter")
SIDED_SUBGROUPS = ("arrow", "keycap", "alphanum", "math", "currency", "punctuation", "av-symbol", "time", "zodiac")


@dataclass(frozen=True)
class Batch:
    """pixels (n, 3, s, s); classes (n,); input_ids, attention_mask (t, length); fits (t, classes) bool;
    colour (t,) bool: the caption names a colour; colourless (n,) bool: the picture has none.
    """

    pixels: Tensor
    classes: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    fits: Tensor
    colour: Tensor
    colourless: Tensor


def seen_colours(styles: list[Drawings]) -> list[list[str]]:
    """For each emoji the colours seen in it, on average over the coloured styles as their authors drew them."""
    total = np.zeros((len(emoji_set()), len(colour_shares(np.zeros((1, 2, 2, 4), np.uint8))[0])), np.float64)
    count = np.zeros((len(total), 1))
    for style in styles:
        if style.colour and "+" not in style.style and style.style != SYNTHETIC:
            np.add.at(total, style.classes, colour_shares(style.pixels))
            np.add.at(count, style.classes, 1)
    return [named_colours(row) for row in total / np.maximum(count, 1)]


def encode(tokenizer: Tokenizer, texts: list[str], context_length: int) -> tuple[Tensor, Tensor]:
    """Texts -> input_ids and attention_mask, (n, length) int64, padded to the longest."""
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(pad_id=PAD_ID, pad_token=PAD)
    encoded = tokenizer.encode_batch(texts)
    return torch.tensor([row.ids for row in encoded]), torch.tensor([row.attention_mask for row in encoded])


class Batches:
    """Makes training batches: a class at random, one of its styles, one of its captions."""

    def __init__(self, styles: list[Drawings], captions: Captions, tokenizer: Tokenizer, seed: int) -> None:
        self.captions, self.tokenizer = captions, tokenizer
        self.chance = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.pixels = [torch.from_numpy(style.pixels) for style in styles]
        #: class -> [(weight, style number, row)]
        self.choices: list[list[tuple[float, int, int]]] = [[] for _ in range(captions.classes)]
        for number, style in enumerate(styles):
            weight = COLOURLESS_WEIGHT if not style.colour else INKED_WEIGHT if "+" in style.style else 1.0
            for row, index in enumerate(style.classes.tolist()):
                if style.colour or not captions.coloured_name[index]:
                    self.choices[index].append((weight, number, row))
        self.style_has_colour = [style.colour for style in styles]
        self.colour_matters = torch.from_numpy(captions.coloured_name)
        sided = [bool(SIDED.search(e.name)) or e.subgroup in SIDED_SUBGROUPS or e.group == "flags" for e in emoji_set()]
        self.flippable = torch.tensor([not side for side in sided] + [True] * len(captions.synthetic))

    def _draw_classes(self, size: int) -> list[int]:
        emoji = len(self.captions.emoji)
        synthetic = round(size * SYNTHETIC_SHARE)
        chosen = self.chance.sample(range(emoji), min(emoji, size - synthetic))
        # Some twice, in another style or with another caption.
        chosen[: size // 8] = chosen[-(size // 8) :]
        return chosen + self.chance.choices(range(emoji, self.captions.classes), k=synthetic)

    def draw(self, size: int, image_size: int, context_length: int) -> Batch:
        """One batch of `size` drawings with a caption each."""
        classes = self._draw_classes(size)
        rows, colourless = [], []
        for index in classes:
            options = self.choices[index]
            _, style, row = self.chance.choices(options, weights=[option[0] for option in options])[0]
            rows.append(self.pixels[style][row])
            colourless.append(not self.style_has_colour[style])
        numbers = torch.tensor(classes)
        pixels, lost = augment(
            torch.stack(rows), image_size, self.flippable[numbers], self.colour_matters[numbers], self.generator
        )
        captions = [self.captions.draw(index, self.chance) for index in classes]
        input_ids, attention_mask = encode(self.tokenizer, [caption.text for caption in captions], context_length)
        return Batch(
            pixels=pixels,
            classes=numbers,
            input_ids=input_ids,
            attention_mask=attention_mask,
            fits=torch.from_numpy(np.stack([caption.fits for caption in captions])),
            colour=torch.tensor([caption.colour for caption in captions]),
            colourless=torch.tensor(colourless) | lost,
        )
