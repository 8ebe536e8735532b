"""Makes folders of JPEG files like those of a camera, the same at every run, for the benchmarks of bulk work."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

# (width, height, one in how many of a hundred): up to 12 megapixels, most of them small.
Sizes = tuple[tuple[int, int, int], ...]
SIZES = ((640, 480, 50), (1600, 1200, 30), (3000, 2000, 12), (4000, 3000, 8))
# Encoding 12 megapixels takes longer than anything measured here: this many are made of each size, and then varied.
DIFFERENT = 12
PER_FOLDER = 1000


def write_pictures(
    folder: Path, count: int, broken: int = 0, *, sizes: Sizes = SIZES, unique_below: int = 500_000
) -> list[str]:
    """Write `count` files into folders below `folder`, `broken` of them truncated; return the paths of those.

    No two files are the same. What is there already is kept.
    """
    bad = set(np.random.default_rng(count).choice(count, broken, replace=False).tolist())
    names = []
    for number in range(count):
        path = folder / f"{number // PER_FOLDER:03d}" / f"{number:06d}.jpg"
        if number in bad:
            names.append(path.relative_to(folder).as_posix())
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            data = picture(number, sizes, unique_below)
            path.write_bytes(data[: len(data) * 2 // 3] if number in bad else data)
    return names


def picture(number: int, sizes: Sizes = SIZES, unique_below: int = 500_000) -> bytes:
    """Return JPEG number so and so: smooth areas, edges and grain, as many bytes as a camera makes of them.

    Those of fewer than `unique_below` pixels are each of their own; of larger ones a few come again and again, their
    files told apart by a comment.
    """
    draw = np.random.default_rng(number)
    chosen = draw.choice(len(sizes), p=np.array([share for *_, share in sizes]) / sum(share for *_, share in sizes))
    width, height, _ = sizes[chosen]
    if width * height < unique_below:
        return _encode(width, height, number)
    base = _base(width, height, int(draw.integers(DIFFERENT)))
    comment = f"number {number}".encode()
    return base[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + base[2:]


@cache
def _base(width: int, height: int, seed: int) -> bytes:
    return _encode(width, height, seed)


def _encode(width: int, height: int, seed: int) -> bytes:
    random = np.random.default_rng((width, seed))
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    tile = random.integers(-14, 15, (256, 256, 1), dtype=np.int16)
    grain = np.tile(tile, (height // 256 + 1, width // 256 + 1, 1))[:height, :width]
    file = io.BytesIO()
    Image.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()
