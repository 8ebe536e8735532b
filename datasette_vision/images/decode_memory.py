"""Predicts the peak memory of decoding an image, in bytes, from its header.

The factors are measured: `python -m benchmarks.decode_memory` prints what each format and mode takes beside the
prediction of this module, which must be higher.
"""

from __future__ import annotations

from typing import Any

from datasette_vision.images import formats

# Bytes per pixel of Pillow's modes in memory; 4 for all others.
_SOURCE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_RGB = 4
# Libraries that decode into separate memory, in bytes per pixel until the image is made: measured 12.3 (two canvases
# and a copy), 10.1 and 9.6. For AVIF, film grain takes another copy, which no encoder here makes; more than 8 bits take
# twice the planes.
_WEBP, _AVIF, _AVIF_DEEP, _HEIF = 12.5, 13, 19, 12
# Pillow decodes a run-length coded BMP in Python, into a list of bytes that is copied twice.
_BMP_RUNS = 4
# A JPEG with several passes is held as coefficients of 2 bytes, in whole blocks: measured 6.3 for three components.
_COEFFICIENT = 2.1
# The maximum number of copies of the file that the decoder makes, besides the bytes that it is given.
_FILE_COPIES = {"WEBP": 2, "HEIF": 2}
# Buffers, tables and threads, independent of the size.
_FIXED = 3_000_000
# The WebP encoder with its input, per pixel of a thumbnail: measured 8.
_THUMBNAIL = 10


def decoding_bytes(image_format: str, image: Any, data: bytes, stored_pixels: int, turned: bool) -> int:
    """The bytes that decoding takes until the image is upright RGB.

    `image` is an opened Pillow image, with draft mode applied, `data` the decoder's input, `stored_pixels` those of the
    file, and `turned` whether the image is rotated afterwards.
    """
    width, height = image.size
    pixels = width * height
    source = _SOURCE.get(image.mode, 4)
    converted = image.mode != "RGB" or "transparency" in image.info
    peak = float(pixels * (source + (_RGB if converted else 0)))
    if turned:
        peak = max(peak, 2 * _RGB * pixels)
    elif height > width:  # the part of a tall image that is cut out to be resized is copied: see preprocess.py
        peak = max(peak, _RGB * (pixels + width * width))
    if image_format == "JPEG" and not formats.is_read_in_strips(data):
        peak = max(peak, pixels * source + _COEFFICIENT * max(1, len(image.layer)) * stored_pixels)
    elif image_format == "TIFF":
        upright = 2 if image.tag_v2.get(0x0112, 1) != 1 else 1  # Pillow rotates it in the mode of the file
        peak = max(peak, upright * pixels * source, pixels * source + _piece(image))
    elif image_format == "BMP" and image.tile[0][0] == "bmp_rle":
        peak = max(peak, _BMP_RUNS * pixels)
    elif image_format in ("WEBP", "AVIF", "HEIF"):
        deep = image_format == "AVIF" and not _is_eight_bit_avif(data)
        peak = max(peak, pixels * {"WEBP": _WEBP, "AVIF": _AVIF_DEEP if deep else _AVIF, "HEIF": _HEIF}[image_format])
    return int(peak) + (1 + _FILE_COPIES.get(image_format, 0)) * len(data) + _FIXED


def thumbnail_bytes(picture: tuple[int, int], longest: int) -> int:
    """The bytes of a thumbnail besides the file: for a decoded image of this size, `longest` pixels long."""
    width, height = picture
    across = min(longest, width)
    return _RGB * (width * height + across * height) + _THUMBNAIL * across * min(longest, height) + _FIXED


def _piece(image: Any) -> int:
    """The bytes of the strip or tile that libtiff decodes at a time; none for an uncompressed file."""
    if not image.use_load_libtiff:
        return 0
    tags = image.tag_v2
    width, height = image.size if tags.get(0x0112, 1) < 5 else image.size[::-1]
    rows, across, down = tags.get(278), tags.get(322), tags.get(323)
    if isinstance(across, int) and isinstance(down, int):
        pixels = across * down
    else:
        pixels = width * min(height, rows if isinstance(rows, int) and rows > 0 else height)
    bits = tags.get(258, (1,))
    samples = tags.get(277, 1)
    deepest = max(bits, default=1) if isinstance(bits, tuple) else bits
    size = pixels * deepest * max(samples if isinstance(samples, int) else 1, len(bits)) // 8
    # YCbCr becomes RGBA in libtiff, in a separate raster.
    return size + _RGB * pixels if tags.get(262) == 6 else size


def _is_eight_bit_avif(data: bytes) -> bool:
    """Whether every AV1 configuration box in a file says 8 bits, and there is at least one."""
    found, position = False, data.find(b"av1C")
    while position >= 0:
        if int.from_bytes(data[position + 6 : position + 7], "big") & 0x40:  # AV1-ISOBMFF, 2.3.3: high_bitdepth
            return False
        found, position = True, data.find(b"av1C", position + 4)
    return found
