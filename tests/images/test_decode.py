"""Images come out upright and in the right colours, whatever their format; anything else is an InvalidImage."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.parse
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile

from datasette_vision.errors import InvalidArgument, InvalidImage
from datasette_vision.images import decode as images
from datasette_vision.images import tiff_tags
from datasette_vision.images.decode import ImageLimits
from datasette_vision.images.formats import (
    MAX_PIECES,
    MAX_SCANNED_PIXELS,
    has_image_suffix,
    is_read_in_strips,
    piece_bomb,
    split_png,
    truncation,
)
from tests import hostile, pictures
from tests.paths import ROOT

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
BOX = struct.pack(">I4s", 16, b"ftyp") + b"avif\0\0\0\0"


def array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(np.int16)


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return float(np.abs(array(one) - array(other)).mean())


def assert_quadrants(picture: Image.Image, tolerance: int = 12) -> None:
    """The four colours are where they are upright. `tolerance` in levels of 255, for lossy formats."""
    width, height = picture.size
    for index, colour in enumerate(pictures.QUADRANT_COLOURS):
        x, y = width // 4 + (index % 2) * width // 2, height // 4 + (index // 2) * height // 2
        found = picture.getpixel((x, y))
        assert np.abs(np.subtract(found, colour)).max() <= tolerance, (index, found, colour)


# Formats


@pytest.mark.parametrize("image_format", FORMATS)
def test_each_format_decodes_to_the_picture_that_went_in(image_format: str) -> None:
    picture = images.decode(pictures.picture_file(image_format))
    assert (picture.mode, picture.size) == ("RGB", (64, 48))
    assert mean_difference(picture, pictures.scene()) < (0.01 if image_format in ("PNG", "BMP", "TIFF") else 8)
    assert mean_difference(picture, pictures.scene(seed=1)) > 40  # the measure above can fail


@pytest.mark.parametrize("image_format", FORMATS)
def test_sniff_and_info_name_the_format(image_format: str) -> None:
    data = pictures.picture_file(image_format, 64, 48)
    assert images.sniff(data) == image_format
    assert images.info(data) == {
        "format": image_format,
        "width": 64,
        "height": 48,
        "orientation": 1,
        "bytes": len(data),
    }


def test_sniff_recognises_nothing_in_random_bytes_or_embeddings() -> None:
    generator = np.random.default_rng(0)
    for _ in range(2000):
        assert images.sniff(generator.bytes(64)) is None
        assert images.sniff(b"BM" + generator.bytes(100)) is None
    embedding = generator.standard_normal(512).astype("<f4")
    embedding /= np.linalg.norm(embedding)
    assert images.sniff(embedding.tobytes()) is None
    # The least negative float32 whose bytes would pass as the start of a JPEG: no component of a unit vector.
    (smallest,) = struct.unpack("<f", b"\xff\xd8\xff\xc0")
    assert images.sniff(struct.pack("<f", smallest)) == "JPEG"
    assert smallest < -7.9
    assert images.sniff(b"\xff\xd8\xff\xbf") is None


@pytest.mark.parametrize(
    ("brands", "expected"),
    [
        (b"avif\0\0\0\0avifmif1", "AVIF"),
        (b"mif1\0\0\0\0mif1avif", "AVIF"),
        (b"heic\0\0\0\0heicmif1", "HEIF"),
        (b"mif1\0\0\0\0mif1heic", "HEIF"),
        (b"isom\0\0\0\0isommp42", None),
        (b"qt  \0\0\0\0qt  qt  ", None),
    ],
)
def test_sniff_reads_brands(brands: bytes, expected: str | None) -> None:
    assert images.sniff(b"\0\0\0\x18ftyp" + brands) == expected


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(image_format: str) -> None:
    picture = images.decode(pictures.animation(image_format))
    assert mean_difference(picture, pictures.scene(seed=0)) < 8


def test_the_first_page_of_a_document() -> None:
    pages = [pictures.scene(seed=seed) for seed in range(3)]
    data = pictures.encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert mean_difference(images.decode(data), pages[0]) == 0


def test_a_jpeg_with_several_pictures_gives_the_first() -> None:
    pages = [pictures.scene(seed=seed) for seed in range(2)]
    data = pictures.encode(pages[0], "MPO", save_all=True, append_images=pages[1:], quality=95)
    assert images.info(data)["format"] == "JPEG"
    assert mean_difference(images.decode(data), pages[0]) < 8


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
def test_compressed_tiff(compression: str) -> None:
    data = pictures.encode(pictures.scene(), "TIFF", compression=compression)
    assert mean_difference(images.decode(data), pictures.scene()) < (8 if compression == "jpeg" else 0.01)


def test_interlaced_and_progressive() -> None:
    assert mean_difference(images.decode(pictures.jpeg(progressive=True)), pictures.scene()) < 8


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_png_modes(mode: str) -> None:
    scene = pictures.scene().convert("L") if mode in ("1", "L", "LA", "I;16") else pictures.scene()
    if mode == "I;16":
        data = pictures.encode(Image.fromarray(np.asarray(scene).astype(np.uint16) * 257), "PNG")
    else:
        data = pictures.encode(scene.convert(mode), "PNG")
    picture = images.decode(data)
    assert picture.mode == "RGB"
    expected = scene.convert("1").convert("RGB") if mode == "1" else scene.convert("RGB")
    assert mean_difference(picture, expected) < (20 if mode == "P" else 0.01)


def test_transparency_is_laid_over_white() -> None:
    half = Image.new("RGBA", (8, 8), (200, 0, 0, 128))
    half.paste((10, 20, 30, 255), (0, 0, 4, 8))
    half.paste((0, 0, 0, 0), (4, 0, 8, 4))
    for image_format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("AVIF", {"quality": 100})):
        picture = images.decode(pictures.encode(half, image_format, **options))
        tolerance = 6 if image_format == "AVIF" else 1
        for where, expected in (((1, 1), (10, 20, 30)), ((6, 1), (255, 255, 255)), ((6, 6), (227, 127, 127))):
            found = picture.getpixel(where)
            assert np.abs(np.subtract(found, expected)).max() <= tolerance, (image_format, where, found)


def test_the_emoji_stands_on_white() -> None:
    picture = images.decode(pictures.encode(pictures.face(), "PNG"))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((48, 20)) == (255, 205, 60)


def test_palette_transparency_by_index_and_by_table() -> None:
    picture = Image.new("P", (4, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    picture.putdata([0, 1, 2, 3])
    by_index = images.decode(pictures.encode(picture, "PNG", transparency=1))
    assert [by_index.getpixel((x, 0)) for x in range(4)] == [(255, 0, 0), (255, 255, 255), (0, 0, 255), (9, 9, 9)]
    by_table = images.decode(pictures.encode(picture, "PNG", transparency=b"\xff\x00\x80\xff"))
    assert [by_table.getpixel((x, 0)) for x in range(4)] == [(255, 0, 0), (255, 255, 255), (127, 127, 255), (9, 9, 9)]
    gif = images.decode(pictures.encode(picture, "GIF", transparency=2))
    assert [gif.getpixel((x, 0)) for x in range(4)] == [(255, 0, 0), (0, 255, 0), (255, 255, 255), (9, 9, 9)]


@pytest.mark.parametrize(
    ("depth", "row", "transparent", "expected"),
    [
        (1, b"\x50", 1, [0, 255, 0, 255]),  # 0 1 0 1
        (1, b"\x50", 0, [255, 255, 255, 255]),
        (2, b"\x1b", 1, [0, 255, 170, 255]),  # 0 1 2 3
        (4, b"\x0a\x5f", 10, [0, 255, 85, 255]),  # 0 10 5 15
        (8, b"\x00\x10\x80\xff", 16, [0, 255, 128, 255]),
        (16, b"\x00\x00\x10\x10\x10\x11\xff\xff", 0x1010, [0, 255, 16, 255]),
    ],
)
def test_grey_png_transparency_at_every_depth(depth: int, row: bytes, transparent: int, expected: list[int]) -> None:
    transparency = pictures.png_chunk(b"tRNS", struct.pack(">H", transparent))
    picture = images.decode(pictures.raw_png(4, 1, depth, 0, b"\0" + row, before=transparency))
    assert [picture.getpixel((x, 0))[0] for x in range(4)] == expected


@pytest.mark.parametrize("depth", [8, 16])
def test_colour_png_transparency(depth: int) -> None:
    code, unit = (">BBBBBB", 1) if depth == 8 else (">HHHHHH", 257)
    colours = (10, 20, 30, 40, 50, 60)
    row = struct.pack(code, *(value * unit for value in colours))
    transparency = pictures.png_chunk(b"tRNS", struct.pack(">HHH", *(value * unit for value in colours[3:])))
    picture = images.decode(pictures.raw_png(2, 1, depth, 2, b"\0" + row, before=transparency))
    assert [picture.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (255, 255, 255)]


def test_16_bit_colour_png() -> None:
    row = b"\0" + struct.pack(">HHH", 65535, 32896, 257)
    assert images.decode(pictures.raw_png(1, 1, 16, 2, row)).getpixel((0, 0)) == (255, 128, 1)


def test_16_bit_grey_becomes_the_nearest_of_256_levels() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = images.decode(pictures.encode(Image.fromarray(values), "PNG"))
    assert (np.asarray(picture)[..., 0] == (values.astype(int) + 128) // 257).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 32896, 65535]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 100, 200, 255]], np.int32), [0, 100, 200, 255]),
        (np.array([[0, 257, 32896, 65535]], np.int32), [0, 1, 128, 255]),
        (np.array([[-100, 0, 100, 300]], np.int32), [0, 64, 128, 255]),
        (np.array([[0, 2**29, 2**30, 2**31 - 1]], np.int32), [0, 64, 128, 255]),
        (np.array([[-32768, 0, 16384, 32767]], np.int16), [0, 128, 191, 255]),
        (np.array([[0, 0.25, 0.5, 1]], np.float32), [0, 64, 128, 255]),
        (np.array([[0, 64, 128, 255]], np.float32), [0, 64, 128, 255]),
        (np.array([[-1.5, 0, 1.5, 4.5]], np.float32), [0, 64, 128, 255]),
        (np.array([[np.nan, 0, 1, np.inf]], np.float32), [0, 0, 255, 0]),
        (np.array([[np.nan, np.nan, np.nan, np.nan]], np.float32), [0, 0, 0, 0]),
        (np.array([[-3.4e38, 0, 3.4e38, np.nan]], np.float32), [0, 128, 255, 0]),
        (np.array([[-5, -5, -5, -5]], np.int32), [0, 0, 0, 0]),
    ],
)
def test_deep_grey_is_scaled_not_clipped(values: np.ndarray, expected: list[int]) -> None:
    picture = images.decode(pictures.grey_tiff(values))
    found = [picture.getpixel((x, 0)) for x in range(4)]
    assert np.abs(np.subtract([pixel[0] for pixel in found], expected)).max() <= 1, found
    assert all(pixel[0] == pixel[1] == pixel[2] for pixel in found)


def test_grey_tiff_where_white_is_zero() -> None:
    for dtype, white in ((np.uint8, 255), (np.uint16, 65535)):
        picture = images.decode(pictures.grey_tiff(np.array([[0, white]], dtype), photometric=0))
        assert [picture.getpixel((x, 0))[0] for x in range(2)] == [255, 0]


def test_12_bit_tiff() -> None:
    tags = {256: (4, (2,)), 257: (4, (1,)), 258: (3, (12,)), 259: (3, (1,)), 262: (3, (1,)), 277: (3, (1,))}
    picture = images.decode(pictures.raw_tiff(tags, b"\x80\x0f\xff"))  # 0x800, 0xfff
    assert [picture.getpixel((x, 0))[0] for x in range(2)] == [128, 255]


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk(image_format: str) -> None:
    picture = pictures.quadrants().convert("CMYK")
    options = {"quality": 95} if image_format == "JPEG" else {}
    assert_quadrants(images.decode(pictures.encode(picture, image_format, **options)))


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12 takes plain YCbCr TIFFs for truncated")
def test_ycbcr_tiff() -> None:
    tags = {256: (4, (64,)), 257: (4, (48,)), 258: (3, (8, 8, 8)), 259: (3, (1,)), 262: (3, (6,)), 277: (3, (3,))}
    data = pictures.raw_tiff({**tags, 530: (3, (1, 1))}, pictures.quadrants().convert("YCbCr").tobytes())
    assert_quadrants(images.decode(data), tolerance=3)


def test_lab_tiff() -> None:
    lab = {256: (4, (3,)), 257: (4, (1,)), 258: (3, (8, 8, 8)), 259: (3, (1,)), 262: (3, (8,)), 277: (3, (3,))}
    # L* of 100 and 0, and CIE Lab (53.2, 80.1, 67.2), which is sRGB (255, 0, 0): Lindbloom's calculator, D50 adapted.
    pixels = bytes([255, 0, 0, 0, 0, 0, 138, 81, 70])
    picture = images.decode(pictures.raw_tiff(lab, pixels))
    for x, expected in enumerate([(255, 255, 255), (0, 0, 0), (255, 0, 0)]):
        assert np.abs(np.subtract(picture.getpixel((x, 0)), expected)).max() <= 12, (x, picture.getpixel((x, 0)))


# Orientation


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright(orientation: int, image_format: str) -> None:
    data = pictures.with_orientation(orientation, image_format)
    picture = images.decode(data)
    assert picture.size == (64, 48)
    assert_quadrants(picture)
    assert images.info(data) == {
        "format": image_format,
        "width": 64,
        "height": 48,
        "orientation": orientation,
        "bytes": len(data),
    }
    # Whoever turns the result again by its metadata must find none.
    assert picture.getexif().get(0x0112, 1) == 1
    assert picture.info == {}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_after_fast_scaling_and_in_thumbnails(orientation: int) -> None:
    data = pictures.with_orientation(orientation, picture=pictures.quadrants(1600, 1200))
    picture = images.decode(data, target=100)
    assert picture.size == (400, 300)
    assert_quadrants(picture)
    small = Image.open(io.BytesIO(images.thumbnail(data, 64)))
    assert (small.format, small.size) == ("WEBP", (64, 48))
    assert_quadrants(small.convert("RGB"), tolerance=20)


def test_orientation_behind_the_pixels_of_a_png() -> None:
    exif = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    data = pictures.raw_png(2, 1, 8, 0, b"\0\x10\xf0", after=pictures.png_chunk(b"eXIf", exif))
    assert images.info(data)["orientation"] == 6
    picture = images.decode(data)
    assert picture.size == (1, 2)
    assert [picture.getpixel((0, y))[0] for y in range(2)] == [0x10, 0xF0]


def test_orientation_in_xmp() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    stored = pictures.quadrants().transpose(Image.Transpose.ROTATE_180)
    data = pictures.encode(stored, "JPEG", xmp=xmp, quality=95)
    assert images.info(data)["orientation"] == 3
    assert_quadrants(images.decode(data))


@pytest.mark.parametrize(
    "name", sorted(name for name in hostile.HOSTILE_IMAGES if name.startswith("jpeg_") and "exif" in name)
)
def test_broken_exif_is_ignored(name: str) -> None:
    data = hostile.HOSTILE_IMAGES[name]
    assert mean_difference(images.decode(data), images.decode(pictures.jpeg())) == 0
    assert images.info(data)["orientation"] == 1


# Fast scaling


def test_fast_scaling_never_goes_below_twice_the_target() -> None:
    data = pictures.large_jpeg()
    for target, expected in ((64, (500, 375)), (187, (500, 375)), (188, (1000, 750)), (224, (1000, 750))):
        assert images.decode(data, target=target).size == expected
    assert images.decode(data, target=751).size == (4000, 3000)
    assert images.decode(data).size == (4000, 3000)


@pytest.mark.parametrize(("target", "worst", "mean"), [(64, 4, 0.5), (224, 4, 0.5)])
def test_fast_scaling_hardly_changes_the_result(target: int, worst: int, mean: float) -> None:
    """Worst and mean difference, in levels of 255, after the resizing that a model does. Measured: 2 and 0.2."""
    full, fast = images.decode(pictures.large_jpeg()), images.decode(pictures.large_jpeg(), target=target)
    size = (target * 4 // 3, target)
    difference = np.abs(
        array(full.resize(size, Image.Resampling.BICUBIC)) - array(fast.resize(size, Image.Resampling.BICUBIC))
    )
    assert difference.max() <= worst
    assert difference.mean() <= mean


def test_other_formats_ignore_the_target() -> None:
    assert images.decode(pictures.png(640, 480), target=10).size == (640, 480)


# Limits


def test_limits_are_the_ones_documented() -> None:
    assert ImageLimits() == ImageLimits(max_bytes=20_000_000, max_pixels=100_000_000, max_aspect=200)


def test_a_file_that_is_too_large() -> None:
    data = pictures.png()
    assert images.decode(data, limits=ImageLimits(max_bytes=len(data))).size == (64, 48)
    with pytest.raises(InvalidImage) as caught:
        images.decode(bytes(30_000_000))
    assert str(caught.value) == "an image of 30.0 MB is more than the 20 MB allowed (max_image_mb)"


@pytest.mark.parametrize("image_format", FORMATS)
def test_too_many_pixels_are_refused_by_the_header(image_format: str) -> None:
    data = pictures.picture_file(image_format, 64, 48)
    assert images.decode(data, limits=ImageLimits(max_pixels=64 * 48)).size == (64, 48)
    with pytest.raises(
        InvalidImage, match=r"^an image of 64x48 pixels \(0\.0 megapixels\) is more than the 0\.003071 "
    ):
        images.decode(data, limits=ImageLimits(max_pixels=64 * 48 - 1))


LARGE = 1600 * 1200
SMALL = ImageLimits(max_pixels=LARGE // 4)


def test_a_jpeg_that_is_decoded_at_a_reduced_size_may_be_larger() -> None:
    data = pictures.jpeg(1600, 1200)
    assert images.decode(data, limits=SMALL, target=100).size == (400, 300)
    assert images.error(data, SMALL) is None
    assert images.thumbnail(data, 200, SMALL)


@pytest.mark.parametrize(
    ("data", "max_pixels", "target", "allowed"),
    [
        (pictures.jpeg(1600, 1200), LARGE // 4, None, "0.48"),  # at full size
        (pictures.jpeg(1600, 1200), LARGE // 4, 1000, "0.48"),  # hardly reduced
        (pictures.jpeg(1600, 1200), LARGE // 5, 100, "1.536"),  # too large even so
        (pictures.jpeg(1600, 1200, progressive=True), LARGE // 4, 100, "0.48"),  # its coefficients are held as a whole
        (pictures.picture_file("PNG", 1600, 1200), LARGE // 4, 100, "0.48"),
        (pictures.picture_file("WEBP", 1600, 1200), LARGE // 4, 100, "0.48"),
    ],
)
def test_what_would_take_memory_may_not(data: bytes, max_pixels: int, target: int | None, allowed: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        images.decode(data, limits=ImageLimits(max_pixels=max_pixels), target=target)
    assert str(caught.value) == (
        "an image of 1600x1200 pixels (1.9 megapixels) is more than the"
        f" {allowed} megapixels allowed (max_image_megapixels)"
    )


def test_a_progressive_jpeg_cannot_pass_for_another() -> None:
    """Where its EXIF was, the bytes around it would hide from the decoder the frame and scan that are seen before."""
    progressive, baseline = pictures.jpeg(1600, 1200, progressive=True), pictures.jpeg(1600, 1200)
    frame, scan = baseline.index(b"\xff\xc0"), baseline.index(b"\xff\xda")
    decoy = baseline[frame : frame + 19] + baseline[scan : scan + 14]
    exif = b"\xff\xe1\x00\x10Exif\0\0" + bytes(8)
    hidden = b"\xe2" + (2 + len(decoy)).to_bytes(2, "big") + decoy
    data = progressive[:20] + b"\xff" + exif + hidden + progressive[20:]
    with pytest.raises(InvalidImage):
        images.decode(data, limits=SMALL, target=100)
    with pytest.raises(InvalidImage):
        images.decode(data, target=100)


def test_a_jpeg_in_one_pass() -> None:
    data = pictures.jpeg()
    scan = data.index(b"\xff\xda")
    assert is_read_in_strips(data)
    assert is_read_in_strips(pictures.encode(pictures.scene().convert("L"), "JPEG"))
    assert is_read_in_strips(pictures.encode(pictures.scene().convert("CMYK"), "JPEG"))
    assert not is_read_in_strips(pictures.jpeg(progressive=True))
    # A scan of one component of three: others follow.
    assert not is_read_in_strips(data[: scan + 4] + b"\x01" + data[scan + 5 :])
    assert not is_read_in_strips(data[:scan])
    assert not is_read_in_strips(data[: scan + 4])
    for marker in (0xC3, 0xC5, 0xC9, 0xCA, 0xCF):
        assert not is_read_in_strips(data.replace(b"\xff\xc0", bytes([0xFF, marker]), 1))
    assert not is_read_in_strips(b"\xff\xd8\xff\xc0\x00\x02\xff\xda\x00\x02")


def test_a_bomb_costs_no_memory() -> None:
    tracemalloc.start()  # Pillow's pixels are not traced, numpy's and the file's copies are
    started = time.perf_counter()
    reason = images.error(hostile.HOSTILE_IMAGES["png_bomb_900_megapixels"])
    elapsed, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reason is not None
    assert reason.startswith(
        "an image of 30000x30000 pixels (900.0 megapixels) is more than the 100 megapixels allowed"
    )
    assert elapsed < 2
    assert peak < 5_000_000


def test_our_limit_decides_where_pillow_would_warn() -> None:
    """95 megapixels: above Pillow's warning at 89, below our 100, and warnings are errors here."""
    rows = zlib.compressobj(1)
    pixels = b"".join(rows.compress(bytes(1 + 9500 // 8 + 1)) for _ in range(10_000)) + rows.flush()
    head = struct.pack(">IIBBBBB", 9500, 10_000, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + pictures.png_chunk(b"IHDR", head) + pictures.png_chunk(b"IDAT", pixels)
    data += pictures.png_chunk(b"IEND")
    with pytest.raises(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    assert images.info(data)["width"] == 9500
    assert images.decode(data).size == (9500, 10_000)


def test_strips() -> None:
    assert images.decode(pictures.png(1, 200)).size == (1, 200)
    with pytest.raises(InvalidImage) as caught:
        images.decode(pictures.png(201, 1))
    assert str(caught.value) == (
        "an image of 201x1 pixels is a strip: its longer edge may be at most 200 times its shorter one"
    )


def test_globals_of_pillow_are_left_alone() -> None:
    for data in hostile.HOSTILE_IMAGES.values():
        images.error(data)
    assert Image.MAX_IMAGE_PIXELS == 89478485
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


# Hostile input


def test_there_is_enough_hostile_input_and_all_of_it_is_classified() -> None:
    assert len(hostile.HOSTILE_IMAGES) >= 150
    assert set(hostile.HOSTILE_IMAGES) == set(hostile.EXPECTED)
    assert set(hostile.EXPECTED.values()) == {"image", "error", "either"}
    assert max(map(len, hostile.HOSTILE_IMAGES.values())) < 2_000_000


@pytest.mark.parametrize("name", sorted(hostile.HOSTILE_IMAGES))
def test_hostile_input_gives_a_picture_or_an_invalid_image(name: str) -> None:
    data, expected = hostile.HOSTILE_IMAGES[name], hostile.EXPECTED[name]
    started = time.perf_counter()
    outcomes = set()
    for target in (None, 64):
        message = ""
        try:
            picture = images.decode(data, target=target)
        except InvalidImage as reason:
            message = str(reason)
        outcomes.add("error" if message else "image")
        if message:
            assert 10 < len(message) < 250
            assert "<_io" not in message
        else:
            assert picture.mode == "RGB"
            assert array(picture).ndim == 3
    with contextlib.suppress(InvalidImage):
        images.info(data)
    with contextlib.suppress(InvalidImage):
        images.thumbnail(data, 32)
    assert len(outcomes) == 1
    if expected != "either":
        assert outcomes == {expected}
        assert (images.error(data) is None) == (expected == "image")
    assert time.perf_counter() - started < 10  # the slowest takes 0.3 s; a hang takes longer
    # And the next one is served as if nothing had been.
    assert mean_difference(images.decode(pictures.png()), pictures.scene()) == 0


@pytest.mark.parametrize("image_format", FORMATS)
def test_flipped_bytes_raise_nothing_but_invalid_image(image_format: str) -> None:
    generator = np.random.default_rng(11)
    good = pictures.picture_file(image_format)
    outcomes = []
    for attempt in range(200):
        data = bytearray(good)
        # Half of the attempts aim at the header, where there is most to break.
        reach = min(len(data), 400) if attempt % 2 else len(data)
        for position in generator.integers(0, reach, generator.integers(1, 12)):
            data[position] = generator.integers(0, 256)
        if attempt % 5 == 0:
            del data[generator.integers(1, len(data)) :]
        try:
            outcomes.append(images.decode(bytes(data)).mode)
        except InvalidImage:
            outcomes.append("error")
        with contextlib.suppress(InvalidImage):
            images.info(bytes(data))
    assert outcomes.count("error") >= 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "an image of 0 bytes is empty"),
        (
            "text",
            "not an image of a known format (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIF): "
            "15 bytes that begin with 70 75 72 70 6c 65 20 61",
        ),
        ("svg", "an SVG drawing is not supported: convert it to PNG"),
        ("pdf", "a PDF document is not supported: convert its page to PNG"),
        ("html", "an HTML page is not an image"),
        ("postscript", "a PostScript drawing is not supported: convert it to PNG"),
        ("zip", "a ZIP archive is not an image"),
        ("video", "a file of the MP4 family (brand b'isom') is not an image: extract a frame first"),
        ("jpeg_truncated_in_middle", "truncated JPEG image: no end marker in 789 bytes"),
        ("tiff_truncated_in_middle", "truncated TIFF image of 4678 bytes: its pixels should be longer"),
        ("bmp_truncated_in_middle", "truncated BMP image: its header announces 9270 bytes, found 4635"),
        ("webp_longer_than_file", None),
        ("png_chunk_of_two_gigabytes", None),
        ("jpeg_3000_scans", "corrupt JPEG image: it has more than 100 scans, which no camera or editor writes"),
        ("jpeg_of_60000_segments", "corrupt JPEG image: it has more than 50000 segments or stray bytes"),
        ("png_of_60000_chunks", "corrupt PNG image: it has more than 50000 chunks"),
        ("tiff_in_250000_pieces", "corrupt TIFF image: it is split into more than 200000 pieces"),
    ],
)
def test_messages(name: str, message: str | None) -> None:
    reason = images.error(hostile.HOSTILE_IMAGES[name])
    if message is None:
        assert reason is None or reason.startswith(("truncated ", "corrupt "))
    else:
        assert reason == message


@pytest.mark.parametrize("image_format", FORMATS)
def test_half_a_file_is_called_truncated(image_format: str) -> None:
    data = pictures.picture_file(image_format)
    reason = images.error(data[: len(data) // 2])
    assert reason is not None
    assert reason.startswith(f"truncated {image_format} image"), reason


@pytest.mark.parametrize(
    ("image_format", "data", "reason"),
    [
        ("TIFF", b"MM\0*" + struct.pack(">I", 1000), "its directory should be at byte 1000, found 8 bytes"),
        ("TIFF", b"II*\0" + struct.pack("<I", 1 << 24), "its directory should be at byte 16777216, found 8 bytes"),
        ("AVIF", BOX + struct.pack(">I4s", 100, b"mdat") + bytes(20), "box b'mdat' announces 100 bytes, 28 are left"),
        ("AVIF", BOX, None),
        ("AVIF", BOX + b"\0\0\1\0mda", None),  # less than the head of a box: nobody knows what it is
    ],
)
def test_what_is_missing_at_the_end_is_counted(image_format: str, data: bytes, reason: str | None) -> None:
    assert truncation(image_format, data) == reason


@pytest.mark.parametrize("value", [None, "text", 42, 1.5, ["bytes"]])
def test_what_is_not_bytes_is_named(value: object) -> None:
    with pytest.raises(InvalidImage) as caught:
        images.decode(value)  # type: ignore[arg-type]
    assert str(caught.value) == f"an image has to be bytes, not {type(value).__name__}"
    assert images.error(value) == str(caught.value)  # type: ignore[arg-type]


def test_bytes_like_objects_are_bytes() -> None:
    data = pictures.png()
    assert images.decode(bytearray(data)).size == images.decode(memoryview(data)).size == (64, 48)  # type: ignore[arg-type]


def test_tags_that_share_their_values_are_refused_before_they_are_copied() -> None:
    reason = images.error(hostile.HOSTILE_IMAGES["tiff_tags_all_over_each_other"])
    assert reason == "corrupt TIFF image: its tags announce 300000 or more bytes of metadata, found 104910"


def test_twice_the_file_and_a_little_may_be_announced_by_tags() -> None:
    def tiff(announced: int) -> bytes:
        """Of 100,000 bytes, with three tags whose values lie over each other."""
        sizes = (99_000, 99_000, announced - 2 * 99_000)
        entries = b"".join(struct.pack("<HHII", 700 + number, 7, size, 0) for number, size in enumerate(sizes))
        return (b"II*\0" + struct.pack("<IH", 8, len(sizes)) + entries).ljust(100_000, b"\0")

    allowed = 2 * 100_000 + 65_536
    assert tiff_tags.tag_bomb("TIFF", tiff(allowed)) is None
    reason = tiff_tags.tag_bomb("TIFF", tiff(allowed + 1))
    assert reason == f"its tags announce {allowed + 1} or more bytes of metadata, found 100000"


@pytest.mark.parametrize(("announced", "refused"), [(33_188, False), (33_189, True)])
def test_a_directory_that_leads_to_itself_is_read_eight_times(announced: int, refused: bool) -> None:
    """Its tag is counted each time, so that what a reader makes of it is counted, and reading ends."""
    entries = struct.pack("<HHII", 700, 7, announced, 0) + struct.pack("<HHII", 0x8769, 4, 1, 8)
    data = (b"II*\0" + struct.pack("<IH", 8, 2) + entries).ljust(100_000, b"\0")
    assert (8 * (announced + 4) > 2 * len(data) + 65_536) == refused
    assert bool(tiff_tags.tag_bomb("TIFF", data)) == refused


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
def test_no_hostile_input_takes_much_memory() -> None:
    """Peak resident memory of a process that reads all of them, over one that reads a good picture."""
    code = """if True:
        import resource, sys
        from datasette_vision.images import decode as images
        from tests import hostile, pictures
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform != "darwin" else 1024)
        for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
            images.decode(pictures.picture_file(name))
        before = peak()
        for name, data in hostile.HOSTILE_IMAGES.items():
            images.error(data)
        print(peak() - before)
    """
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) < 150 * 1024  # KiB


# Information


def test_info_decodes_no_pixels() -> None:
    data = pictures.png()
    broken = data[:60] + bytes(len(data) - 60)
    assert images.error(broken) is not None
    assert images.info(broken)["width"] == 64


def test_info_of_no_image_raises() -> None:
    with pytest.raises(InvalidImage, match=r"^an HTML page is not an image$"):
        images.info(hostile.HOSTILE_IMAGES["html"])


def test_error_is_none_for_a_good_image_and_knows_the_limits() -> None:
    assert images.error(pictures.png()) is None
    reason = images.error(pictures.png(), ImageLimits(max_bytes=100))
    assert reason is not None
    assert reason.endswith("(max_image_mb)")


# Thumbnails


@pytest.mark.parametrize(
    ("size", "pixels", "expected"),
    [
        ((640, 480), 64, (64, 48)),
        ((480, 640), 64, (48, 64)),
        ((640, 480), 2048, (640, 480)),
        ((640, 480), 1, (1, 1)),
        ((200, 1), 50, (50, 1)),
        ((10, 10), 64, (10, 10)),
    ],
)
def test_thumbnail_sizes(size: tuple[int, int], pixels: int, expected: tuple[int, int]) -> None:
    small = Image.open(io.BytesIO(images.thumbnail(pictures.png(*size), pixels)))
    assert (small.format, small.size) == ("WEBP", expected)


def test_thumbnail_of_a_large_photo_looks_like_it() -> None:
    data = images.thumbnail(pictures.large_jpeg(), 256)
    small = Image.open(io.BytesIO(data)).convert("RGB")
    assert small.size == (256, 192)
    assert len(data) < 30_000
    expected = images.decode(pictures.large_jpeg()).resize((256, 192), Image.Resampling.LANCZOS)
    assert mean_difference(small, expected) < 4


def test_thumbnail_is_on_white_and_keeps_no_position() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x8825] = {1: "N", 2: (52.0, 22.0, 12.0)}
    data = pictures.encode(pictures.face(), "PNG", exif=exif)
    small = Image.open(io.BytesIO(images.thumbnail(data, 48)))
    assert small.mode == "RGB"
    assert min(small.getpixel((0, 0))) >= 250  # type: ignore[type-var, arg-type]
    assert "exif" not in small.info


def test_thumbnail_keeps_the_profile_of_rgb_only() -> None:
    profile = b"a profile" * 50
    kept = Image.open(io.BytesIO(images.thumbnail(pictures.jpeg(icc_profile=profile), 16)))
    assert kept.info["icc_profile"] == profile
    cmyk = pictures.encode(pictures.quadrants().convert("CMYK"), "JPEG", icc_profile=profile)
    assert "icc_profile" not in Image.open(io.BytesIO(images.thumbnail(cmyk, 16))).info
    huge = pictures.jpeg(icc_profile=profile * 100)
    assert "icc_profile" not in Image.open(io.BytesIO(images.thumbnail(huge, 16))).info


@pytest.mark.parametrize("pixels", [0, -1, 2049, 10**30, 1.5, "64", None, True])
def test_thumbnail_size_out_of_range(pixels: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^a thumbnail's size is an integer from 1 to 2048, not "):
        images.thumbnail(pictures.png(), pixels)  # type: ignore[arg-type]


def held(data: bytes) -> int:
    """The most memory that Python holds while a header is read."""
    tracemalloc.start()
    try:
        with contextlib.suppress(InvalidImage):
            images.info(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_texts_of_a_png_are_not_unpacked() -> None:
    """70 kB became 258 MB: one character above U+FFFF makes four bytes of each."""
    text = zlib.compress(b"a" * 999_990 + "\U0001f600".encode())
    chunks = [pictures.png_chunk(b"iTXt", b"k%d\0\1\0\0\0" % number + text) for number in range(40)]
    good = pictures.png()
    data = good[:33] + b"".join(chunks) + good[33:]
    assert held(data) < 10 * len(data)
    assert images.decode(data).tobytes() == images.decode(good).tobytes()


def test_a_png_keeps_what_is_looked_at() -> None:
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    good = pictures.png()
    data = good[:33] + pictures.png_chunk(b"tEXt", b"a\0b") + pictures.png_chunk(b"iTXt", xmp) + good[33:]
    assert images.info(data)["orientation"] == 6
    assert split_png(data) == good[:33] + pictures.png_chunk(b"iTXt", xmp) + good[33:]
    assert split_png(good) == good


@pytest.mark.parametrize(
    ("tag", "kind", "count", "message"),
    [(258, 3, 1_000_000, "1000000 values"), (339, 3, 200_001, "200001 values"), (282, 5, 1001, "1001 values")],
)
def test_numbers_of_a_tiff_are_not_unpacked(tag: int, kind: int, count: int, message: str) -> None:
    """12 MB became 290 MB, and half a million fractions took 2.6 s."""
    size = {3: 2, 5: 8}[kind]
    grey = {256: (4, (10,)), 257: (4, (10,)), 258: (3, (8,)), 259: (3, (1,)), 262: (3, (1,)), 277: (3, (1,))}
    data = pictures.raw_tiff({**grey, tag: (1, (1,) * (size * count))}, bytes(100))
    data = data.replace(struct.pack("<HHI", tag, 1, size * count), struct.pack("<HHI", tag, kind, count))
    assert images.error(data) == f"corrupt TIFF image: a tag of it has {message}"
    assert held(data) < 4 * len(data) + 1_000_000


def test_many_scans_of_many_pixels_are_refused() -> None:
    data = pictures.jpeg(progressive=True)
    scans = data.count(b"\xff\xda")
    frame = data.index(b"\xff\xc2") + 5
    for edge, refused in ((10_000, False), (20_000, True)):
        assert (scans * edge * edge > MAX_SCANNED_PIXELS) == refused
        large = data[:frame] + struct.pack(">HH", edge, edge) + data[frame + 4 :]
        assert bool(piece_bomb("JPEG", large)) == refused


@pytest.mark.parametrize(("width", "refused"), [(30_000, False), (30_001, True)])
def test_so_many_scanned_pixels_are_let_through_and_no_more(width: int, refused: bool) -> None:
    height, scan = 25_000, b"\xff\xda\0\x03\1"  # of one component out of three
    assert (2 * height * width > MAX_SCANNED_PIXELS) == refused
    frame = b"\xff\xc2\0\x08\x08" + struct.pack(">HHB", height, width, 3)
    assert bool(piece_bomb("JPEG", b"\xff\xd8" + frame + scan + scan)) == refused


@pytest.mark.parametrize("segments", [1, 10])
def test_stray_bytes_are_counted_between_segments(segments: int) -> None:
    for stray, refused in ((MAX_PIECES, False), (MAX_PIECES + 1, True)):
        data = b"\xff\xd8" + segments * b"\xff\xe1\0\x02" + bytes(stray) + b"\xff\xe1\0\x02"
        assert bool(piece_bomb("JPEG", data)) == refused


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\x00", b"\xff\xd0"], ids=["fill", "stuffed", "restarts"])
def test_what_a_decoder_cannot_use_takes_time_in_proportion(filling: bytes) -> None:
    """40 MB of fill bytes took 40 seconds: the decoder got them all again with every 64 kB."""
    data = pictures.jpeg()[:-2] + filling * (40_000_000 // len(filling)) + b"\xff\xd9"
    begun = time.process_time()
    images.error(data, ImageLimits(max_bytes=1 << 30))
    assert time.process_time() - begun < 15


@pytest.mark.parametrize("at", [0, 1, (1 << 20) - 2, 1 << 20, 3 << 20])
def test_exif_is_found_wherever_it_is(at: int) -> None:
    data = bytes(at) + b"MM\0*" * 16 + bytes(1 << 20)
    assert tiff_tags.tag_bomb("AVIF", data) == "it has 16 or more blocks of EXIF"
    assert tiff_tags.tag_bomb("AVIF", data[4:] if not at else data[:at] + data[at + 4 :]) is None


def test_thumbnail_of_a_broken_image() -> None:
    with pytest.raises(InvalidImage, match=r"^truncated PNG image"):
        images.thumbnail(pictures.png()[:1000], 64)


# Text


def spellings(data: bytes) -> dict[str, str]:
    standard, url_safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    return {
        "standard": standard,
        "without padding": standard.rstrip("="),
        "url-safe": url_safe,
        "url-safe without padding": url_safe.rstrip("="),
        "in lines": base64.encodebytes(data).decode(),
        "in lines, indented": "\n    ".join(["", *base64.encodebytes(data).decode().split(), ""]),
        "in lines of windows": base64.encodebytes(data).decode().replace("\n", "\r\n"),
        "in groups": " ".join(standard[start : start + 8] for start in range(0, len(standard), 8)),
        "in white space": f" \t\n{standard}\n ",
        "data uri": f"data:image/png;base64,{standard}",
        "data uri of another type": f"data:application/octet-stream;base64,{standard}",
        "data uri without a type": f"data:;base64,{standard}",
        "data uri with parameters": f"data:image/png;name=cat.png;base64,{standard}",
        "data uri in capitals": f"DATA:IMAGE/PNG;BASE64,{standard}",
        "data uri, url-safe": f"data:image/png;base64,{url_safe}",
        "data uri, percent-encoded base64": f"data:image/png;base64,{urllib.parse.quote(standard, safe='')}",
        "data uri, percent-encoded": f"data:image/png,{urllib.parse.quote(data)}",
        "data uri in white space": f"\n data:image/png;base64,{standard} \n",
        "plus signs lost in a query string": standard.replace("+", " "),
        "data uri, plus signs lost in a query string": f"data:image/png;base64,{standard.replace('+', ' ')}",
    }


@pytest.mark.parametrize("spelling", spellings(b""))
def test_images_from_text(spelling: str) -> None:
    for seed in range(6):  # of lengths that need 0, 1 and 2 characters of padding
        data = pictures.png(9, 7, seed) + bytes(seed)
        assert images.from_text(spellings(data)[spelling]) == data


def test_the_spellings_have_something_to_lose() -> None:
    files = [pictures.png(9, 7, seed) + bytes(seed) for seed in range(6)]
    assert all({"+", "/"} <= set(base64.b64encode(data).decode()) for data in files)
    assert len({len(data) % 3 for data in files}) == 3


@pytest.mark.parametrize("name", sorted(hostile.HOSTILE_TEXTS))
def test_hostile_text_is_no_image(name: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        images.from_text(hostile.HOSTILE_TEXTS[name])
    assert len(str(caught.value)) < 600
    assert not any(ord(character) < 32 for character in str(caught.value))
    str(caught.value).encode()  # nothing in it that cannot be sent to a browser


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat", "this text is not an image: expected a data: URI or base64, found 'cat'"),
        ("a" * 100, f"this text is not an image: expected a data: URI or base64, found '{'a' * 40}'… (100 characters)"),
        ("data:image/png;base64,@@@@", "this data: URI is not valid base64: '@@@@'"),
        ("data:image/png;base64,abcde", "this data: URI is not valid base64: 'abcde'"),
        ("data:,", "this data: URI is empty"),
    ],
)
def test_messages_about_text(text: str, message: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        images.from_text(text)
    assert str(caught.value) == message


def test_text_of_what_is_no_image_says_what_it_is() -> None:
    svg = urllib.parse.quote("<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert images.error(images.from_text(f"data:image/svg+xml,{svg}")) == (
        "an SVG drawing is not supported: convert it to PNG"
    )
    pdf = base64.b64encode(hostile.HOSTILE_IMAGES["pdf"]).decode()
    assert images.error(images.from_text(pdf)) == "a PDF document is not supported: convert its page to PNG"


@pytest.mark.parametrize("value", [None, b"data:", 42])
def test_text_of_another_type(value: object) -> None:
    with pytest.raises(InvalidImage, match=rf"^expected text, found {type(value).__name__}$"):
        images.from_text(value)  # type: ignore[arg-type]


# HEIC


def heic(picture: Image.Image, **options: object) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(picture).save(file, quality=95, **options)
    return file.getvalue()


def test_heic() -> None:
    data = heic(pictures.scene())
    assert images.sniff(data) == "HEIF"
    assert mean_difference(images.decode(data), pictures.scene()) < 8
    assert images.info(data) == {"format": "HEIF", "width": 64, "height": 48, "orientation": 1, "bytes": len(data)}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_orientation(orientation: int) -> None:
    method = pictures.STORED_AS[orientation]
    stored = pictures.quadrants() if method is None else pictures.quadrants().transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = heic(stored, exif=exif.tobytes())
    picture = images.decode(data)
    assert picture.size == (64, 48)
    assert_quadrants(picture)
    found = images.info(data)
    assert (found["width"], found["height"], found["orientation"]) == (64, 48, orientation)


def test_heic_truncated_and_flipped() -> None:
    data = heic(pictures.scene())
    for end in range(0, len(data) - 1, max(1, len(data) // 40)):
        assert images.error(data[:end]) is not None
    generator = np.random.default_rng(5)
    for _ in range(200):
        flipped = bytearray(data)
        for position in generator.integers(0, len(data), 5):
            flipped[position] = generator.integers(0, 256)
        images.error(bytes(flipped))  # raises nothing


def test_heic_is_read_without_changing_pillow() -> None:
    data = heic(pictures.scene())
    assert images.decode(data).size == (64, 48)
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(data))


def test_what_a_decoder_quotes_of_a_file_is_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libheif does, of some versions, with the name of a box."""

    def fail(picture: Image.Image) -> None:
        raise OSError("could not parse item property '\x01lap\x1b[31m'")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    reason = images.error(pictures.jpeg())
    assert reason is not None
    assert "could not parse item property 'lap[31m'" in reason


def test_heic_without_pillow_heif_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = hostile.HOSTILE_IMAGES["heif_only_its_brand"]
    assert images.error(data) == "reading HEIF images needs another package: pip install 'datasette-vision[heif]'"


# Threads


def test_many_threads_at_once() -> None:
    expected = images.decode(pictures.jpeg(200, 150)).tobytes()
    names = sorted(hostile.HOSTILE_IMAGES)[::4]
    wrong: list[object] = []

    def work(offset: int) -> None:
        try:
            for step in range(20):
                if images.decode(pictures.jpeg(200, 150)).tobytes() != expected:
                    wrong.append("other pixels")
                images.error(hostile.HOSTILE_IMAGES[names[(offset + step) % len(names)]])
        except Exception as reason:
            wrong.append(reason)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_files_that_end_like_images() -> None:
    for suffix in (".jpg", ".png", ".webp", ".gif", ".bmp", ".tiff", ".avif", ".heic", ".JPG"):
        assert has_image_suffix(f"some.where/photo.1{suffix}")
    for name in ("photo", ".jpg", "photo.jpg/notes", "photo.jpg.txt", "jpg", ""):
        assert not has_image_suffix(name)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((640, 480), (640, 480)),
        ((1600, 1200), (800, 600)),  # what the target alone needs, for the thumbnail too
        ((1800, 1800), (900, 900)),  # the target would take a quarter, of which a thumbnail had to be enlarged
        ((2400, 2400), (600, 600)),
        ((2400, 300), (2400, 300)),
    ],
)
def test_decoding_once_for_several_uses(size: tuple[int, int], decoded: tuple[int, int]) -> None:
    data = pictures.with_orientation(1, picture=pictures.quadrants(*size))
    image = images.decode_once(data, 200, 512)
    assert image.picture.size == decoded
    if size[0] != 1800:
        assert (array(image.picture) == array(images.decode(data, target=200))).all()
    assert image.info == images.info(data)
    assert image.exif == images.exif(data)
    small = Image.open(io.BytesIO(image.thumbnail(512)))
    assert max(small.size) == 512
    assert small.size == image.picture.size == Image.open(io.BytesIO(images.thumbnail(data, 512))).size
    assert mean_difference(small.convert("RGB"), Image.open(io.BytesIO(images.thumbnail(data, 512))).convert("RGB")) < 2


def test_a_thumbnail_keeps_the_profile_when_decoded_once() -> None:
    data = pictures.encode(pictures.quadrants(), "PNG", icc_profile=b"a small profile" * 20)
    assert images.decode_once(data, 16, 32).profile == b"a small profile" * 20
    assert images.decode_once(pictures.jpeg(), 16).profile == b""
