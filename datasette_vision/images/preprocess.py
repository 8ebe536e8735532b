"""From an image to the array that an image tower expects, according to its specification."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Size:
    """The target of resizing: the shorter edge at `shortest_edge` pixels, or exactly `height` x `width`."""

    shortest_edge: int | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes pixels: resize, centre crop, scale to 0..1, then (x - mean) / std for each channel."""

    resize: Size
    crop_height: int
    crop_width: int
    resample: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    _scale: NDArray[np.float32] = field(init=False, repr=False, compare=False)
    _shift: NDArray[np.float32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mean, std = np.array(self.mean, dtype=np.float64), np.array(self.std, dtype=np.float64)
        object.__setattr__(self, "_scale", (1 / (255 * std)).astype(np.float32)[:, None, None])
        object.__setattr__(self, "_shift", (mean / std).astype(np.float32)[:, None, None])

    @property
    def target(self) -> int:
        """The shorter edge, in pixels, that is needed at most. A decoder need not keep more than twice that."""
        return self.resize.shortest_edge or max(self.resize.height or 0, self.resize.width or 0)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Turn an RGB image into pixels of shape (3, crop_height, crop_width), float32."""
        cropped = self._resize_and_crop(image)
        pixels = np.asarray(cropped, dtype=np.uint8).transpose(2, 0, 1).astype(np.float32)
        pixels *= self._scale
        pixels -= self._shift
        return pixels

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        """Resize by the rule of `resize`, then crop the centre, padded with black if the image is smaller.

        Same as transformers and open_clip, to 1 of 255 (the rounding of Pillow's box to float32).
        """
        width, height = image.size
        if self.resize.shortest_edge is not None:
            # Same as transformers and open_clip: the longer edge is truncated to whole pixels.
            edge = self.resize.shortest_edge
            new_width = edge if width <= height else int(edge * width / height)
            new_height = edge if height <= width else int(edge * height / width)
        else:
            new_width, new_height = self.resize.width or width, self.resize.height or height
        left, top = (new_width - self.crop_width) // 2, (new_height - self.crop_height) // 2
        right, bottom = left + self.crop_width, top + self.crop_height
        visible = (max(left, 0), max(top, 0), min(right, new_width), min(bottom, new_height))
        part = _resize_part(image, (new_width, new_height), visible, RESAMPLE[self.resample])
        if part.size == (self.crop_width, self.crop_height):
            return part
        canvas = Image.new("RGB", (self.crop_width, self.crop_height))
        canvas.paste(part, (visible[0] - left, visible[1] - top))
        return canvas


def _resize_part(
    image: Image.Image, size: tuple[int, int], part: tuple[int, int, int, int], resample: Image.Resampling
) -> Image.Image:
    """Return image.resize(size, resample).crop(part) without making the rest of it.

    The rest can be large: a strip of 1 x 100,000 pixels would become one of 224 x 22,400,000. It resizes horizontally
    first, then vertically, with whole numbers in between, like Pillow up to version 12, with which the models were
    trained. Later versions choose the order by the sizes, and the order matters: up to 40 of 255 in the noise of a test
    image.
    """
    left, top, right, bottom = part
    across, down = image.width / size[0], image.height / size[1]
    # Only the visible rows: no filter of Pillow reaches further than 3 pixels of the larger scale.
    reach = 3 * max(down, 1) + 1
    first, last = max(0, math.floor(top * down - reach)), min(image.height, math.ceil(bottom * down + reach))
    rows = image.crop((0, first, image.width, last)) if (first, last) != (0, image.height) else image
    rows = rows.resize(
        (right - left, rows.height), resample, box=(left * across, 0, min(right * across, image.width), rows.height)
    )
    box = (0, top * down - first, rows.width, min(bottom * down - first, rows.height))
    return rows.resize((rows.width, bottom - top), resample, box=box)
