"""Pictures and texts to try models on: made by arithmetic, so that they are the same everywhere and always."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasette_vision.errors import InvalidArgument, InvalidImage
from datasette_vision.images import decode as images
from datasette_vision.images.preprocess import Preprocess

CANONICAL_TEXT = "a photo of a cat on a purple and gold rug"
CANONICAL_PICTURE = "discs-1"
SAMPLE_TEXTS = (
    CANONICAL_TEXT,
    "a dog",
    "two people walking on a beach at sunset",
    "a close-up photo of a plate of food",
    "red",
    "an aerial view of a city by night, with long exposures of the traffic between the towers",
    "a hand-drawn map of an island",
    "the number 7",
    "happy",
    "a black and white photograph of a steam engine from 1910, at a station with passengers waiting",
    "una foto de un gato",
    "ein rotes Fahrrad vor einer Mauer",
)
MAX_CALIBRATION = 64


def canonical_picture() -> Image.Image:
    """Return CANONICAL_PICTURE: 160 x 120 pixels of gradients with two discs on them, in whole numbers throughout."""
    return _picture(0)


def sample_images(count: int = 12) -> list[Image.Image]:
    """Return different pictures: gradients, discs and noise of several scales."""
    return [_picture(number) for number in range(count)]


def _picture(number: int) -> Image.Image:
    width, height = ((160, 120), (120, 160), (200, 200))[number % 3]
    row, column = np.mgrid[0:height, 0:width].astype(np.int64)
    red = (column * 255 // (width - 1) + 37 * number) % 256
    green = row * 255 // (height - 1)
    blue = (row + column + 53 * number) * 2 % 256
    pixels = np.stack([red, green, blue], axis=2)
    for disc in range(1 + number % 4 + 1):
        across, down = (47 + 31 * disc + 17 * number) % width, (39 + 43 * disc + 29 * number) % height
        radius = 14 + (11 * disc + 7 * number) % 25
        inside = (column - across) ** 2 + (row - down) ** 2 <= radius**2
        pixels[inside] = ((number * 71 + disc * 90) % 256, (200 - disc * 60) % 256, (30 + number * 40) % 256)
    if number % 3 == 2:
        # Noise from a linear congruential generator (Numerical Recipes): the same with every NumPy.
        state = (row * width + column + number) * 1664525 + 1013904223
        cell = 1 << (number % 4)
        noise = (state[::cell, ::cell] >> 8) % 96
        noise = np.repeat(np.repeat(noise, cell, axis=0), cell, axis=1)[:height, :width]
        pixels = np.clip(pixels + noise[:, :, None] - 48, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def calibration(folder: Path | None, spec: Preprocess) -> NDArray[np.float32]:
    """Return pixels (n, 3, h, w) of the images in a folder, at most MAX_CALIBRATION, or of the made ones.

    Raises InvalidArgument when the folder holds no image that can be read.
    """
    if folder is None:
        return np.stack([spec(picture) for picture in sample_images()])
    found: list[NDArray[np.float32]] = []
    for path in sorted(folder.rglob("*")):
        if len(found) == MAX_CALIBRATION:
            break
        if path.is_file():
            try:
                found.append(spec(images.decode(path.read_bytes(), target=spec.target)))
            except InvalidImage:
                continue
    if not found:
        raise InvalidArgument(f"--calibration: {folder}: no image that can be read")
    return np.stack(found)


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows: (n, d), (n, d) -> (n,) float64."""
    left, right = first.astype(np.float64), second.astype(np.float64)
    return (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))


def rounded(values: Sequence[float] | NDArray[np.floating]) -> list[float]:
    """Return floats with seven digits after the point, for a manifest."""
    return [round(float(value), 7) for value in values]
