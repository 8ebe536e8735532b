"""Image files that every decoder reads alike, and files in which this project differs from others on purpose."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from datasette_vision.install.samples import imitated_photograph
from tests.pictures import encode

SHAPES = ((640, 480), (480, 640), (400, 400), (333, 500), (1024, 576), (224, 224), (160, 120), (700, 90), (37, 211))


def photographs(seed: int = 1) -> list[Image.Image]:
    """Return imitated photographs, one of each shape."""
    generator = np.random.default_rng(seed)
    return [imitated_photograph(size, generator) for size in SHAPES]


def same() -> dict[str, bytes]:
    """Return 24 opaque, upright files by what they are, in the modes and formats that people have."""
    pictures = photographs()
    files = {f"PNG RGB {width}x{height}": encode(pictures[n], "PNG") for n, (width, height) in enumerate(SHAPES)}
    for number, mode in enumerate(("L", "P", "1", "RGBA", "LA")):
        files[f"PNG {mode}"] = encode(pictures[number].convert(mode), "PNG")
    for number, (kind, options) in enumerate(
        (
            ("GIF", {}),
            ("BMP", {}),
            ("TIFF", {}),
            ("WEBP", {"quality": 90}),
            ("WEBP", {"lossless": True}),
        )
    ):
        files[f"{kind} {number}"] = encode(pictures[number], kind, **options)
    # Small enough that a JPEG is decoded at full size.
    files["JPEG RGB"] = encode(pictures[5], "JPEG", quality=90)
    files["JPEG L"] = encode(pictures[5].convert("L"), "JPEG", quality=90)
    files["JPEG CMYK"] = encode(pictures[6].convert("CMYK"), "JPEG", quality=90)
    files["JPEG progressive"] = encode(pictures[2], "JPEG", quality=90, progressive=True)
    files["JPEG 640x480"] = encode(pictures[0], "JPEG", quality=90)
    return files


def different() -> dict[str, list[tuple[bytes, Image.Image]]]:
    """Return, by what it is about, (file, the picture that people see in it)."""
    pictures = photographs(2)
    turned = []
    for picture in pictures:
        exif = Image.Exif()
        exif[0x0112] = 6  # stored on its side, as telephones do
        stored = picture.transpose(Image.Transpose.ROTATE_90)
        turned.append((encode(stored, "PNG", exif=exif.tobytes()), picture))
    transparent = []
    for picture in pictures:
        alpha = Image.radial_gradient("L").resize(picture.size).point(lambda value: 255 if value < 128 else 0)
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=alpha)
        # What lies under the transparent part is whatever the program that wrote it left there: black, mostly.
        black = Image.new("RGB", picture.size)
        black.paste(picture, mask=alpha)
        black.putalpha(alpha)
        transparent.append((encode(black, "PNG"), white))
    generator = np.random.default_rng(3)
    large = []
    for size in ((4000, 3000), (3000, 4000), (2048, 1536)):
        content = encode(imitated_photograph((size[0] // 4, size[1] // 4), generator).resize(size), "JPEG", quality=90)
        large.append((content, _decoded(content)))
    return {
        "EXIF orientation (applied)": turned,
        "transparency (laid over white)": transparent,
        "JPEG of 3 to 12 megapixels (decoded smaller)": large,
    }


def _decoded(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.convert("RGB")
