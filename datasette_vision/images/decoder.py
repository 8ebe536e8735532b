"""Decoding images within limits: of a file, and of the memory that all of them take together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from datasette_vision.images import decode as images
from datasette_vision.images.budget import DecodeBudget
from datasette_vision.images.decode import ImageLimits

T = TypeVar("T")


@dataclass(frozen=True)
class Decoder:
    """The way of everything that decodes an image in this process: one memory budget for all. Thread-safe.

    Each method waits until there is memory. It raises InvalidImage for an image that needs more than there ever is, and
    Busy or DeadlineExceeded when none comes free in time.
    """

    limits: ImageLimits
    budget: DecodeBudget

    def decode(self, data: bytes, use: Callable[[Image.Image], T], target: int | None = None) -> T:
        """Return what `use` makes of the picture, as images.decode() gives it; it must not keep it. InvalidImage."""
        with self.budget.holding() as reservation:
            return use(images.decode(data, limits=self.limits, target=target, reservation=reservation))

    def thumbnail(self, data: bytes, pixels: int) -> bytes:
        """Return a small WebP file, as images.thumbnail() does. Raises InvalidArgument or InvalidImage."""
        with self.budget.holding() as reservation:
            return images.thumbnail(data, pixels, self.limits, reservation)

    def error(self, data: bytes) -> str | None:
        """Return why an image is refused, as images.error() does, or None."""
        with self.budget.holding() as reservation:
            return images.error(data, self.limits, reservation)
