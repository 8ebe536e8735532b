"""images/exif.py: when and where, from files of every kind, and never an error."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from datasette_vision.images import decode as images
from datasette_vision.images import exif
from datasette_vision.images.exif import Taken
from tests import pictures


def block(taken: dict[int, Any] | None = None, place: dict[int, Any] | None = None) -> Image.Exif:
    result = Image.Exif()
    result[0x010F] = "Camera"  # Pillow writes no EXIF without a tag in the first directory
    result.get_ifd(exif.EXIF_POINTER).update(taken or {})
    result.get_ifd(exif.GPS_POINTER).update(place or {})
    return result


def degrees(*parts: float) -> tuple[IFDRational, ...]:
    return tuple(IFDRational(round(part * 10000), 10000) for part in parts)


LONDON = {1: "N", 2: degrees(51, 30, 26.5), 3: "W", 4: degrees(0, 7, 39.9)}
SYDNEY = {1: "S", 2: degrees(33, 51, 31.32), 3: "E", 4: degrees(151, 12, 50.4)}
NOON = {exif.TAKEN: "2024:05:01 12:00:30"}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_formats(image_format: str) -> None:
    taken = NOON | {exif.TAKEN_OFFSET: "+02:00"}
    options: dict[str, Any] = {"exif": block(taken, LONDON)}
    if image_format == "TIFF":
        options = {"tiffinfo": ImageFileDirectory_v2()}
        options["tiffinfo"][exif.EXIF_POINTER] = taken
        options["tiffinfo"][exif.GPS_POINTER] = LONDON
    found = exif.read_exif(images.exif(pictures.encode(pictures.scene(), image_format, **options)))
    assert found.at == "2024-05-01T12:00:30+02:00"
    assert found.latitude == pytest.approx(51.5073611, abs=1e-6)
    assert found.longitude == pytest.approx(-0.1277500, abs=1e-6)


@pytest.mark.parametrize(
    ("taken", "at"),
    [
        (NOON, "2024-05-01T12:00:30"),
        (NOON | {exif.TAKEN_OFFSET: "Z"}, "2024-05-01T12:00:30"),
        ({exif.TAKEN: "2024-05-01T12:00:30"}, "2024-05-01T12:00:30"),
        ({exif.DIGITISED: "2023:01:02 03:04:05"}, "2023-01-02T03:04:05"),
        ({exif.TAKEN: "0000:00:00 00:00:00"}, None),
        ({exif.TAKEN: "0000:00:00 00:00:00", exif.DIGITISED: "2023:01:02 03:04:05"}, "2023-01-02T03:04:05"),
        ({exif.TAKEN: "2024:13:01 12:00:30"}, None),
        ({exif.TAKEN: "    :  :     :  :  "}, None),
        ({exif.TAKEN: "yesterday"}, None),
        ({exif.TAKEN: ""}, None),
        ({}, None),
    ],
)
def test_times(taken: dict[int, Any], at: str | None) -> None:
    assert exif.read_exif(block(taken).tobytes()) == Taken(at)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (SYDNEY, (-33.8587, 151.2140)),
        (LONDON | {1: "N\0", 3: "W\0"}, (51.5073611, -0.12775)),
        ({1: "N", 2: degrees(0, 0, 0), 3: "E", 4: degrees(0, 0, 0)}, (None, None)),
        ({1: "N", 2: degrees(91, 0, 0), 3: "E", 4: degrees(1, 0, 0)}, (None, None)),
        ({1: "N", 2: degrees(9, 0, 0)}, (None, None)),
        ({1: "N", 2: degrees(9, 0), 3: "E", 4: degrees(1, 0, 0)}, (None, None)),
        ({2: degrees(9, 30, 0), 4: degrees(1, 0, 0)}, (9.5, 1.0)),
        ({1: "N", 2: (IFDRational(9), IFDRational(30), IFDRational(0, 0)), 3: "E", 4: degrees(1, 0, 0)}, (9.5, 1.0)),
    ],
)
def test_places(place: dict[int, Any], expected: tuple[float | None, float | None]) -> None:
    found = exif.read_exif(block(place=place).tobytes())
    assert (found.latitude, found.longitude) == (
        pytest.approx(expected[0], abs=1e-4),
        pytest.approx(expected[1], abs=1e-4),
    )


def test_the_tags_are_those_of_the_standard() -> None:
    """The other tests write and read with the same constants."""
    assert (exif.TAKEN, exif.TAKEN_OFFSET) == (36867, 36881)  # DateTimeOriginal, OffsetTimeOriginal
    assert (exif.DIGITISED, exif.DIGITISED_OFFSET) == (36868, 36882)  # DateTimeDigitized, OffsetTimeDigitized


@pytest.mark.parametrize(
    ("latitude", "longitude", "expected"),
    [
        ((90, 0, 0), (180, 0, 0), Taken(None, 90.0, 180.0)),
        ((90, 0, 0.001), (180, 0, 0), Taken()),
        ((90, 0, 0), (180, 0, 0.001), Taken()),
        ((0, 0, 0), (7, 0, 0), Taken(None, 0.0, 7.0)),
        ((7, 0, 0), (0, 0, 0), Taken(None, 7.0, 0.0)),
    ],
)
def test_the_poles_and_the_equator_are_places(latitude: Any, longitude: Any, expected: Taken) -> None:
    assert exif.read_exif(block(place={2: degrees(*latitude), 4: degrees(*longitude)}).tobytes()) == expected


def test_degrees_have_seven_decimals() -> None:
    """A centimetre."""
    found = exif.read_exif(block(place={2: degrees(1, 0, 0.0044), 4: degrees(2, 0, 0.0001)}).tobytes())
    assert found == Taken(None, 1.0000012, 2.0)


def test_cameras_of_both_byte_orders() -> None:
    big = b"MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x1a\0\0\0\0"
    big += b"\0\x01\x90\x03\0\x02\0\0\0\x14\0\0\0\x2c\0\0\0\0" + b"2024:05:01 12:00:30\0"
    assert exif.read_exif(b"Exif\0\0" + big) == Taken("2024-05-01T12:00:30")


def test_nothing_breaks_it() -> None:
    whole = block(NOON, LONDON).tobytes()
    for length in range(len(whole)):
        exif.read_exif(whole[:length])
    for position in range(len(whole)):
        for value in (0, 0x7F, 0xFF):
            exif.read_exif(whole[:position] + bytes([value]) + whole[position + 1 :])
    assert exif.read_exif(b"") == exif.read_exif(b"nonsense") == Taken()
    assert images.exif(pictures.png()) == b""
