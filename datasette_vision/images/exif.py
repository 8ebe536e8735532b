"""When and where a photograph was taken, according to its EXIF, which is untrusted."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass

from datasette_vision.images.tiff_tags import tiff_entries

# Exif 2.32: the pointers in the first directory, the times in the Exif directory, the fields of the GPS directory.
EXIF_POINTER, GPS_POINTER = 0x8769, 0x8825
TAKEN, TAKEN_OFFSET, DIGITISED, DIGITISED_OFFSET = 0x9003, 0x9011, 0x9004, 0x9012
LATITUDE_SIDE, LATITUDE, LONGITUDE_SIDE, LONGITUDE = 1, 2, 3, 4

TIME = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)[ T](\d\d):(\d\d):(\d\d)")
OFFSET = re.compile(r"[+-]\d\d:\d\d")
MAX_VALUE_BYTES = 64


@dataclass(frozen=True)
class Taken:
    """The time, in ISO 8601 with an offset if known, and the place, in degrees; None if not given."""

    at: str | None = None
    latitude: float | None = None
    longitude: float | None = None


def read_exif(exif: bytes) -> Taken:
    """Read an EXIF block, with or without its "Exif" prefix. Malformed values count as not given."""
    tiff = re.sub(rb"^(?:Exif\0\0){1,2}", b"", exif)
    pointers = {tag: value for tag, _, _, _, value in tiff_entries(tiff) if tag in (EXIF_POINTER, GPS_POINTER)}
    times = _values(tiff, pointers.get(EXIF_POINTER))
    place = _values(tiff, pointers.get(GPS_POINTER))
    at = _time(times, TAKEN, TAKEN_OFFSET) or _time(times, DIGITISED, DIGITISED_OFFSET)
    latitude = _degrees(tiff, place, LATITUDE, LATITUDE_SIDE, b"S", 90)
    longitude = _degrees(tiff, place, LONGITUDE, LONGITUDE_SIDE, b"W", 180)
    if latitude is None or longitude is None or (latitude, longitude) == (0, 0):  # written before there is a GPS fix
        return Taken(at)
    return Taken(at, latitude, longitude)


def _values(tiff: bytes, directory: int | None) -> dict[int, bytes]:
    """Return the bytes of the small values of a directory, by tag."""
    if not directory:
        return {}
    return {
        tag: tiff[position : position + size]
        for tag, _, size, position, _ in tiff_entries(tiff, directory)
        if size <= MAX_VALUE_BYTES
    }


def _time(values: dict[int, bytes], tag: int, offset_tag: int) -> str | None:
    found = TIME.match(values.get(tag, b"").decode("latin-1").strip())
    if found is None:
        return None
    try:
        time = datetime.datetime(*map(int, found.groups()))  # type: ignore[arg-type]
    except ValueError:
        return None
    offset = values.get(offset_tag, b"").decode("latin-1").strip("\0 ")
    return time.isoformat() + (offset if OFFSET.fullmatch(offset) else "")


def _degrees(
    tiff: bytes, values: dict[int, bytes], tag: int, side_tag: int, negative: bytes, limit: int
) -> float | None:
    """Return degrees from three fractions: degrees, minutes and seconds."""
    data = values.get(tag, b"")
    if len(data) != 24:
        return None
    order: str = "little" if tiff[:2] == b"II" else "big"
    numbers = [int.from_bytes(data[start : start + 4], order) for start in range(0, 24, 4)]  # type: ignore[arg-type]
    parts = [0.0 if not below and not above else above / below if below else math.nan
             for above, below in zip(numbers[::2], numbers[1::2], strict=True)]  # fmt: skip
    degrees = parts[0] + parts[1] / 60 + parts[2] / 3600
    if not 0 <= degrees <= limit:  # excludes NaN
        return None
    return round(-degrees if values.get(side_tag, b"").strip(b"\0 ") == negative else degrees, 7)
