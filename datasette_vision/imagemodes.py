"""Every way of storing colours that the decoders produce -> 8-bit RGB, as a person would see it on white paper."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def to_rgb(image: Any, data: bytes) -> Image.Image:
    """A decoded Pillow image of any mode -> one of mode "RGB" and the same size.

    `image` is a PIL.ImageFile.ImageFile whose pixels are loaded, `data` the file it came from. Transparency is laid
    over white. CMYK and Lab become RGB by Pillow's own conversions; embedded colour profiles are ignored.
    """
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey_8_bits(image)).convert("RGB")
    transparency = image.info.get("transparency")
    if image.format == "PNG" and transparency is not None:
        # Pillow keeps tRNS at the file's bit depth (byte 24), while the pixels are at 8 bits by now.
        depth = data[24]
        if image.mode == "L" and depth < 8:
            image.info["transparency"] = min(255, transparency * (255 // (2**depth - 1)))
        elif image.mode == "RGB" and depth == 16:
            image.info["transparency"] = tuple(value >> 8 for value in transparency)
    if image.mode == "La":  # Pillow knows no direct way
        image = image.convert("LA")
    if transparency is not None or image.mode in ("LA", "PA", "RGBA", "RGBa"):
        image = image if image.mode == "RGBA" and transparency is None else image.convert("RGBA")
        picture = Image.new("RGB", image.size, "white")
        picture.paste(image, mask=image)
        return picture
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_8_bits(image: Any) -> np.ndarray:
    """Grey values of more than 8 bits, modes I;16, I and F -> (height, width) uint8, scaled and never clipped."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    values = np.asarray(image)
    if values.dtype.kind == "u":
        white = 4095 if tags.get(258) == (12,) else 65535  # BitsPerSample
        grey = np.minimum(np.rint(np.arange(65536) * (255 / white)), 255).astype(np.uint8)[values]
        if (transparent := image.info.get("transparency")) is not None:
            grey[values == transparent] = 255
    else:
        grey = _stretched(values, whole_numbers=image.mode == "I")
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero
        np.subtract(255, grey, out=grey)
    return grey


def _stretched(values: np.ndarray, whole_numbers: bool) -> np.ndarray:
    """32-bit grey values, whose white no format defines -> uint8 of the same shape.

    White is the least of 1 (not for whole numbers), 255 and 65535 that the values fit under. Values that are negative
    or larger still, as elevations are, go from black at the lowest to white at the highest. Not-finite ones are black.
    """
    values = values.astype(np.float32)
    finite = np.isfinite(values)
    black, white = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    if black >= 0 and white <= 65535:
        black, white = (
            0.0,
            next(usual for usual in ((255, 65535) if whole_numbers else (1, 255, 65535)) if white <= usual),
        )
    values[~finite] = black
    with np.errstate(all="ignore"):  # a range near the ends of float32
        scale = 255 / (white - black) if white > black else 0.0
        values *= np.float32(scale)
        values -= np.float32(black * scale)
        return np.rint(np.clip(np.nan_to_num(values), 0, 255)).astype(np.uint8)
