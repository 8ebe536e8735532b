"""Synthetic drawings: coloured shapes, one to three of a kind, plain swatches, and patterns of two colours.

They teach colours, shapes and counts apart from any emoji.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

from colours import COLOURS

COUNT_WORDS = {1: "one", 2: "two", 3: "three"}


@dataclass(frozen=True)
class Synthetic:
    """What a synthetic drawing shows. A swatch has no shape; a pattern has two colours and no shape."""

    shape: str | None
    colours: tuple[str, ...]
    count: int = 1


def _polygon(corners: int, inner: float = 1.0, turn: float = -pi / 2) -> str:
    """An SVG polygon around (50, 50): regular when `inner` is 1, a star when it is smaller."""
    points = []
    steps = corners if inner == 1.0 else 2 * corners
    for step in range(steps):
        radius = 44 if inner == 1.0 or step % 2 == 0 else 44 * inner
        angle = turn + 2 * pi * step / steps
        points.append(f"{50 + radius * cos(angle):.1f},{50 + radius * sin(angle):.1f}")
    return f'<polygon points="{" ".join(points)}"/>'


#: Shape -> SVG within a 100 x 100 box.
SHAPES = {
    "circle": '<circle cx="50" cy="50" r="42"/>',
    "square": '<rect x="12" y="12" width="76" height="76"/>',
    "rectangle": '<rect x="6" y="28" width="88" height="44"/>',
    "triangle": '<polygon points="50,10 92,86 8,86"/>',
    "diamond": '<polygon points="50,6 86,50 50,94 14,50"/>',
    "star": _polygon(5, 0.4),
    "heart": '<path d="M50 90C10 58 4 40 10 26 18 8 42 10 50 28 58 10 82 8 90 26 96 40 90 58 50 90Z"/>',
    "hexagon": _polygon(6),
    "pentagon": _polygon(5),
    "oval": '<ellipse cx="50" cy="50" rx="46" ry="28"/>',
    "ring": '<path fill-rule="evenodd" d="M50 8a42 42 0 1 0 .1 0ZM50 28a22 22 0 1 1-.1 0Z"/>',
    "cross": '<path d="M36 8h28v28h28v28H64v28H36V64H8V36h28Z"/>',
    "crescent": '<path d="M64 8A44 44 0 1 0 64 92 36 36 0 1 1 64 8Z"/>',
    "line": '<rect x="4" y="43" width="92" height="14"/>',
}


def synthetic_classes() -> list[Synthetic]:
    """Everything that is drawn: shapes x colours x counts, swatches, and pairs of colours."""
    shapes = [
        Synthetic(shape, (colour,), count) for shape in SHAPES for colour in COLOURS for count in sorted(COUNT_WORDS)
    ]
    swatches = [Synthetic(None, (colour,)) for colour in COLOURS]
    return shapes + swatches + [Synthetic(None, pair) for pair in itertools.combinations(COLOURS, 2)]


def draw(what: Synthetic, chance: random.Random, shade: Callable[[str, random.Random], str]) -> str:
    """One random drawing of `what`, as an SVG document of 100 x 100; `shade` mixes the paint of a named colour."""
    ink = f' stroke="#000" stroke-width="{chance.uniform(1.5, 5):.1f}"' if chance.random() < 0.35 else ""
    paints = [shade(colour, chance) for colour in what.colours]
    if what.shape is None and len(paints) == 1:
        body = f'<rect width="100" height="100" fill="{paints[0]}"/>'
    elif what.shape is None:
        body = _pattern(paints, ink, chance)
    else:
        body = _shapes(what.shape, paints[0], what.count, ink, chance)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{body}</svg>'


def _shapes(shape: str, paint: str, count: int, ink: str, chance: random.Random) -> str:
    if count > 1 and ink == "" and paint in ("#ffffff", "#f5f5f5"):
        ink = ' stroke="#888" stroke-width="2"'
    if count == 1:
        places = [(50 + chance.uniform(-6, 6), 50 + chance.uniform(-6, 6), chance.uniform(0.6, 1.0))]
    else:
        size = 0.46 if count == 2 else 0.36
        start = chance.uniform(0, 2 * pi)
        ring = 24 if count == 2 else 29
        places = []
        for index in range(count):
            angle = start + 2 * pi * index / count
            places.append((50 + ring * cos(angle), 50 + ring * sin(angle), size * chance.uniform(0.85, 1.05)))
    parts = []
    for x, y, size in places:
        turn = chance.uniform(-12, 12)
        parts.append(
            f'<g fill="{paint}"{ink} transform="translate({x:.1f} {y:.1f}) rotate({turn:.1f}) scale({size:.2f}) '
            f'translate(-50 -50)">{SHAPES[shape]}</g>'
        )
    return "".join(parts)


def _pattern(paints: list[str], ink: str, chance: random.Random) -> str:
    """Two colours side by side, in stripes, in a ring, or one shape upon another."""
    first, second = chance.sample(paints, 2)
    ground = f'<rect width="100" height="100" fill="{first}"/>'
    kind = chance.randrange(4)
    if kind == 0:
        body = ground + f'<rect width="100" height="50" y="50" fill="{second}"/>'
    elif kind == 1:
        stripes = "".join(f'<rect x="{x}" width="17" height="100" fill="{second}"/>' for x in (0, 34, 68))
        body = ground + stripes
    elif kind == 2:
        inner, outer = chance.sample(sorted(SHAPES), 2)
        body = (
            f'<g fill="{first}"{ink}>{SHAPES[outer]}</g>'
            f'<g fill="{second}" transform="translate(25 25) scale(.5)">{SHAPES[inner]}</g>'
        )
    else:
        one, two = chance.choices(sorted(SHAPES), k=2)
        body = (
            f'<g fill="{first}"{ink} transform="translate(2 24) scale(.48)">{SHAPES[one]}</g>'
            f'<g fill="{second}"{ink} transform="translate(50 24) scale(.48)">{SHAPES[two]}</g>'
        )
    turn = chance.choice((0, 90, 180, 270))
    return f'<g transform="rotate({turn} 50 50)">{body}</g>'
