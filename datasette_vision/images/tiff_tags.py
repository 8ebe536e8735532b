"""TIFF tags, which EXIF uses too. They are untrusted, and come before every other check."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# TIFF 6.0, section 2, and BigTIFF: bytes per value of each field type.
_TIFF_TYPE_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_ORIENTATION_TAG = 0x0112
_SUB_DIRECTORY_TAGS = {0x8769, 0x8825, 0xA005}  # Exif, GPS, interoperability
_PIECES_TAGS = {0x0111, 0x0144}  # StripOffsets, TileOffsets
_MAX_TIFF_PIECES = 200_000  # Pillow handles them in Python, 5 microseconds each
_RATIONAL = {5, 10}
_MAX_RATIONALS = 1000  # 5 microseconds and 300 bytes each; a lens or a position has up to four
_MAX_EXIF_BLOCKS = 16
_SEARCHED = 1 << 20  # bytes at a time
_MAX_TIFF_ENTRIES = 65535  # the most a classic TIFF directory can hold


def exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in an EXIF block with or without its "Exif" prefix; 1 if it contains nothing valid."""
    tiff = re.sub(rb"^(?:Exif\0\0){1,2}", b"", exif)
    for tag, kind, size, _, value in tiff_entries(tiff):
        if tag == _ORIENTATION_TAG and kind in (1, 3, 4) and size == _TIFF_TYPE_SIZES[kind] and 1 <= value <= 8:
            return value
    return 1


def tag_bomb(image_format: str, data: bytes) -> str | None:
    """Why reading the TIFF tags in `data` would fill the memory or take minutes, or None.

    Tags may point anywhere, so many can refer to the same megabytes, and Pillow 11 copies them for each (13 does not).
    In a well-formed file their values lie side by side, so they never add up to more than the file; twice that is
    allowed.
    """
    starts = [0]
    if image_format == "AVIF":  # only its decoder knows where its EXIF is
        starts = [start for magic in _TIFF_MAGIC for start in itertools.islice(_places(data, magic), _MAX_EXIF_BLOCKS)]
        if len(starts) >= _MAX_EXIF_BLOCKS:
            return f"it has {_MAX_EXIF_BLOCKS} or more blocks of EXIF"
    elif image_format != "TIFF":
        return None  # their decoders do not read EXIF
    for start in starts:
        block, announced, entries = data[start:], 0, 0
        directories: list[int | None] = [None]
        for directory in directories:
            for tag, kind, size, position, value in tiff_entries(block, directory):
                entries += 1
                if kind in _TIFF_TYPE_SIZES and position + size <= len(block):
                    announced += size
                if tag in _PIECES_TAGS and size > _MAX_TIFF_PIECES * _TIFF_TYPE_SIZES.get(kind, 1):
                    return f"it is split into more than {_MAX_TIFF_PIECES} pieces"
                if size > _most_bytes(kind):
                    return f"a tag of it has {size // _TIFF_TYPE_SIZES.get(kind, 1)} values"
                if tag in _SUB_DIRECTORY_TAGS and len(directories) < 8:
                    directories.append(value)
                if entries > _MAX_TIFF_ENTRIES or announced > 2 * len(block) + 65536:
                    return f"its tags announce {announced} or more bytes of metadata, found {len(block)}"
    return None


def _most_bytes(kind: int) -> float:
    """How many bytes of values of a type one tag may have: Pillow makes Python objects of numbers."""
    if kind in _RATIONAL:
        return _MAX_RATIONALS * _TIFF_TYPE_SIZES[kind]
    return math.inf if _TIFF_TYPE_SIZES.get(kind, 1) == 1 else _MAX_TIFF_PIECES * _TIFF_TYPE_SIZES[kind]


def _places(data: bytes, part: bytes) -> Iterator[int]:
    """The positions of a byte string.

    A regular expression takes up to 150 times as long, and the GIL is released only between two searches.
    """
    for start in range(0, len(data), _SEARCHED):
        end = start + _SEARCHED + len(part) - 1
        place = data.find(part, start, end)
        while place >= 0:
            yield place
            place = data.find(part, place + 1, end)


def tiff_entries(tiff: bytes, directory: int | None = None) -> Iterator[tuple[int, int, int, int, int]]:
    """The entries of one TIFF directory: (tag, type, bytes of its values, their position, first value as an integer).

    `directory` is its position, None for the file's first. Stops where the bytes end. A malformed header has no
    entries.
    """
    if tiff[:4] not in _TIFF_MAGIC:
        return
    little = tiff[:2] == b"II"
    big = 43 in tiff[2:4]
    counter, entry, pointer = (8, 20, 8) if big else (2, 12, 4)

    def number(position: int, size: int) -> int:
        return int.from_bytes(tiff[position : position + size], "little" if little else "big")

    if directory is None:
        directory = number(8, 8) if big else number(4, 4)
    first = directory + counter
    count = min(number(directory, counter), _MAX_TIFF_ENTRIES + 1)
    for start in range(first, min(first + count * entry, len(tiff) - entry + 1), entry):
        kind = number(start + 2, 2)
        unit = _TIFF_TYPE_SIZES.get(kind, 1)
        size = unit * number(start + 4, pointer)
        inline = start + 4 + pointer
        position = inline if size <= pointer else number(inline, pointer)
        yield number(start, 2), kind, size, position, number(position, unit)
