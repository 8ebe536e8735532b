"""images/decode_memory.py: what an image is expected to take is as much as its format needs, and not much more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from datasette_vision.images import budget as budgets
from datasette_vision.images.budget import DecodeBudget
from datasette_vision.images.decode import ImageLimits
from datasette_vision.images.decoder import Decoder
from tests import pictures

MEGABYTE = 1_000_000


def reserved(data: bytes, target: int | None = None) -> int:
    """What is held while a decoded image is used."""
    budget = DecodeBudget(1 << 40)
    return Decoder(ImageLimits(), budget).decode(data, lambda picture: budget.held, target)


def bytes_a_pixel(make: Callable[[int, int], bytes]) -> float:
    """What is reserved for each pixel, beside what is reserved for any image and for the file."""
    large, small = make(800, 600), make(400, 300)
    return (reserved(large) - len(large) - reserved(small) + len(small)) / (800 * 600 - 400 * 300)


@pytest.mark.parametrize(
    ("make", "least", "most"),
    [
        (lambda width, height: pictures.jpeg(width, height, progressive=True), 6.3, 11),  # all coefficients are held
        (pictures.png, 4, 5),
        (lambda width, height: pictures.png(width, height, mode="RGBA"), 8, 9),
        (lambda width, height: pictures.encode(pictures.scene(width, height), "WEBP"), 12, 14),
        (lambda width, height: pictures.encode(pictures.scene(width, height), "AVIF", speed=10), 10, 14),
        (lambda width, height: pictures.grey_tiff(np.zeros((height, width), "f4")), 8, 13),
    ],
    ids=["progressive JPEG", "PNG", "transparent PNG", "WebP", "AVIF", "TIFF of floats"],
)
def test_bytes_a_pixel_by_format(make: Callable[[int, int], bytes], least: float, most: float) -> None:
    found = bytes_a_pixel(make)
    assert least <= found <= most
    # A photo of 12 megapixels is welcome on a machine of 512 MB.
    assert 12e6 * found + 8 * MEGABYTE < budgets.default_bytes(512 << 20)


def test_a_jpeg_costs_what_is_decoded_of_it() -> None:
    data = pictures.jpeg(1600, 1200)
    assert reserved(data) - reserved(data, 100) == 4 * (1600 * 1200 - 400 * 300)  # a quarter of each side


def test_a_strip_of_a_tiff_is_counted() -> None:
    sizes = []
    for rows in (10, 1000):
        data = pictures.encode(pictures.scene(1000, 1000), "TIFF", compression="tiff_lzw", tiffinfo={278: rows})
        sizes.append(reserved(data) - 2 * len(data))
    assert sizes[1] > sizes[0] + 2 * MEGABYTE
