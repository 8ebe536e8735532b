"""From a picture to the array an image tower expects, as its specification says."""

from __future__ import annotations

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
    """Where resizing ends: the shorter edge at `shortest_edge` pixels, or exactly `height` x `width`."""

    shortest_edge: int | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes pixels: resize, centre crop, scale to 0..1, then (x - mean) / std for each channel."""

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
        """The shorter edge, in pixels, that a picture needs at most: a decoder need not keep more than twice that."""
        return self.resize.shortest_edge or max(self.resize.height or 0, self.resize.width or 0)

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Turn an RGB picture into pixels of shape (3, crop_height, crop_width), float32."""
        cropped = self._resize_and_crop(image)
        pixels = np.asarray(cropped, dtype=np.uint8).transpose(2, 0, 1).astype(np.float32)
        pixels *= self._scale
        pixels -= self._shift
        return pixels

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        """Resize so that the crop is filled, then cut out its centre.

        Only the part of the picture that ends up in the crop is resized: the result is the same, and a strip of
        1 x 100,000 pixels does not become one of 224 x 22,400,000 on the way.
        """
        width, height = image.size
        if self.resize.shortest_edge is not None:
            # As transformers and open_clip do: the longer edge is truncated to whole pixels.
            edge = self.resize.shortest_edge
            new_width = edge if width <= height else int(edge * width / height)
            new_height = edge if height <= width else int(edge * height / width)
        else:
            new_width, new_height = self.resize.width or width, self.resize.height or height
        left, top = (new_width - self.crop_width) // 2, (new_height - self.crop_height) // 2
        if left < 0 or top < 0:
            # The resized picture is smaller than the crop: black around it, as transformers pads.
            resized = image.resize((new_width, new_height), RESAMPLE[self.resample])
            return resized.crop((left, top, left + self.crop_width, top + self.crop_height))
        across, down = width / new_width, height / new_height
        box = (left * across, top * down, (left + self.crop_width) * across, (top + self.crop_height) * down)
        box = (box[0], box[1], min(box[2], width), min(box[3], height))
        return image.resize((self.crop_width, self.crop_height), RESAMPLE[self.resample], box=box)
