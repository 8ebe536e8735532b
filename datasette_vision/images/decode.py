"""Decodes images: from untrusted bytes to an upright RGB image, or an `InvalidImage` that says what is wrong.

Only the decoder for the format in the first bytes gets the file. Sizes are checked before pixels are decoded, and every
error of a decoder becomes an `InvalidImage`. No global setting of Pillow is changed.
"""

from __future__ import annotations

import importlib
import io
import re
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from datasette_vision.errors import InvalidArgument, InvalidImage
from datasette_vision.images import decode_memory, formats, tiff_tags
from datasette_vision.images.color_modes import to_rgb
from datasette_vision.images.data_uri import from_text
from datasette_vision.images.formats import sniff

__all__ = ["DEFAULT_LIMITS", "ImageLimits", "decode", "error", "exif", "from_text", "info", "sniff", "thumbnail"]

MAX_THUMBNAIL_PIXELS = 2048

# These classes are called directly. Image.open() would add its own limits (a warning at 89 megapixels, an error at
# 179), which only process-wide settings can change, and would use another decoder for a JPEG with several images.
_DECODERS = {
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
    "TIFF": ("PIL.TiffImagePlugin", "TiffImageFile"),
    "AVIF": ("PIL.AvifImagePlugin", "AvifImageFile"),
    "HEIF": ("pillow_heif", "HeifImageFile"),
}

# Exif 2.32, tag 0x0112: how to turn the stored image to make it upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_XMP_ORIENTATION = re.compile(r'tiff:Orientation(?:="|>)([1-8])')

_MAX_RUN_LENGTH_PIXELS = 6_000_000  # Pillow decodes such BMP files in Python: 0.3 microseconds per pixel, at worst
# Effort, 0 to 6. For images of 512 pixels, 0 takes a third of the time of Pillow's 4, for 1.18 times the bytes and the
# same likeness; 2 takes half the time, for 1.05 times the bytes: benchmarks/thumbnails.py.
_WEBP_METHOD = 0
_MAX_KEPT_PROFILE = 10_000  # bytes; common RGB profiles have 400 to 4,000


@dataclass(frozen=True)
class ImageLimits:
    """Limits that are checked before decoding.

    `max_bytes` of the file, `max_pixels` of the image, and `max_aspect`, its longer edge divided by its shorter: models
    see a square, and scaling the shorter edge of a 1x100000 strip to 224 would make 5,000 megapixels. A JPEG that is
    decoded at reduced size, strip by strip, may have `strip_factor` times the pixels: it takes only time, not memory.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 100_000_000
    max_aspect: int = 200
    strip_factor: int = 4


DEFAULT_LIMITS = ImageLimits()


class ReservesMemory(Protocol):
    """Grants memory: a budget.Reservation."""

    held: int

    def take(self, size: int, what: str, *, wait: bool) -> bool:
        """Take bytes to decode `what`, now or after waiting. Returns whether they were taken. Raises InvalidImage or
        Busy.
        """


@dataclass
class _Header:
    """An opened file whose pixels have not been decoded."""

    format: str
    data: bytes
    given: bytes  # the bytes passed to the decoder
    image: Any  # PIL.ImageFile.ImageFile, with the attributes of its format
    exif: bytes
    orientation: int
    turn: int  # the part of the orientation that the decoder does not apply

    def __post_init__(self) -> None:
        self.full_size = self.size  # before a smaller one is chosen

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright."""
        width, height = self.image.size
        return (height, width) if self.turn >= 5 else (width, height)


@dataclass
class DecodedImage:
    """An image decoded once for several uses: the upright RGB picture, and the results of info() and exif().

    `profile` is a small RGB colour profile, or empty.
    """

    picture: Image.Image
    info: dict[str, Any]
    exif: bytes
    profile: bytes

    def thumbnail(self, pixels: int) -> bytes:
        """Shrink the picture to `pixels` on its longer edge, in place, and return it as a WebP file."""
        self.picture.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        self.picture.save(file, "WEBP", quality=80, method=_WEBP_METHOD, icc_profile=self.profile)
        return file.getvalue()


def decode(
    data: bytes,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    target: int | None = None,
    reservation: ReservesMemory | None = None,
) -> Image.Image:
    """Decode an image file to an upright image of mode "RGB" without metadata.

    JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, and HEIC if pillow-heif is installed; the first frame or page. The EXIF
    orientation is applied, transparency is laid over white, 16-bit values are scaled to 8 bits. Colour profiles are
    ignored, as when the models were trained.

    `target` is the length in pixels of the shorter edge that the caller needs. A JPEG that is at least four times as
    large is decoded at 1/2, 1/4 or 1/8 of its size, never below twice the target. This is much faster for large images,
    and hardly different after the caller's own resizing (by at most 3 of 255, measured).

    `reservation` takes the bytes that decoding needs, once they are free, before any pixel is decoded.

    Raises InvalidImage; with a reservation also Busy.
    """
    return _read_pixels(_admitted(data, limits, target, reservation))


def info(data: bytes) -> dict[str, Any]:
    """Describe an image from its header, without decoding pixels.

    Returns `format` (as `sniff`), `width` and `height` in pixels of the upright image, `orientation` (the EXIF number,
    1 to 8; 1 is upright) and `bytes`. Raises InvalidImage.
    """
    return _describe(_open(data, None))


def _describe(header: _Header) -> dict[str, Any]:
    width, height = header.full_size
    return {
        "format": header.format,
        "width": width,
        "height": height,
        "orientation": header.orientation,
        "bytes": len(header.data),
    }


def exif(data: bytes) -> bytes:
    """The EXIF block of an image, which for a TIFF is the file itself; empty if it has none. Raises InvalidImage."""
    return _open(data, None).exif


def error(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, reservation: ReservesMemory | None = None) -> str | None:
    """Why `decode` refuses this image at the smallest size, or None. A large JPEG may still be too large at another
    size.
    """
    try:
        decode(data, limits=limits, target=1, reservation=reservation)
    except InvalidImage as reason:
        return str(reason)
    return None


def thumbnail(
    data: bytes, pixels: int, limits: ImageLimits = DEFAULT_LIMITS, reservation: ReservesMemory | None = None
) -> bytes:
    """A small upright WebP file with a longer edge of at most `pixels` (1 to 2048); never enlarged.

    Transparency is laid over white, so that a person sees what the model saw. Of the metadata only a small RGB colour
    profile is kept, so that an image's location stays private and its colours stay right.

    Raises InvalidArgument if `pixels` is out of range, InvalidImage if the image cannot be read.
    """
    if isinstance(pixels, bool) or not isinstance(pixels, int) or not 1 <= pixels <= MAX_THUMBNAIL_PIXELS:
        raise InvalidArgument(f"a thumbnail's size is an integer from 1 to {MAX_THUMBNAIL_PIXELS}, not {pixels!r:.40}")
    return _decoded(_admitted(data, limits, None, reservation, pixels)).thumbnail(pixels)


def decode_once(
    data: bytes,
    target: int,
    longest: int | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    reservation: ReservesMemory | None = None,
) -> DecodedImage:
    """Decode an image for several uses: as decode() does for `target`, or larger if a thumbnail of `longest` needs it.

    Raises InvalidImage; with a reservation also Busy.
    """
    return _decoded(_admitted(data, limits, target, reservation, longest))


def _decoded(header: _Header) -> DecodedImage:
    profile = header.image.info.get("icc_profile") or b""
    if not header.image.mode.startswith(("RGB", "P")) or len(profile) > _MAX_KEPT_PROFILE:
        profile = b""
    return DecodedImage(_read_pixels(header), _describe(header), header.exif, profile)


def _open(data: bytes, max_bytes: int | None) -> _Header:
    """Read the header with the decoder for the format in the first bytes. Raises InvalidImage."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidImage(f"an image has to be bytes, not {type(data).__name__}")
    data = bytes(data)
    if not data:
        raise InvalidImage("an image of 0 bytes is empty")
    if max_bytes is not None and len(data) > max_bytes:
        raise InvalidImage(
            f"an image of {len(data) / 1e6:.1f} MB is more than the {max_bytes / 1e6:g} MB allowed (max_image_mb)"
        )
    image_format = sniff(data)
    if image_format is None:
        raise InvalidImage(
            formats.foreign(data)
            or f"not an image of a known format ({', '.join(formats.FORMATS)}): "
            f"{len(data)} bytes that begin with {data[:8].hex(' ')}"
        )
    exif, given = formats.split_jpeg(data) if image_format == "JPEG" else (b"", data)
    if bomb := tiff_tags.tag_bomb(image_format, data) or formats.piece_bomb(image_format, given):
        raise InvalidImage(f"corrupt {image_format} image: {bomb}")
    if image_format == "PNG":
        given = formats.split_png(data)
    module, name = _DECODERS[image_format]
    try:
        decoder = getattr(importlib.import_module(module), name)
    except ImportError as reason:
        advice = "pip install 'datasette-vision[heif]'" if image_format == "HEIF" else "upgrade Pillow"
        raise InvalidImage(f"reading {image_format} images needs another package: {advice}") from reason
    try:
        image = decoder(io.BytesIO(given), "")
        exif = _exif(image_format, image, exif, data)
        orientation, turn = _orientation(image_format, image, exif)
    except Exception as reason:
        raise _explain(image_format, data, "header", reason) from reason
    return _Header(image_format, data, given, image, exif, orientation, turn)


def _admitted(
    data: bytes,
    limits: ImageLimits,
    target: int | None,
    reservation: ReservesMemory | None,
    longest: int | None = None,
) -> _Header:
    """Open a file, and check that it may be decoded: to a shorter edge of `target`, to a thumbnail of `longest` pixels,
    or to both.

    With a target, a thumbnail is made from the image that decode() gives for it, unless that is smaller.

    Raises InvalidImage; with a reservation also Busy.

    A caller that waits for memory holds no opened file, because decoders copy it.
    """
    while True:
        header = _open(data, limits.max_bytes)
        stored = header.image.size
        if longest is not None:
            shorter, longer = sorted(header.size)
            edge = max(1, -(-longest * shorter // longer))
            _admit(header, limits, edge if target is None else max(target, -(-edge // 2)))
        else:
            _admit(header, limits, target)
        if reservation is None:
            return header
        size = decode_memory.decoding_bytes(
            header.format, header.image, header.given, stored[0] * stored[1], header.turn != 1
        )
        if longest is not None:
            size = max(size, decode_memory.thumbnail_bytes(header.size, longest))
        what = f"this {header.format} image of {stored[0]}x{stored[1]} pixels"
        if reservation.held >= size or reservation.take(size, what, wait=False):
            return header
        del header
        reservation.take(size, what, wait=True)


def _admit(header: _Header, limits: ImageLimits, target: int | None) -> None:
    """Choose the size to decode at. Raises InvalidImage for too many pixels, or if decoding would take too long."""
    width, height = header.size
    decoded = pixels = width * height
    allowed = limits.max_pixels
    if header.format == "TIFF":  # a tile is decoded as a whole, however small the image is
        tile = [header.image.tag_v2.get(tag) for tag in (322, 323)]
        if all(isinstance(length, int) for length in tile):
            decoded = pixels = max(pixels, tile[0] * tile[1])
    if header.format == "JPEG" and target is not None:
        try:
            header.image.draft(None, (2 * max(1, target),) * 2)
        except Exception as reason:
            raise _explain(header.format, header.data, "header", reason) from reason
        if formats.is_read_in_strips(header.given):
            decoded = header.image.size[0] * header.image.size[1]
            allowed *= limits.strip_factor
    if pixels > allowed or decoded > limits.max_pixels:
        raise InvalidImage(
            f"an image of {width}x{height} pixels ({pixels / 1e6:.1f} megapixels) is more than the "
            f"{(allowed if pixels > allowed else limits.max_pixels) / 1e6:g} megapixels allowed (max_image_megapixels)"
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise InvalidImage(
            f"an image of {width}x{height} pixels is a strip: "
            f"its longer edge may be at most {limits.max_aspect} times its shorter one"
        )
    if header.format == "BMP" and pixels > _MAX_RUN_LENGTH_PIXELS and header.image.tile[0][0] == "bmp_rle":
        raise InvalidImage(
            f"a run-length coded BMP image may have {_MAX_RUN_LENGTH_PIXELS / 1e6:g} megapixels, "
            f"not {pixels / 1e6:.1f}: convert it to PNG"
        )


def _read_pixels(header: _Header) -> Image.Image:
    """The image, upright, mode "RGB", without metadata. Raises InvalidImage. The header cannot be used afterwards."""
    turn = _UPRIGHT.get(header.turn)
    try:
        image = _load(header)
        picture = to_rgb(image, header.data)
        del image
        if turn is not None:
            picture = picture.transpose(turn)
    except Exception as reason:
        raise _explain(header.format, header.data, "pixels", reason) from reason
    picture.info.clear()  # so that no later step rotates an upright image again
    return picture


def _load(header: _Header) -> Any:
    """Decode the pixels, and release the decoder: returns a Pillow image, in any mode.

    Otherwise Pillow keeps the decoder of a WebP or AVIF, its output, and the image made from it: 21 bytes per pixel.
    """
    image, header.image = header.image, None
    if header.format not in ("WEBP", "AVIF"):
        if header.format == "JPEG":
            # In one piece: libjpeg gets unused bytes again with each piece, which is quadratic.
            image.decodermaxblock = max(image.decodermaxblock, len(header.given))
        image.load()
        return image
    size, mode = image.size, image.mode
    decoder = image._decoder
    del image
    decoded = decoder.get_next() if header.format == "WEBP" else decoder.get_frame(0)
    if decoded is None:
        raise ValueError("its first frame is malformed")
    del decoder
    if header.format == "WEBP":  # four bytes per pixel; the last is unused without transparency
        mode = "RGBA" if mode == "RGBA" else "RGBX"
        return Image.frombuffer(mode, size, decoded[0], "raw", mode, 0, 1)
    return Image.frombytes(mode, size, decoded[0])


def _exif(image_format: str, image: Any, segment: bytes, data: bytes) -> bytes:
    if image_format == "TIFF":
        return data
    # Not image.getexif(): it decodes a whole PNG to find EXIF after the pixels, and raises on broken EXIF.
    found = segment or image.info.get("exif") or (formats.png_exif(data) if image_format == "PNG" else b"")
    return found if isinstance(found, bytes) else b""


def _orientation(image_format: str, image: Any, exif: bytes) -> tuple[int, int]:
    """(orientation, turn): the value in EXIF or XMP, and the rotation that the decoder does not apply."""
    if image_format == "HEIF":  # libheif applies the container's rotation; EXIF only repeats it
        original = image.info.get("original_orientation") or 1
        return (original if 1 <= original <= 8 else 1), 1
    if image_format == "TIFF":  # Pillow rotates it while loading
        return tiff_tags.exif_orientation(exif), 1
    orientation = tiff_tags.exif_orientation(exif)
    if orientation == 1:
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or ""
        xmp = xmp.decode("latin-1") if isinstance(xmp, bytes) else xmp
        if isinstance(xmp, str) and (found := _XMP_ORIENTATION.search(xmp)):
            orientation = int(found[1])
    return orientation, orientation


def _explain(image_format: str, data: bytes, part: str, reason: Exception) -> InvalidImage:
    """Explain why a decoder failed."""
    if isinstance(reason, MemoryError):
        return InvalidImage(f"decoding this {image_format} image needs more memory than is available")
    missing = formats.truncation(image_format, data)
    if missing:
        return InvalidImage(f"truncated {image_format} image: {missing}")
    detail = ""
    if isinstance(reason, (OSError, SyntaxError, ValueError, RuntimeError)) and not isinstance(reason, UnicodeError):
        # Some decoders quote the file: keep only printable characters.
        detail = "".join(filter(str.isprintable, " ".join(str(reason).split())))[:100]
    if "truncated" in detail.lower():
        return InvalidImage(f"truncated {image_format} image of {len(data)} bytes: its {part} should be longer")
    if not any(map(str.isalpha, detail)) or "not identified by this driver" in detail:
        detail = "it is malformed"
    return InvalidImage(f"corrupt {image_format} image of {len(data)} bytes: cannot read its {part} ({detail})")
