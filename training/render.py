"""Rasterise every training drawing once, into `.cache/drawings/<style>.npz`.

Each file holds `pixels` (n, 80, 80, 4) uint8 RGBA and `classes` (n,) int32: positions in `emoji_set()`, after which
come the synthetic classes of shapes.py. OpenMoji is never rendered here.
"""

from __future__ import annotations

import io
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

import packages
from colours import anchor_shade, any_shade
from emoji_set import emoji_set, google_drawings, plain, twitter_drawings
from shapes import draw, synthetic_classes
from styles import SVG_STYLES, Style, drawings

#: Larger than the model's input, so that augmentation can zoom in without inventing pixels.
SIZE = 80
SYNTHETIC_VARIANTS = 8
SYNTHETIC, WIDE = "synthetic", "synthetic+wide"
DRAWINGS = packages.CACHE / "drawings"

#: Styles of which inked versions are made: flat colours, so that an outline around every shape looks drawn.
INKED = ("noto", "noto-v1", "twemoji", "fluent-flat", "emojione", "fxemoji")
LINES = ("twemoji", "fluent-flat", "emojione")

VIEW_BOX = re.compile(r'viewBox="([^"]+)"')


@dataclass(frozen=True)
class Drawings:
    """The drawings of one style. pixels: (n, SIZE, SIZE, 4) uint8 RGBA; classes: (n,) int32."""

    style: str
    pixels: np.ndarray
    classes: np.ndarray
    colour: bool


@cache
def class_of_hexcode() -> dict[str, int]:
    """Plain hexcode -> class number."""
    return {plain(emoji.hexcode): index for index, emoji in enumerate(emoji_set())}


def rasterise(svg: str, size: int) -> np.ndarray:
    """An SVG document as (size, size, 4) uint8 RGBA, centred, its proportions kept."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as opened:
        return square(opened.convert("RGBA"), size)


def square(picture: Image.Image, size: int) -> np.ndarray:
    """A picture fitted into a transparent square: (size, size, 4) uint8 RGBA."""
    if picture.size != (size, size):
        scale = size / max(picture.size)
        shape = [max(1, round(side * scale)) for side in picture.size]
        fitted = picture.resize((shape[0], shape[1]), Image.Resampling.BICUBIC)
        picture = Image.new("RGBA", (size, size))
        picture.paste(fitted, ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return np.asarray(picture)


def inked(svg: str, chance: random.Random, *, lines_only: bool = False) -> str:
    """The same drawing with an outline around every shape that has none of its own: inherited from the root element.

    With `lines_only` every fill becomes white: a colouring book.
    """
    left, top, width, height = (float(number) for number in VIEW_BOX.findall(svg)[0].split())
    stroke = width / 72 * chance.uniform(1.2, 3.0)
    ink = chance.choice(("#000", "#000", "#000", "#222", "#3a2a20", "#20304a"))
    root = f'<svg stroke="{ink}" stroke-width="{stroke:.3f}" stroke-linejoin="round" stroke-linecap="round" '
    if lines_only:
        svg = re.sub(r'fill="(?!none)[^"]*"', 'fill="#fff"', svg)
        root += 'fill="#fff" '
    # Room for the outline of what touches the edge.
    wider = f"{left - stroke / 2:.3f} {top - stroke / 2:.3f} {width + stroke:.3f} {height + stroke:.3f}"
    svg = VIEW_BOX.sub(f'viewBox="{wider}"', svg, count=1)
    return svg.replace("<svg ", root, 1)


def _rasterise_style(style: Style, treatment: str) -> tuple[list[np.ndarray], list[int]]:
    chance = random.Random(f"{style.name} {treatment}")
    pixels, classes = [], []
    for hexcode, svg in drawings(style):
        if treatment != "plain":
            svg = inked(svg, chance, lines_only=treatment == "lines")
        pixels.append(rasterise(svg, SIZE))
        classes.append(class_of_hexcode()[hexcode])
    return pixels, classes


def _png_style(files: dict[str, Path]) -> tuple[list[np.ndarray], list[int]]:
    pixels, classes = [], []
    for hexcode, number in class_of_hexcode().items():
        if hexcode in files:
            with Image.open(files[hexcode]) as opened:
                pixels.append(square(opened.convert("RGBA"), SIZE))
            classes.append(number)
    return pixels, classes


def _synthetic_style(name: str) -> tuple[list[np.ndarray], list[int]]:
    chance = random.Random(name)
    shade = any_shade if name == WIDE else anchor_shade
    pixels, classes = [], []
    for number, what in enumerate(synthetic_classes(), start=len(emoji_set())):
        for _ in range(SYNTHETIC_VARIANTS):
            pixels.append(rasterise(draw(what, chance, shade), SIZE))
            classes.append(number)
    return pixels, classes


def _load(name: str, colour: bool) -> Drawings:
    """Read one style from the cache, rendering it first when it is not there."""
    file = DRAWINGS / f"{name}.npz"
    if not file.exists():
        if name == "google":
            pixels, classes = _png_style(google_drawings())
        elif name == "twitter":
            pixels, classes = _png_style(twitter_drawings())
        elif name in (SYNTHETIC, WIDE):
            pixels, classes = _synthetic_style(name)
        else:
            base, _, treatment = name.partition("+")
            (style,) = (style for style in SVG_STYLES if style.name == base)
            pixels, classes = _rasterise_style(style, treatment or "plain")
        DRAWINGS.mkdir(parents=True, exist_ok=True)
        partial = file.with_name("partial.npz")
        np.savez(partial, pixels=np.stack(pixels), classes=np.array(classes, np.int32))
        partial.rename(file)
        print(f"rendered {name}: {len(classes)} drawings", flush=True)
    with np.load(file) as stored:
        return Drawings(name, stored["pixels"], stored["classes"], colour)


def load_drawings() -> list[Drawings]:
    """Every style that is trained on: as drawn, inked, as lines only, and the synthetic drawings last."""
    found = [_load("google", True), _load("twitter", True)]
    found += [_load(style.name, style.colour) for style in SVG_STYLES]
    found += [_load(f"{name}+ink", True) for name in INKED]
    found += [_load(f"{name}+lines", False) for name in LINES]
    return [*found, _load(SYNTHETIC, True)]


def load_polish_drawings() -> list[Drawings]:
    """The same, and the synthetic drawings once more in every shade that bears a colour's name."""
    return [*load_drawings(), _load(WIDE, True)]


if __name__ == "__main__":
    for loaded in load_drawings():
        print(f"{loaded.style:24} {len(loaded.classes):5} drawings of {len(set(loaded.classes.tolist())):4} classes")
