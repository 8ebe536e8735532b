"""Good pictures for tests, made in memory: the same bytes' worth of picture on every machine, no files on disk."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

# Upright, the four corners of `quadrants()`: top left, top right, bottom left, bottom right.
QUADRANT_COLOURS = ((230, 30, 30), (30, 200, 40), (40, 60, 220), (240, 220, 40))

# What has to be done to an upright picture so that a viewer who applies the EXIF orientation sees it upright again.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def scene(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """A smooth colourful RGB picture, different for each seed, that survives lossy coding."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Four plain rectangles in `QUADRANT_COLOURS`: tells each of the eight orientations from the others."""
    picture = Image.new("RGB", (width, height))
    for index, colour in enumerate(QUADRANT_COLOURS):
        left, top = (index % 2) * width // 2, (index // 2) * height // 2
        picture.paste(colour, (left, top, left + width // 2, top + height // 2))
    return picture


def face(size: int = 96, colour: tuple[int, int, int] = (255, 205, 60)) -> Image.Image:
    """An emoji-like smiling face on transparency, mode RGBA."""
    picture = Image.new("RGBA", (size, size))
    draw = ImageDraw.Draw(picture)
    unit = size / 96
    draw.ellipse([4 * unit, 4 * unit, 92 * unit, 92 * unit], fill=(*colour, 255), outline=(120, 80, 0, 255))
    for left in (28, 58):
        draw.ellipse([left * unit, 30 * unit, (left + 10) * unit, 46 * unit], fill=(60, 40, 0, 255))
    draw.arc([24 * unit, 30 * unit, 72 * unit, 76 * unit], 20, 160, fill=(60, 40, 0, 255), width=max(1, size // 20))
    return picture


def encode(picture: Image.Image, image_format: str, **options: Any) -> bytes:
    """An image file of a Pillow picture."""
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


def jpeg(width: int = 64, height: int = 48, seed: int = 0, **options: Any) -> bytes:
    return encode(scene(width, height, seed), "JPEG", **{"quality": 90, **options})


def png(width: int = 64, height: int = 48, seed: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    return encode(scene(width, height, seed).convert(mode), "PNG", **options)


def picture_file(image_format: str, width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    """`scene()` in any of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, at a quality that keeps colours within about 10."""
    picture = scene(width, height, seed)
    options: dict[str, Any] = {"quality": 90} if image_format in ("JPEG", "WEBP", "AVIF") else {}
    return encode(picture.quantize(256) if image_format == "GIF" else picture, image_format, **options)


def with_orientation(orientation: int, image_format: str = "JPEG", picture: Image.Image | None = None) -> bytes:
    """A file whose stored pixels are turned and whose EXIF says how, so that it is `picture` when seen upright."""
    picture = picture or quadrants()
    method = STORED_AS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if image_format == "WEBP" else {}
    if image_format in ("JPEG", "AVIF"):
        options["quality"] = 95
    return encode(picture if method is None else picture.transpose(method), image_format, exif=exif, **options)


def animation(image_format: str, frames: int = 3) -> bytes:
    """An animated GIF, PNG or WEBP; its first frame is `scene(seed=0)`."""
    pictures = [scene(seed=seed) for seed in range(frames)]
    if image_format == "GIF":
        pictures = [picture.quantize(256) for picture in pictures]
    return encode(pictures[0], image_format, save_all=True, append_images=pictures[1:], duration=100)


def png_chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def raw_png(
    width: int, height: int, depth: int, colour_type: int, rows: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of any bit depth; `rows` with their filter bytes, `before` and `after` are chunks around the pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + before + pixels + after + png_chunk(b"IEND")


def raw_tiff(tags: dict[int, tuple[int, tuple[int, ...]]], pixels: bytes = b"", next_directory: int = 0) -> bytes:
    """A little-endian TIFF: {tag: (type, values)} with types BYTE 1, SHORT 3, LONG 4, FLOAT 11.

    The pixels lie at the end; StripOffsets (273) and StripByteCounts (279) are added when there are any.
    """
    sizes, codes = {1: 1, 3: 2, 4: 4, 11: 4}, {1: "B", 3: "H", 4: "I", 11: "f"}
    if pixels:
        tags = {**tags, 273: (4, (0,)), 279: (4, (len(pixels),))}
    outside_at = 8 + 2 + 12 * len(tags) + 4
    pixels_at = outside_at + sum(sizes[kind] * len(v) for kind, v in tags.values() if sizes[kind] * len(v) > 4)
    if pixels:
        tags[273] = (4, (pixels_at,))
    entries, outside = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        content = struct.pack(f"<{len(values)}{codes[kind]}", *values)
        if len(content) > 4:
            outside += content
            content = struct.pack("<I", outside_at + len(outside) - len(content))
        entries += struct.pack("<HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_directory)
    return b"II*\0" + struct.pack("<I", 8) + directory + outside + pixels


def grey_tiff(values: np.ndarray, photometric: int = 1) -> bytes:
    """A TIFF of one grey channel: uint8, uint16, int16, int32 or float32, shape (height, width)."""
    height, width = values.shape
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {
        256: (4, (width,)),
        257: (4, (height,)),
        258: (3, (values.dtype.itemsize * 8,)),
        259: (3, (1,)),
        262: (3, (photometric,)),
        277: (3, (1,)),
        278: (4, (height,)),
        339: (3, (sample_format,)),
    }
    return raw_tiff(tags, values.astype(values.dtype.newbyteorder("<")).tobytes())


@cache
def large_jpeg(width: int = 4000, height: int = 3000) -> bytes:
    """A 12-megapixel photograph-like JPEG: smooth areas, edges and grain."""
    picture = scene(width, height, seed=7)
    draw = ImageDraw.Draw(picture)
    for index, colour in enumerate(QUADRANT_COLOURS):
        left, top = 300 + 800 * index, 300 + 500 * index
        draw.ellipse([left, top, left + 700, top + 700], fill=colour)
    grain = np.random.default_rng(7).integers(-12, 13, (height, width, 1), dtype=np.int16)
    return encode(Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)), "JPEG", quality=88)
