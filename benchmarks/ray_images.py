"""Pictures for the benchmarks of bulk work: photograph-like JPEGs, some broken, and comparing what was made of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasette_vision.files.parquet import open_shard, shards
from datasette_vision.files.storage import place

SIZES = ((320, 240), (640, 480), (640, 480), (1024, 768), (1600, 1200))


def write(folder: Path, count: int, broken: int = 0, sizes: tuple[tuple[int, int], ...] = SIZES) -> None:
    """Write `count` JPEGs, `broken` of them truncated, of no format, or empty; each is another picture."""
    folder.mkdir(parents=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize(sizes[number % len(sizes)], Image.Resampling.BICUBIC).save(file, "JPEG", quality=88)
        content = file.getvalue()
        if number * broken // count != (number + 1) * broken // count:
            content = (content[: len(content) // 2], b"no image", b"")[number % 3]
        (folder / f"{number:06}.jpg").write_bytes(content)


def rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows of an output in the order of their paths."""
    found = [row for shard in shards(place(str(out))) for row in open_shard(shard).read().to_pylist()]
    return sorted(found, key=lambda row: row["path"])


def compare(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> tuple[bool, float, bool]:
    """Return (whether all but embeddings is the same, the largest difference in those, whether all is to the bit)."""
    plain = [
        [{key: value for key, value in row.items() if key != "embedding"} for row in side] for side in (found, expected)
    ]
    same = plain[0] == plain[1]
    largest = 0.0
    if same:
        for one, other in zip(found, expected, strict=True):
            if (one["embedding"] is None) != (other["embedding"] is None):
                return False, float("inf"), False
            if one["embedding"] is not None:
                largest = max(largest, float(np.abs(np.subtract(one["embedding"], other["embedding"])).max()))
    return same, largest, found == expected
