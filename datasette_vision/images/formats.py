"""Inspects the bytes of an image file before decoding: its format, and whether it is safe to open.

This module does not decode pixels or import Pillow. `decode.py` uses it to choose the decoder (`sniff`, `foreign`), to
remove or reject dangerous parts (`split_jpeg`, `split_png`, `png_exif`, `piece_bomb`), and to explain failures
(`truncation`).
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageFormat:
    """A supported format: the suffixes of its files, and its media type if browsers can show it."""

    suffixes: tuple[str, ...]
    media_type: str | None = None


# By Pillow's name. sniff() detects the format of a file.
FORMATS = {
    "JPEG": ImageFormat((".jpg", ".jpeg", ".jpe", ".jfif"), "image/jpeg"),
    "PNG": ImageFormat((".png", ".apng"), "image/png"),
    "WEBP": ImageFormat((".webp",), "image/webp"),
    "GIF": ImageFormat((".gif",), "image/gif"),
    "BMP": ImageFormat((".bmp", ".dib")),
    "TIFF": ImageFormat((".tif", ".tiff")),
    "AVIF": ImageFormat((".avif", ".avifs"), "image/avif"),
    "HEIF": ImageFormat((".heic", ".heif", ".hif")),
}
# Files with other suffixes are not opened in a folder: a million films would take hours on a slow disk.
SUFFIXES = frozenset(suffix for each in FORMATS.values() for suffix in each.suffixes)
MEDIA_TYPES = {name: each.media_type for name, each in FORMATS.items() if each.media_type is not None}

_AVIF_BRANDS = {b"avif", b"avis"}
# ISO/IEC 23008-12 (HEIF), table of brands. For mif1 and msf1 only the compatible brands tell the coding.
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_BMP_HEADER_SIZES = {12, 40, 52, 56, 64, 108, 124}
_BMP_DEPTHS = {1, 2, 4, 8, 16, 24, 32}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Common files that are not supported images, and the advice for each.
_FOREIGN = (
    (b"%PDF-", "a PDF document is not supported: convert its page to PNG"),
    (b"%!PS", "a PostScript drawing is not supported: convert it to PNG"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript drawing is not supported: convert it to PNG"),
    (b"8BPS", "a Photoshop document is not supported: export it as PNG"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL is not supported: convert it to JPEG or PNG"),
    (b"\xff\x0a", "JPEG XL is not supported: convert it to JPEG or PNG"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000 is not supported: convert it to JPEG or PNG"),
    (b"\x00\x00\x01\x00", "a Windows icon is not supported: convert it to PNG"),
    (b"PK\x03\x04", "a ZIP archive is not an image"),
    (b"\x1f\x8b", "gzip-compressed data is not an image: decompress it first"),
    (b"\x1a\x45\xdf\xa3", "a video is not an image: extract a frame first"),
)
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body)[\s>]", re.IGNORECASE)

# A marker that ends entropy-coded JPEG data: not a stuffed zero, not a restart (D0-D7), not fill (ITU T.81, B.1.1).
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# Markers that begin a frame (table B.1): baseline and extended sequential, lossless and hierarchical, progressive.
_JPEG_SEQUENTIAL = {0xC0, 0xC1}
_JPEG_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_JPEG_FRAMES = {0xC0, 0xC1, 0xC3, 0xC5, 0xC7, 0xC9, 0xCB, 0xCD, 0xCF} | _JPEG_PROGRESSIVE
# libjpeg's progressive script has 10 scans, the longest that encoders try has 64.
MAX_JPEG_SCANS = 100
# Each scan visits all pixels: 80 scans of 16 megapixels take 1.5 s. Ten of 100 megapixels are allowed.
MAX_SCANNED_PIXELS = 1_500_000_000
_PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP"}
_MAX_XMP = 1_000_000
MAX_PIECES = 50_000  # segments or chunks; 20 MB in the 8 kB chunks that libpng writes are 2,500


def has_image_suffix(name: str) -> bool:
    """Say whether a file's name or path ends as those of images do."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def sniff(data: bytes) -> str | None:
    """The format of `data` according to its first bytes: one of `FORMATS`, or None. Decodes nothing.

    Two-letter magics are not enough (many texts begin with "BM"), so a BMP's header must be plausible. The fourth byte
    of a JPEG is a marker of 0xC0 or more: read as little-endian float32, such a number is below -7.9, so no unit-length
    embedding is ever mistaken for a JPEG.
    """
    if data[:3] == b"\xff\xd8\xff" and (len(data) < 4 or 0xC0 <= data[3] < 0xFF):
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and data[12:15] in (b"VP8", b""):
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] in _TIFF_MAGIC:
        return "TIFF"
    if data[:2] == b"BM" and _plausible_bmp(data):
        return "BMP"
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        if brands & _AVIF_BRANDS:
            return "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIF"
    return None


def foreign(data: bytes) -> str | None:
    """What this is, if it is well known but not a supported image, as a sentence for the user."""
    for magic, message in _FOREIGN:
        if data.startswith(magic):
            return message
    if data[4:8] == b"ftyp":
        return f"a file of the MP4 family (brand {data[8:12]!r}) is not an image: extract a frame first"
    # The mark of utf-8-sig and white space may come first. UTF-16 text has a zero in every other byte.
    opening = data[:4096].replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    if opening.startswith(b"<"):
        if _HTML.search(opening):
            return "an HTML page is not an image"
        if _SVG.search(opening):
            return "an SVG drawing is not supported: convert it to PNG"
    return None


def piece_bomb(image_format: str, data: bytes) -> str | None:
    """Why a JPEG or PNG consists of so many pieces that reading it would take minutes, or None.

    Pillow handles every segment, chunk and stray byte in Python, and every scan of a JPEG visits all its pixels.
    """
    if image_format == "PNG" and next(itertools.islice(_png_chunks(data), MAX_PIECES, None), None):
        return f"it has more than {MAX_PIECES} chunks"
    if image_format != "JPEG":
        return None
    components, pixels, scans, stray, previous_end, progressive = 0, 0, 0, 0, 2, False
    for number, (marker, start, end) in enumerate(_jpeg_segments(data)):
        if not scans:
            stray += start - 4 - previous_end
        previous_end = end
        if marker in _JPEG_FRAMES and not components:
            components, progressive = data[start + 5] if start + 5 < end else 0, marker in _JPEG_PROGRESSIVE
            height, width = data[start + 1 : start + 3], data[start + 3 : start + 5]
            pixels = int.from_bytes(height, "big") * int.from_bytes(width, "big")
        elif marker == 0xDA:
            scans += 1
            if not progressive and data[start : start + 1] == bytes([components]):
                return None  # sequential and complete in one scan: the decoder reads no other
        if scans > MAX_JPEG_SCANS:
            return f"it has more than {MAX_JPEG_SCANS} scans, which no camera or editor writes"
        if scans > 1 and scans * pixels > MAX_SCANNED_PIXELS:
            return f"it has too many scans for its {pixels / 1e6:.0f} megapixels: {scans} or more"
        if max(number, stray) > MAX_PIECES:
            return f"it has more than {MAX_PIECES} segments or stray bytes"
    return None


def truncation(image_format: str, data: bytes) -> str | None:
    """What is missing at the end of a file that could not be decoded, or None if unknown."""
    total = len(data)
    if image_format == "PNG":
        return _png_truncation(data)
    if image_format == "JPEG" and b"\xff\xd9" not in data[-65536:]:
        return f"no end marker in {total} bytes"
    if image_format == "GIF" and data.rstrip(b"\0")[-1:] != b";":
        return f"no end marker in {total} bytes"
    if image_format == "WEBP" and total < 12 + 8:
        return f"only {total} bytes"
    if image_format in ("WEBP", "BMP"):
        announced = (
            int.from_bytes(data[4:8], "little") + 8 if image_format == "WEBP" else int.from_bytes(data[2:6], "little")
        )
        return f"its header announces {announced} bytes, found {total}" if announced > total else None
    if image_format == "TIFF":
        if total < 8:
            return f"only {total} bytes"
        directory = int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")
        if data[2:4] in (b"*\0", b"\0*") and directory + 2 > total:
            return f"its directory should be at byte {directory}, found {total} bytes"
    if image_format in ("AVIF", "HEIF"):
        return _box_truncation(data)
    return None


def split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG -> (its EXIF block or b"", the same JPEG with an empty segment in its place).

    Pillow reads all of the EXIF when it opens a JPEG, to find its resolution, and warns if it is broken. The empty
    segment stays, because without it the bytes around it could form a new segment.
    """
    exif, rest, kept = b"", [], 0
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xDA:
            break
        if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            exif = exif or data[start + 6 : end]
            rest.append(data[kept : start - 4] + b"\xff\xe1\x00\x02")
            kept = end
    return exif, b"".join([*rest, data[kept:]]) if rest else data


def split_png(data: bytes) -> bytes:
    """A PNG without unneeded chunks, mainly texts, of which 70 kB may become 260 MB.

    The pixels of its first image are kept, their transparency, a colour profile, and XMP for its orientation.
    """
    rest, kept, xmp = [], 8, False
    for name, start, end in _png_chunks(data):
        wanted = name in _PNG_KEPT
        if name == b"iTXt" and not xmp and end - start <= _MAX_XMP:
            wanted = xmp = data[start:end].startswith(b"XML:com.adobe.xmp\0")
        if not wanted:
            rest.append(data[kept : start - 8])
            kept = end + 4
    return b"".join([data[:8], *rest, data[kept:]]) if rest else data


def is_read_in_strips(data: bytes) -> bool:
    """Whether a JPEG is decoded in strips. One with several passes is held as a whole: 2 bytes per sample."""
    components = 0
    for marker, start, end in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:  # ITU T.81, B.2.2: precision, two sizes, the number of components
            components = data[start + 5] if marker in _JPEG_SEQUENTIAL and end > start + 5 else 0
            if not components:
                return False
        elif marker == 0xDA:  # B.2.3: those of the scan that begins here
            return data[start : start + 1] == bytes([components])
    return False


def png_exif(data: bytes) -> bytes:
    """The eXIf chunk of a PNG, or b"". It may come after the pixels, where a lazy decoder has not read it yet."""
    for name, start, end in _png_chunks(data):
        if name == b"eXIf":
            return data[start:end]
    return b""


def _plausible_bmp(data: bytes) -> bool:
    header = int.from_bytes(data[14:18], "little")
    planes_at = 22 if header == 12 else 26
    return (
        header in _BMP_HEADER_SIZES
        and data[planes_at : planes_at + 2] == b"\x01\x00"
        and int.from_bytes(data[planes_at + 2 : planes_at + 4], "little") in _BMP_DEPTHS
    )


def _brands(data: bytes) -> set[bytes]:
    end = min(int.from_bytes(data[:4], "big"), 512)
    return {data[8:12]} | {data[position : position + 4] for position in range(16, end - 3, 4)}


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment's content, up to the end of the image."""
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        marker, start = data[found.start() + 1], found.end() + 2
        if marker == 0xD9:
            return
        if marker in (0x01, 0xD8):
            position = found.end()
            continue
        position = max(start, found.end() + int.from_bytes(data[found.end() : start], "big"))
        yield marker, start, min(position, len(data))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of each chunk's content. The last one may end beyond the data."""
    position = 8
    while position + 8 <= len(data):
        name, start = data[position + 4 : position + 8], position + 8
        end = start + int.from_bytes(data[position : position + 4], "big")
        if not name.isalpha():
            return
        yield name, start, end
        position = end + 4


def _png_truncation(data: bytes) -> str | None:
    for name, start, end in _png_chunks(data):
        if end + 4 > len(data):
            return f"chunk {name.decode()} announces {end - start} bytes, {max(0, len(data) - start)} are left"
        if name == b"IEND":
            return None
    return f"no IEND chunk in {len(data)} bytes"


def _box_truncation(data: bytes) -> str | None:
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:  # a 64-bit size follows the name
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:  # 0 means the last box, up to the end of the file
            return None
        if position + size > len(data):
            name = data[position + 4 : position + 8]
            return f"box {name!r} announces {size} bytes, {len(data) - position} are left"
        position += size
    return None
