"""Decoding images within limits: for each file, and for the memory of all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from datasette_vision.images import decode as images
from datasette_vision.images.budget import DecodeBudget
from datasette_vision.images.decode import DecodedImage, ImageLimits

T = TypeVar("T")


@dataclass(frozen=True)
class Decoder:
    """Decodes all images in this process, with one memory budget. Thread-safe.

    Each method waits until there is memory. It raises InvalidImage for an image that needs more than the whole budget,
    and Busy or DeadlineExceeded if none becomes free in time.
    """

    limits: ImageLimits
    budget: DecodeBudget

    def decode(self, data: bytes, use: Callable[[Image.Image], T], target: int | None = None) -> T:
        """Return the result of `use` for the image from images.decode(). `use` must not keep the image. Raises
        InvalidImage.
        """
        with self.budget.holding() as reservation:
            return use(images.decode(data, limits=self.limits, target=target, reservation=reservation))

    def decode_once(self, data: bytes, use: Callable[[DecodedImage], T], target: int, longest: int | None = None) -> T:
        """Return what `use` makes of an image, as images.decode_once() gives it; it must not keep it. InvalidImage."""
        with self.budget.holding() as reservation:
            return use(images.decode_once(data, target, longest, self.limits, reservation))

    def thumbnail(self, data: bytes, pixels: int) -> bytes:
        """Return a small WebP file, like images.thumbnail(). Raises InvalidArgument or InvalidImage."""
        with self.budget.holding() as reservation:
            return images.thumbnail(data, pixels, self.limits, reservation)

    def error(self, data: bytes) -> str | None:
        """Return why an image is refused, like images.error(), or None."""
        with self.budget.holding() as reservation:
            return images.error(data, self.limits, reservation)
