"""Image files of every format, whole and damaged: what strategies of `images()` are made of."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from tests import hostile, pictures

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
WIDTH, HEIGHT = 40, 30
LARGEST = 30_000

EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010F] = "Camera"
EXIF.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
EXIF.get_ifd(0x8769)[0x9011] = "+02:00"
EXIF.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0), 3: "E", 4: (13.0, 24.0, 0.0)})
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'


@cache
def seeds(image_format: str) -> tuple[bytes, ...]:
    """Small valid files of a format, in as many of its ways as Pillow writes; none where there is no encoder."""
    scene, exif = pictures.scene(WIDTH, HEIGHT), EXIF.tobytes()
    if image_format == "HEIF":
        return tuple(_heif(scene))
    save: Callable[..., bytes] = lambda picture=scene, **options: pictures.encode(picture, image_format, **options)  # noqa: E731
    good = [save(scene.quantize(64) if image_format == "GIF" else scene)]
    if image_format in ("GIF", "PNG", "WEBP"):
        good.append(pictures.animation(image_format))
    if image_format == "JPEG":
        good += [save(progressive=True, exif=exif), save(quality=30, subsampling=2, restart_marker_blocks=2)]
        good += [save(scene.convert("L"), xmp=XMP), save(scene.convert("CMYK"), icc_profile=b"profile" * 40)]
    if image_format == "PNG":
        modes = [scene.convert(mode) for mode in ("L", "1", "RGBA", "LA", "P")]
        good += [save(picture) for picture in modes]
        good += [save(scene.convert("P"), transparency=3, bits=4), save(exif=exif, icc_profile=b"profile" * 40)]
        rows = b"".join(b"\0" + bytes(range(80)) for _ in range(HEIGHT))
        good += [pictures.raw_png(WIDTH, HEIGHT, 16, 0, rows, pictures.png_chunk(b"tRNS", b"\0\1"))]
    if image_format == "WEBP":
        good += [save(lossless=True), save(scene.convert("RGBA"), exif=exif, xmp=XMP), save(exif=exif)]
    if image_format == "GIF":
        good += [save(scene.quantize(16), interlace=1, transparency=2), save(scene.convert("1"))]
    if image_format == "BMP":
        good += [save(scene.convert(mode)) for mode in ("1", "L", "P", "RGBA")]
        runs = bytes([WIDTH, 7]) * HEIGHT + b"\0\1"
        head = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, len(runs), 0, 0, 256, 0)
        good += [b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + head + bytes(range(256)) * 4 + runs]
    if image_format == "TIFF":
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
            good.append(save(compression=compression))
        good += [save(scene.convert("1"), compression="group4"), save(scene.convert("CMYK")), save(scene.convert("P"))]
        good += [save(scene.convert("RGBA")), save(scene.convert("LAB")), save(exif=EXIF), save(big_tiff=True)]
        for kind in ("uint8", "uint16", "int16", "int32", "float32"):
            good.append(pictures.grey_tiff(np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(kind)))
    if image_format == "AVIF":
        good += [save(scene.convert("RGBA"), exif=exif, xmp=XMP), save(quality=20, subsampling="4:2:0")]
    return tuple(good)


@cache
def hostile_seeds(image_format: str) -> tuple[bytes, ...]:
    """Files of a format that have broken other programs."""
    own = [name for name in hostile.HOSTILE_IMAGES if name.startswith(image_format.lower() + "_")]
    return tuple(data for data in map(hostile.HOSTILE_IMAGES.__getitem__, own) if len(data) <= LARGEST)


def _heif(scene: Image.Image) -> list[bytes]:
    try:
        import pillow_heif
    except ImportError:
        return []
    import io

    files = []
    for mode, options in (("RGB", {}), ("RGBA", {"exif": EXIF.tobytes()}), ("L", {"quality": 20})):
        file = io.BytesIO()
        pillow_heif.from_pillow(scene.convert(mode)).save(file, **options)
        files.append(file.getvalue())
    return files


# What files are made of


def pieces(image_format: str, data: bytes) -> list[bytes]:
    """Cut a file into its chunks, segments, blocks, boxes or directory entries: together they are the file."""
    cuts = sorted({cut for cut in _CUTS.get(image_format, _none)(data) if 0 < cut < len(data)})
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _none(data: bytes) -> list[int]:
    return [14, 54] if data[:2] == b"BM" else []


def _png_cuts(data: bytes) -> list[int]:
    cuts, position = [8], 8
    while position + 8 <= len(data) and len(cuts) < 200:
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        cuts.append(position)
    return cuts


def _jpeg_cuts(data: bytes) -> list[int]:
    cuts, position = [], 0
    while (position := data.find(b"\xff", position)) >= 0 and len(cuts) < 200:
        if data[position + 1 : position + 2] not in (b"", b"\0", b"\xff"):
            cuts.append(position)
        position += 1
    return cuts


def _riff_cuts(data: bytes) -> list[int]:
    cuts, position = [12], 12
    while position + 8 <= len(data) and len(cuts) < 200:
        position += 8 + (int.from_bytes(data[position + 4 : position + 8], "little") + 1) // 2 * 2
        cuts.append(position)
    return cuts


def _gif_cuts(data: bytes) -> list[int]:
    return [6, 13, *(position for position, byte in enumerate(data) if byte in b"\x21\x2c\x3b")][:200]


def _tiff_cuts(data: bytes) -> list[int]:
    order: Any = "little" if data[:2] == b"II" else "big"
    big = 43 in data[2:4]
    at = int.from_bytes(data[8:16] if big else data[4:8], order)
    entry, counter = (20, 8) if big else (12, 2)
    count = min(int.from_bytes(data[at : at + counter], order), 200)
    return [at, *(at + counter + entry * number for number in range(count + 1))]


def _box_cuts(data: bytes) -> list[int]:
    """Boxes within boxes, whose names are letters: wherever there is a length and such a name."""
    return [
        position
        for position in range(0, len(data) - 8)
        if data[position + 4 : position + 8].isalpha()
        and int.from_bytes(data[position : position + 4], "big") < 1 << 16
    ][:200]


_CUTS: dict[str, Callable[[bytes], list[int]]] = {
    "PNG": _png_cuts, "JPEG": _jpeg_cuts, "WEBP": _riff_cuts, "GIF": _gif_cuts, "TIFF": _tiff_cuts,
    "AVIF": _box_cuts, "HEIF": _box_cuts,
}  # fmt: skip


def repaired(image_format: str, data: bytes) -> bytes:
    """Make the checksums and the length of the whole right, so that damage gets past the first look."""
    if image_format == "PNG":
        whole, position = bytearray(data), 8
        while position + 12 <= len(whole):
            end = position + 8 + int.from_bytes(whole[position : position + 4], "big")
            if end + 4 > len(whole):
                break
            whole[end : end + 4] = struct.pack(">I", zlib.crc32(whole[position + 4 : end]))
            position = end + 4
        return bytes(whole)
    if image_format == "WEBP" and len(data) >= 12:
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    if image_format == "BMP" and len(data) >= 6:
        return data[:2] + struct.pack("<I", len(data)) + data[6:]
    return data


# Damage

EXTREMES = sorted(
    {0, 1, 2, 3, 255, 256, 1000, 4095}
    | {(1 << bits) + near for bits in (7, 8, 14, 15, 16, 24, 30, 31, 32, 63) for near in (-1, 0, 1)}
)


# The first bytes, which say what a file is: without them no decoder sees it.
_MAGIC = {"JPEG": 3, "PNG": 8, "WEBP": 15, "GIF": 6, "BMP": 2, "TIFF": 4, "AVIF": 16, "HEIF": 16}


@st.composite
def images(draw: st.DrawFn, image_format: str) -> bytes:
    """Files of a format with a few kinds of damage: to bits, numbers, lengths, pieces, or spliced from another."""
    files, magic = seeds(image_format), _MAGIC[image_format]
    if draw(st.integers(0, 3)) == 3:
        files = hostile_seeds(image_format)
    parts = pieces(image_format, draw(st.sampled_from(files)))
    for _ in range(draw(st.sampled_from((0, 0, 1, 1, 2)))):
        at = draw(st.integers(min(1, len(parts) - 1), len(parts) - 1))
        what = draw(st.sampled_from(("double", "swap", "drop", "many", "other")))
        if what == "drop" and len(parts) > 1:
            del parts[at]
        elif what == "double":
            parts.insert(at, parts[at])
        elif what == "swap":
            other = draw(st.integers(min(1, len(parts) - 1), len(parts) - 1))
            parts[at], parts[other] = parts[other], parts[at]
        elif what == "many" and len(parts[at]) < 200:
            parts[at] *= draw(st.integers(2, 100))
        elif what == "other":
            others = pieces(image_format, draw(st.sampled_from(files)))
            parts.insert(at, draw(st.sampled_from(others)))
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))
    data = bytearray(b"".join(parts))
    for _ in range(draw(st.sampled_from((1, 0, 1, 2, 3, 5)))):
        if len(data) <= magic:
            break
        # Where it matters: at the head of a piece; else anywhere.
        if draw(st.booleans()):
            at = draw(st.sampled_from(starts)) + draw(st.integers(0, 24))
        else:
            at = draw(st.integers(magic, len(data) - 1))
        at = min(len(data) - 1, max(magic, at))
        what = draw(
            st.sampled_from(("bit", "bit", "byte", "byte", "number", "number", "number", "cut", "insert", "end"))
        )
        if what == "bit":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "byte":
            data[at] = draw(st.integers(0, 255))
        elif what == "number":
            size = draw(st.sampled_from((2, 4, 1, 3, 8)))
            value = draw(st.sampled_from(EXTREMES) | st.just(len(data))) & ((1 << 8 * size) - 1)
            data[at : at + size] = value.to_bytes(size, draw(st.sampled_from(("big", "little"))))
        elif what == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif what == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=32))
        else:
            del data[at:]
    whole = bytes(data)
    return repaired(image_format, whole) if draw(st.booleans()) else whole


@st.composite
def tiffs(draw: st.DrawFn) -> bytes:
    """TIFF files made of tags, of which none needs to go with another."""
    sizes = st.sampled_from((1, 2, 7, 16, 33, 200))
    width, height = draw(sizes), draw(sizes)
    samples = draw(st.sampled_from((1, 3, 4, 2, 5)))
    bits = draw(st.sampled_from((8, 1, 2, 4, 12, 16, 24, 32, 64)))
    usual: dict[int, tuple[int, tuple[int, ...]]] = {
        256: (4, (width,)),
        257: (4, (height,)),
        258: (3, (bits,) * samples),
        259: (3, (draw(st.sampled_from((1, 5, 8, 32773, 2, 3, 4, 7, 6, 32946, 34712, 50000))),)),
        262: (3, (draw(st.sampled_from((0, 1, 2, 3, 4, 5, 6, 8, 32803))),)),
        277: (3, (samples,)),
        278: (4, (draw(st.sampled_from((height, 1, 0, 1 << 31))),)),
    }
    for tag in draw(st.lists(st.sampled_from(sorted(usual)), max_size=2)):
        usual.pop(tag, None)
    value = st.sampled_from(EXTREMES).map(lambda number: number & 0xFFFF)
    more = st.tuples(
        st.sampled_from(
            (266, 274, 282, 284, 317, 318, 320, 322, 323, 324, 325, 338, 339, 347, 513, 529, 530, 532, 34665)
        ),
        st.sampled_from((1, 3, 4)),
        st.lists(value, min_size=1, max_size=6).map(tuple),
    )
    for tag, kind, values in draw(st.lists(more, max_size=4)):
        usual[tag] = kind, tuple(number & 0xFF for number in values) if kind == 1 else values
    content = draw(st.sampled_from((bytes(range(256)) * 40, b"", zlib.compress(bytes(9000)), b"\xff" * 5000)))
    return pictures.raw_tiff(usual, content)


def scenes() -> st.SearchStrategy[Image.Image]:
    """Small good pictures."""
    sizes = st.integers(1, 40)
    return st.builds(pictures.scene, sizes, sizes, st.integers(0, 5))
