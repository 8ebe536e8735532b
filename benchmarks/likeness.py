"""How well the perceptual hash tells copies of a picture from other pictures, and how long groups of a million take.

python benchmarks/likeness.py [FOLDER]

Over the photographs in FOLDER, or made ones: bits that differ between a picture and its copies, and between pictures.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from generated import picture
from PIL import Image, ImageEnhance

from datasette_vision.demo.demo import read_archive
from datasette_vision.errors import InvalidImage
from datasette_vision.images import decode as images
from datasette_vision.images import perceptual_hash


def coded(picture: Image.Image, image_format: str, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, image_format, quality=quality)
    return images.decode(file.getvalue())


def scaled(picture: Image.Image, factor: float) -> Image.Image:
    return picture.resize((max(8, round(picture.width * factor)), max(8, round(picture.height * factor))))


def cropped(picture: Image.Image, share: float) -> Image.Image:
    x, y = round(picture.width * share), round(picture.height * share)
    return picture.crop((x, y, picture.width - x, picture.height - y))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 90": lambda picture: coded(picture, "JPEG", 90),
    "JPEG, quality 40": lambda picture: coded(picture, "JPEG", 40),
    "WebP, quality 60": lambda picture: coded(picture, "WEBP", 60),
    "half the size": lambda picture: scaled(picture, 0.5),
    "a quarter of the size, JPEG": lambda picture: coded(scaled(picture, 0.25), "JPEG", 75),
    "10 % brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.1),
    "10 % more contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1.1),
    "1 % cut off each edge": lambda picture: cropped(picture, 0.01),
}


def samples(folder: str | None) -> Iterator[Image.Image]:
    if folder is None:
        yield from (images.decode(picture(number), target=400) for number in range(300))
        yield from (images.decode(emoji.image) for emoji in list(read_archive())[::12])
        return
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            try:
                yield images.decode(path.read_bytes(), target=400)
            except InvalidImage:
                continue


def difference(a: bytes | None, b: bytes | None) -> tuple[int, int] | None:
    """Return how many bits of the lower half, and of all, differ; None when one has no hash."""
    if a is None or b is None:
        return None
    bits = np.unpackbits(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8))
    return int(bits[:64].sum()), int(bits.sum())


def found(pairs: list[tuple[int, int] | None]) -> str:
    there = [pair for pair in pairs if pair is not None]
    near = sum(low <= perceptual_hash.MAX_LOW and all_ <= perceptual_hash.MAX_ALL for low, all_ in there)
    low, every = np.array(there).T
    return (
        f"{100 * near / len(there):7.3f} % grouped; bits of the lower half: median {np.median(low):.0f},"
        f" 1 to 99 % {np.percentile(low, 1):.0f} to {np.percentile(low, 99):.0f}; of all: {np.median(every):.0f},"
        f" {np.percentile(every, 1):.0f} to {np.percentile(every, 99):.0f}"
    )


def main() -> None:
    pictures = list(samples(sys.argv[1] if len(sys.argv) > 1 else None))
    hashes = [perceptual_hash.perceptual_hash(picture) for picture in pictures]
    print(f"{len(pictures)} pictures, {sum(one is None for one in hashes)} of them without detail")
    for name, copy in COPIES.items():
        pairs = [
            difference(one, perceptual_hash.perceptual_hash(copy(picture)))
            for one, picture in zip(hashes, pictures, strict=True)
        ]
        print(f"{name:29}{found(pairs)}")
    others = [difference(a, b) for number, a in enumerate(hashes) for b in hashes[:number]]
    print(f"{'another picture':29}{found(others)}")
    began = time.perf_counter()
    perceptual_hash.perceptual_hash(pictures[0])
    print(f"a hash: {1000 * (time.perf_counter() - began):.1f} ms")
    for count in (100_000, 1_000_000):
        random = np.random.default_rng(1).integers(0, 256, (count, perceptual_hash.HASH_BYTES), dtype=np.uint8)
        random[1::50] = random[::50]
        random[1::50, 3] ^= 1
        rows = [row.tobytes() for row in random]
        began = time.perf_counter()
        groups = perceptual_hash.groups(rows)
        seconds = time.perf_counter() - began
        print(f"groups of {count:,}: {seconds:.1f} s, {(groups != np.arange(count)).sum():,} duplicates found")


if __name__ == "__main__":
    main()
