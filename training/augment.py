"""Augmentation of whole batches with torch: where the drawing lies, what is behind it, and how its ink was printed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Rec. 601 luma.
LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _chosen(count: int, chance: float, generator: torch.Generator) -> Tensor:
    """(count, 1, 1, 1) bool, True with probability `chance`."""
    return (torch.rand(count, generator=generator) < chance).view(-1, 1, 1, 1)


def place(drawings: Tensor, size: int, flippable: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, stretch, shift and sometimes mirror.

    drawings: (n, 4, s, s) float, premultiplied alpha; flippable: (n,) bool -> (n, 4, size, size), of the same kind.
    """
    count = len(drawings)
    angle = _uniform(count, -0.26, 0.26, generator) * (torch.rand(count, generator=generator) < 0.6)
    scale = 1 / _uniform(count, 0.62, 1.12, generator)
    stretch = _uniform(count, 0.88, 1.14, generator)
    shear = _uniform(count, -0.12, 0.12, generator)
    mirror = torch.where(flippable & (torch.rand(count, generator=generator) < 0.35), -1.0, 1.0)
    room = (1 - 1 / scale).clamp(min=0.05) * 0.9 + 0.04
    shift_x, shift_y = (_uniform(count, -1, 1, generator) * room * scale for _ in range(2))
    cosine, sine = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cosine * scale * stretch * mirror, (shear - sine) * scale, shift_x], 1),
            torch.stack([sine * scale * mirror, cosine * scale / stretch, shift_y], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, [count, 4, size, size], align_corners=False)
    return F.grid_sample(drawings, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blur(pixels: Tensor) -> Tensor:
    kernel = torch.tensor([0.25, 0.5, 0.25])
    weight = (kernel[:, None] * kernel[None]).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), weight, groups=3)


def _backgrounds(count: int, generator: torch.Generator) -> Tensor:
    """(n, 3, 1, 1): mostly white, sometimes nearly white, sometimes any colour."""
    kind = torch.rand(count, 1, generator=generator)
    any_colour = torch.rand(count, 3, generator=generator)
    light = 1 - 0.2 * torch.rand(count, 3, generator=generator)
    colours = torch.where(kind < 0.68, torch.ones(count, 3), torch.where(kind < 0.85, light, any_colour))
    return colours.view(count, 3, 1, 1)


def augment(
    drawings: Tensor, size: int, flippable: Tensor, colour_matters: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Training pixels from cached drawings.

    drawings: (n, s, s, 4) uint8 RGBA; flippable, colour_matters: (n,) bool ->
    pixels (n, 3, size, size) float32 in -1..1, and (n,) bool saying which of them lost their colour.
    """
    count = len(drawings)
    scaled = drawings.permute(0, 3, 1, 2).float() / 255
    premultiplied = torch.cat([scaled[:, :3] * scaled[:, 3:], scaled[:, 3:]], 1)
    placed = place(premultiplied, size, flippable, generator)
    ink, alpha = placed[:, :3], placed[:, 3:]

    free = (~colour_matters).view(-1, 1, 1, 1)
    # Other hands use other shades: small changes for all, larger ones where the colour is not in the name.
    saturation = _uniform(count, 0.75, 1.3, generator).view(-1, 1, 1, 1)
    grey = (ink * LUMA).sum(1, keepdim=True)
    ink = grey + (ink - grey) * saturation
    gain = torch.where(free, 1.0, 0.35) * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5) * 0.3
    ink = ink * (1 + gain)
    colourless = free & _chosen(count, 0.08, generator)
    ink = torch.where(colourless, grey, ink)

    pixels = ink + (1 - alpha) * _backgrounds(count, generator)
    steps = torch.randint(2, 6, (count, 1, 1, 1), generator=generator).float()
    pixels = torch.where(free & _chosen(count, 0.08, generator), (pixels * steps).round() / steps, pixels)
    contrast = _uniform(count, 0.8, 1.2, generator).view(-1, 1, 1, 1)
    pixels = (pixels - 1) * contrast + 1 - _uniform(count, 0, 0.06, generator).view(-1, 1, 1, 1)
    pixels = torch.where(_chosen(count, 0.25, generator), _blur(pixels), pixels)
    noisy = _chosen(count, 0.2, generator) * 0.04
    pixels = pixels + torch.randn(pixels.shape, generator=generator) * noisy
    pixels = _hide_a_part(pixels.clamp(0, 1), generator)
    return pixels * 2 - 1, colourless.view(-1)


def _hide_a_part(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Cover a rectangle with one colour, in a seventh of the pictures (DeVries and Taylor 2017, arXiv:1708.04552)."""
    count, _, size, _ = pixels.shape
    centre = torch.rand(count, 2, 1, generator=generator) * size
    half = _uniform(count, 4, 10, generator).view(-1, 1)
    at = torch.arange(size)
    rows, columns = ((at - centre[:, axis]).abs() < half for axis in (0, 1))
    covered = rows[:, None, :, None] & columns[:, None, None, :] & _chosen(count, 0.15, generator)
    return torch.where(covered, torch.rand(count, 3, 1, 1, generator=generator), pixels)
