"""Converts decoded images of any mode to RGB, so that a model sees what a person sees on white paper.

It works on bands of rows: intermediate results are as large as a band, never another copy of the whole image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

BAND_PIXELS = 1 << 18


def to_rgb(image: Any, data: bytes) -> Image.Image:
    """A decoded Pillow image of any mode -> one of mode "RGB" and the same size; the same object if it is one already.

    `image` is a PIL.Image.Image with loaded pixels and the attributes of its format, `data` the file it came from.
    Transparency is laid over white. CMYK and Lab are converted by Pillow. Embedded colour profiles are ignored.
    """
    grey = _Grey(image) if image.mode.startswith(("I", "F")) else None
    transparency = image.info.get("transparency")
    if image.format == "PNG" and transparency is not None and grey is None:
        # Pillow keeps tRNS at the file's bit depth (byte 24), while the pixels already have 8 bits.
        depth = data[24]
        if image.mode == "L" and depth < 8:
            image.info["transparency"] = min(255, transparency * (255 // (2**depth - 1)))
        elif image.mode == "RGB" and depth == 16:
            image.info["transparency"] = tuple(value >> 8 for value in transparency)
    if image.mode == "RGB" and transparency is None:
        return image
    picture = Image.new("RGB", image.size, "white")
    for top, band in _bands(image):
        if grey is not None:
            picture.paste(Image.fromarray(grey.to_8_bits(np.asarray(band))), (0, top))
            continue
        if band.mode == "La":  # Pillow has no direct conversion
            band = band.convert("LA")
        if transparency is not None or band.mode in ("LA", "PA", "RGBA", "RGBa"):
            band = band if band.mode == "RGBA" and transparency is None else band.convert("RGBA")
            picture.paste(band, (0, top), mask=band)
        else:
            picture.paste(band.convert("RGB"), (0, top))
    return picture


def _bands(image: Any) -> Iterator[tuple[int, Any]]:
    """The image in bands of whole rows: (top, band)."""
    height = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


class _Grey:
    """Grey values of more than 8 bits, modes I;16, I and F -> uint8, scaled and never clipped.

    For 32-bit values no format defines white. It is the smallest of 1 (not for whole numbers), 255 and 65535 that no
    value exceeds. Values that are negative or still larger, such as elevations, range from black at the lowest to white
    at the highest. Values that are not finite are black.
    """

    def __init__(self, image: Any) -> None:
        tags = image.tag_v2 if image.format == "TIFF" else {}
        self._inverted = tags.get(262) == 0  # PhotometricInterpretation: white is zero
        self._transparent = image.info.get("transparency")
        self._table: np.ndarray | None = None
        if image.mode.startswith("I;16"):
            white = 4095 if tags.get(258) == (12,) else 65535  # BitsPerSample
            self._table = np.minimum(np.rint(np.arange(65536) * (255 / white)), 255).astype(np.uint8)
        else:
            self._black, self._white = _range(image)

    def to_8_bits(self, values: np.ndarray) -> np.ndarray:
        """(height, width) of the image's own type -> uint8 of the same shape."""
        if self._table is not None:
            grey = self._table[values]
            if self._transparent is not None:
                grey[values == self._transparent] = 255
        else:
            grey = self._stretched(values)
        if self._inverted:
            np.subtract(255, grey, out=grey)
        return grey

    def _stretched(self, values: np.ndarray) -> np.ndarray:
        black, white = self._black, self._white
        values = values.astype(np.float32)
        values[~np.isfinite(values)] = black
        with np.errstate(all="ignore"):  # a range near the ends of float32
            scale = 255 / (white - black) if white > black else 0.0
            values *= np.float32(scale)
            values -= np.float32(black * scale)
            return np.rint(np.clip(np.nan_to_num(values), 0, 255)).astype(np.uint8)


def _range(image: Any) -> tuple[float, float]:
    """The values of a 32-bit grey image that become black and white."""
    lowest, highest = [], []
    for _, band in _bands(image):
        values = np.asarray(band).astype(np.float32)
        finite = values[np.isfinite(values)]
        if finite.size:
            lowest.append(float(finite.min()))
            highest.append(float(finite.max()))
    black, white = (min(lowest), max(highest)) if lowest else (0.0, 0.0)
    if black < 0 or white > 65535:
        return black, white
    return 0.0, next(usual for usual in ((255, 65535) if image.mode == "I" else (1, 255, 65535)) if white <= usual)
