"""Whatever a file holds, it comes out as an upright RGB picture or an InvalidImage, and every function agrees on it."""

from __future__ import annotations

import contextlib
import ctypes
import io

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from datasette_vision.errors import InvalidImage
from datasette_vision.images import decode as images
from datasette_vision.images import exif, perceptual_hash
from datasette_vision.images.decode import ImageLimits
from datasette_vision.images.preprocess import Preprocess, Size
from tests import pictures
from tests.fuzz.files import FORMATS, scenes, seeds, tiffs
from tests.fuzz.files import images as damaged
from tests.fuzz.properties import assert_linear, fuzz

LIMITS = ImageLimits(max_bytes=2_000_000, max_pixels=4_000_000)
CLIP = Preprocess(Size(shortest_edge=32), 32, 32)

# As a server runs: Pillow's warnings go to its log.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def fill_fresh_memory_with(byte: int) -> None:
    """Have malloc() fill what it gives out, so that a picture of memory that nobody wrote to shows."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(-6, byte)  # M_PERTURB of glibc


def read(data: bytes, target: int | None) -> Image.Image | str:
    """The picture, or why there is none."""
    try:
        return images.decode(data, limits=LIMITS, target=target)
    except InvalidImage as reason:
        return check_message(str(reason))


def check_message(text: str) -> str:
    assert 10 < len(text) < 300
    assert text.isprintable()
    assert "<_io" not in text
    assert " at 0x" not in text
    return text


def check(data: bytes) -> None:
    """All that has to hold of any bytes."""
    kind = images.sniff(data)
    try:
        info = images.info(data)
    except InvalidImage as reason:
        info = None
        check_message(str(reason))
    whole, small = read(data, None), read(data, 16)
    why_not = images.error(data, LIMITS)
    if info is None:
        # Nothing decodes whose header cannot be read.
        assert isinstance(whole, str)
        assert isinstance(small, str)
        assert why_not is not None
    else:
        assert info["format"] == kind
        assert info["bytes"] == len(data)
        assert 1 <= info["orientation"] <= 8
        assert info["width"] > 0
        assert info["height"] > 0
    if isinstance(whole, Image.Image):
        assert info is not None
        assert whole.mode == "RGB"
        assert not whole.info
        assert whole.size == (info["width"], info["height"])
        assert whole.width * whole.height <= LIMITS.max_pixels
        assert not isinstance(small, str), "it decodes, but not at a reduced size"
        assert why_not is None
    if isinstance(small, Image.Image):
        assert small.mode == "RGB"
        pixels = CLIP(small)
        assert pixels.shape == (3, 32, 32)
        assert np.isfinite(pixels).all()
        assert (
            perceptual_hash.perceptual_hash(small) is None
            or len(perceptual_hash.perceptual_hash(small) or b"") == perceptual_hash.HASH_BYTES
        )
    for pixels_wide in (1, 24):
        try:
            made = images.thumbnail(data, pixels_wide, LIMITS)
        except InvalidImage as reason:
            check_message(str(reason))
            assert isinstance(whole, str), "it decodes, but has no thumbnail"
        else:
            assert isinstance(small, Image.Image) or why_not is None
            drawn = Image.open(io.BytesIO(made))
            assert drawn.format == "WEBP"
            assert max(drawn.size) <= pixels_wide
            assert images.error(made) is None
            assert images.exif(made) == b""
    if info is not None:
        taken = exif.read_exif(images.exif(data))
        assert taken.latitude is None or -90 <= taken.latitude <= 90
        assert taken.longitude is None or -180 <= taken.longitude <= 180


def check_determined(data: bytes) -> None:
    """The same file is the same picture: no memory shows in it that its decoder never wrote to."""
    found = []
    for byte in (0x5A, 0xC3):
        fill_fresh_memory_with(byte)
        try:
            picture = read(data, None)
        finally:
            fill_fresh_memory_with(0)
        found.append(picture if isinstance(picture, str) else picture.tobytes())
    assert found[0] == found[1], "two readings of one file differ"


@pytest.mark.parametrize("image_format", FORMATS)
@fuzz(st.data())
def test_damaged_files(image_format: str, data: st.DataObject) -> None:
    if not seeds(image_format):
        pytest.skip("there is no encoder")
    check(data.draw(damaged(image_format)))


@pytest.mark.parametrize("image_format", FORMATS)
@fuzz(st.data(), weight=0.5)
def test_no_memory_shows_in_a_picture(image_format: str, data: st.DataObject) -> None:
    if not seeds(image_format):
        pytest.skip("there is no encoder")
    check_determined(data.draw(damaged(image_format)))


@fuzz(tiffs(), weight=2)
def test_tiffs_of_any_tags(data: bytes) -> None:
    check(data)
    check_determined(data)


@fuzz(
    st.binary(max_size=200)
    | st.builds(bytes.__add__, st.sampled_from([s[:20] for f in FORMATS for s in seeds(f)]), st.binary(max_size=200))
)
def test_bytes(data: bytes) -> None:
    check(data)
    images.foreign(data) if hasattr(images, "foreign") else None


@fuzz(
    scenes(),
    st.sampled_from(("PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG", "AVIF")),
    st.integers(1, 8),
)
def test_what_is_written_is_read(picture: Image.Image, image_format: str, orientation: int) -> None:
    """A good file is read, upright and whole, whatever its size; a lossless one to the bit."""
    lossless = {"WEBP": {"lossless": True}}.get(image_format, {})
    if image_format in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF"):
        stored = pictures.STORED_AS[orientation]
        tags = Image.Exif()
        tags[0x0112] = orientation
        turned = picture if stored is None else picture.transpose(stored)
        data = pictures.encode(turned, image_format, exif=tags, **lossless)
    else:
        orientation = 1
        data = pictures.encode(picture, image_format)
    info, read = images.info(data), images.decode(data)
    assert (info["format"], info["width"], info["height"]) == (image_format, *picture.size)
    assert read.size == picture.size
    assert images.error(data) is None
    if image_format in ("PNG", "BMP", "TIFF", "WEBP"):
        assert info["orientation"] == orientation
        assert read.tobytes() == picture.tobytes()
    again = images.decode(pictures.encode(read, "PNG"))
    assert again.tobytes() == read.tobytes()


@pytest.mark.parametrize("image_format", FORMATS)
@fuzz(st.data(), weight=0.3)
def test_pieces_take_time_in_proportion(image_format: str, data: st.DataObject) -> None:
    """A file with ten times as many of any of its pieces takes no more than some thirty times as long."""
    if not seeds(image_format):
        pytest.skip("there is no encoder")
    from tests.fuzz.files import pieces, repaired

    parts = pieces(image_format, data.draw(st.sampled_from(seeds(image_format))))
    at = data.draw(st.integers(0, len(parts) - 1))
    piece = parts[at][: data.draw(st.sampled_from((100, 4, 1)))]
    count = 5_000 // len(piece)

    def work(number: int) -> None:
        images.error(repaired(image_format, b"".join([*parts[: at + 1], piece * number, *parts[at + 1 :]])), LIMITS)

    assert_linear(work, count)
