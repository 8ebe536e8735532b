"""Colour names: what the swatches are painted with, and how the colours seen in a drawing are named."""

from __future__ import annotations

import colorsys
import random

import numpy as np

#: Name -> anchor colours (sRGB). A colour is called what its nearest anchor is called, in OKLab.
ANCHORS: dict[str, tuple[str, ...]] = {
    "red": ("#e02020", "#c81e1e", "#ff3b30", "#dd2e44", "#a80f0f"),
    "orange": ("#ff8c00", "#f4900c", "#ff7a1a", "#f57c00"),
    "yellow": ("#ffd93b", "#ffcc22", "#fff000", "#fdd835", "#ffe873"),
    "green": ("#2e9b3f", "#43a047", "#00c853", "#77b255", "#1b5e20", "#a2d63a"),
    "turquoise": ("#1abcb4", "#00c8d0", "#40e0d0", "#008c95"),
    "blue": ("#1e6fe0", "#0d47a1", "#2196f3", "#3b88c3", "#1a237e", "#8fc7f5"),
    "purple": ("#8e24aa", "#7b3fc4", "#aa8ed6", "#6a1b9a", "#9c5ce0"),
    "pink": ("#ff69b4", "#f48fb1", "#ea596e", "#ffb6d0", "#ec407a"),
    "brown": ("#7b4a26", "#8d5a3a", "#5d4037", "#a0683c", "#662113"),
    "gold": ("#d4a017", "#c79a2b", "#e0aa2e"),
    "black": ("#000000", "#1a1a1a", "#292f33"),
    "grey": ("#808080", "#9aa0a6", "#b0b4b8", "#636a70"),
    "white": ("#ffffff", "#f5f5f5"),
}

COLOURS = tuple(ANCHORS)

#: The shades that still bear the name: hue in degrees (may pass 360), saturation and value, each from - to.
RANGES: dict[str, tuple[float, float, float, float, float, float]] = {
    "red": (350, 368, 0.75, 1.0, 0.74, 1.0),
    "orange": (22, 40, 0.8, 1.0, 0.85, 1.0),
    "yellow": (49, 62, 0.5, 1.0, 0.85, 1.0),
    "green": (80, 155, 0.45, 1.0, 0.35, 0.95),
    "turquoise": (168, 190, 0.5, 1.0, 0.5, 1.0),
    "blue": (202, 246, 0.5, 1.0, 0.4, 1.0),
    "purple": (264, 302, 0.4, 1.0, 0.4, 0.9),
    "pink": (318, 352, 0.22, 0.65, 0.92, 1.0),
    "brown": (0, 34, 0.5, 0.85, 0.3, 0.68),
    "gold": (41, 48, 0.65, 0.9, 0.7, 0.88),
    "black": (0, 360, 0.0, 0.3, 0.0, 0.12),
    "grey": (0, 360, 0.0, 0.08, 0.4, 0.75),
    "white": (0, 360, 0.0, 0.04, 0.96, 1.0),
}

#: The shade that CSS gives each name (https://www.w3.org/TR/css-color-4/#named-colors): brown is a reddish one there.
CSS = {
    "red": "#ff0000",
    "orange": "#ffa500",
    "yellow": "#ffff00",
    "green": "#008000",
    "turquoise": "#40e0d0",
    "blue": "#0000ff",
    "purple": "#800080",
    "pink": "#ffc0cb",
    "brown": "#a52a2a",
    "gold": "#ffd700",
    "black": "#000000",
    "grey": "#808080",
    "white": "#ffffff",
}

#: Other words that people type for the same colour.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("red", "scarlet", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "turquoise": ("turquoise", "teal", "cyan"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "gold": ("gold", "golden"),
    "black": ("black",),
    "grey": ("grey", "gray", "silver"),
    "white": ("white",),
}

#: The share of a drawing that a colour must cover to be named. Black and white are in every outline and every eye.
SHARE = {"black": 0.4, "white": 0.4, "grey": 0.3}
USUAL_SHARE = 0.18


def rgb(code: str) -> tuple[int, int, int]:
    """ "#1e6fe0" -> (30, 111, 224)."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def anchor_shade(colour: str, chance: random.Random) -> str:
    """One of the colour's anchors, a little off, as "#rrggbb"."""
    return _a_little_off(chance.choice(ANCHORS[colour]), chance)


def _a_little_off(code: str, chance: random.Random) -> str:
    return "#" + "".join(f"{min(255, max(0, value + chance.randint(-12, 12))):02x}" for value in rgb(code))


def any_shade(colour: str, chance: random.Random) -> str:
    """Any shade that bears the colour's name, as "#rrggbb": one time in three about what CSS means by it."""
    if chance.random() < 1 / 3:
        return _a_little_off(CSS[colour], chance)
    hue_from, hue_to, *rest = RANGES[colour]
    hue = chance.uniform(hue_from, hue_to) % 360 / 360
    saturation, value = chance.uniform(rest[0], rest[1]), chance.uniform(rest[2], rest[3])
    return "#" + "".join(f"{round(channel * 255):02x}" for channel in colorsys.hsv_to_rgb(hue, saturation, value))


def oklab(pixels: np.ndarray) -> np.ndarray:
    """sRGB 0..255 (..., 3) -> OKLab (..., 3). Constants: Björn Ottosson, https://bottosson.github.io/posts/oklab/"""
    scaled = np.asarray(pixels, np.float32) / 255.0
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ],
        np.float32,
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ],
        np.float32,
    )


_ANCHOR_NAMES = np.array([index for index, name in enumerate(COLOURS) for _ in ANCHORS[name]])
_ANCHOR_LAB = oklab(np.array([rgb(code) for name in COLOURS for code in ANCHORS[name]]))


def colour_shares(drawings: np.ndarray) -> np.ndarray:
    """The share of each drawing's visible area that has each named colour.

    drawings: (n, h, w, 4) uint8 RGBA -> (n, len(COLOURS)) float32, rows adding up to 1 (or 0 for an empty drawing).
    """
    shares = np.zeros((len(drawings), len(COLOURS)), np.float32)
    for row, drawing in enumerate(drawings):
        small = drawing[::4, ::4].reshape(-1, 4)
        visible = small[small[:, 3] > 127, :3]
        if len(visible):
            distances = ((oklab(visible)[:, None] - _ANCHOR_LAB) ** 2).sum(-1)
            names = _ANCHOR_NAMES[distances.argmin(1)]
            shares[row] = np.bincount(names, minlength=len(COLOURS)) / len(names)
    return shares


def named_colours(shares: np.ndarray) -> list[str]:
    """The colours that a drawing with these shares (len(COLOURS),) would be said to have, most of it first."""
    order = np.argsort(-shares)
    return [COLOURS[index] for index in order if shares[index] >= SHARE.get(COLOURS[index], USUAL_SHARE)]
