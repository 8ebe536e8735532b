"""What decoding an image takes at its peak, by format and mode, beside what is reserved for it: the estimate must hold.

    python -m benchmarks.decode_memory [--megapixels 9] [--only tiff]

Each case is decoded in a process of its own: as a model sees it (decoded, turned upright, resized and cut out), at its
full size, as thumbnails, and to see whether it can be read. The growth of the resident memory at its peak is read from
the kernel (VmHWM). Files are of smooth colours: what is held while decoding hardly depends on the content. Linux only.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasette_vision.images import decode as images
from datasette_vision.images.budget import DecodeBudget
from datasette_vision.images.decoder import Decoder
from datasette_vision.images.preprocess import Preprocess, Size
from datasette_vision.util import memory
from tests import pictures

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets VmHWM to the current resident size
CLIP = Preprocess(Size(shortest_edge=224), 224, 224)


def cases(width: int, height: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Each kind of file, by name, with what makes one of width x height pixels."""

    def encoded(image_format: str, mode: str = "RGB", **options: Any) -> Callable[[], bytes]:
        return lambda: pictures.encode(pictures.scene(width, height).convert(mode), image_format, **options)

    def turned(image_format: str, **options: Any) -> Callable[[], bytes]:
        exif = Image.Exif()
        exif[0x0112] = 6
        return encoded(image_format, exif=exif, **options)

    def grey(kind: str) -> Callable[[], bytes]:
        return lambda: pictures.encode(
            Image.fromarray(_ramp(width, height).astype(kind)), "TIFF", compression="tiff_lzw"
        )

    def transparent_palette(image_format: str) -> bytes:
        return pictures.encode(pictures.scene(width, height).quantize(256), image_format, transparency=0)

    yield "JPEG", encoded("JPEG")
    yield "JPEG L", encoded("JPEG", "L")
    yield "JPEG CMYK", encoded("JPEG", "CMYK")
    yield "JPEG turned", turned("JPEG")
    yield "JPEG progressive", encoded("JPEG", progressive=True)
    yield "JPEG progressive 4:4:4", encoded("JPEG", progressive=True, subsampling=0)
    yield "JPEG progressive L", encoded("JPEG", "L", progressive=True)
    yield "JPEG progressive CMYK", encoded("JPEG", "CMYK", progressive=True)
    yield "PNG 1", encoded("PNG", "1")
    for mode in ("L", "LA", "RGB", "RGBA"):
        yield f"PNG {mode}", encoded("PNG", mode, compress_level=1)
    yield "PNG P", lambda: pictures.encode(pictures.scene(width, height).quantize(256), "PNG", compress_level=1)
    yield "PNG P transparent", lambda: transparent_palette("PNG")
    yield "PNG RGB transparent", encoded("PNG", transparency=(1, 2, 3), compress_level=1)
    yield "PNG turned", turned("PNG", compress_level=1)
    yield (
        "PNG I;16",
        lambda: pictures.encode(Image.fromarray(_ramp(width, height).astype("u2")), "PNG", compress_level=1),
    )
    yield "PNG RGB 16 bits", lambda: pictures.raw_png(width, height, 16, 2, bytes((width * 6 + 1) * height))
    yield "PNG RGBA 16 bits", lambda: pictures.raw_png(width, height, 16, 6, bytes((width * 8 + 1) * height))
    yield "PNG interlaced", lambda: _interlaced(width, height)
    yield "WEBP lossy", encoded("WEBP")
    yield "WEBP lossy alpha", encoded("WEBP", "RGBA")
    yield "WEBP lossless", encoded("WEBP", lossless=True, method=0)
    yield "WEBP lossless alpha", encoded("WEBP", "RGBA", lossless=True, method=0)
    yield "WEBP turned", turned("WEBP")
    yield "WEBP animated", lambda: _animated(width, height, "WEBP")
    yield "GIF", lambda: pictures.encode(pictures.scene(width, height).quantize(256), "GIF")
    yield "GIF transparent", lambda: transparent_palette("GIF")
    yield "GIF animated", lambda: _animated(width, height, "GIF")
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"BMP {mode}", encoded("BMP", mode)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "YCbCr"):
        yield f"TIFF {mode}", encoded("TIFF", mode)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"TIFF RGB {compression}", encoded("TIFF", compression=compression)
        yield f"TIFF RGB {compression} in one strip", encoded("TIFF", compression=compression, tiffinfo={278: height})
    yield "TIFF RGBA tiff_lzw in one strip", encoded("TIFF", "RGBA", compression="tiff_lzw", tiffinfo={278: height})
    yield "TIFF YCbCr jpeg", encoded("TIFF", "YCbCr", compression="jpeg")
    yield "TIFF 1 group4", encoded("TIFF", "1", compression="group4")
    for kind in ("u2", "i4", "f4"):
        yield f"TIFF {kind}", grey(kind)
        yield f"TIFF {kind} raw", lambda kind=kind: pictures.grey_tiff(_ramp(width, height).astype(kind))
    yield "TIFF turned", turned("TIFF")
    yield "TIFF turned lzw", turned("TIFF", compression="tiff_lzw")
    yield "AVIF", encoded("AVIF", speed=10)
    yield "AVIF 4:4:4", encoded("AVIF", speed=10, subsampling="4:4:4")
    yield "AVIF alpha", encoded("AVIF", "RGBA", speed=10)
    yield "AVIF L", encoded("AVIF", "L", speed=10)
    yield "AVIF turned", turned("AVIF", speed=10)
    yield "AVIF animated", lambda: _animated(width, height, "AVIF", speed=10)
    try:
        import pillow_heif
    except ImportError:
        return
    pillow_heif.register_heif_opener()
    yield "HEIF", encoded("HEIF")
    yield "HEIF 4:4:4", encoded("HEIF", chroma="444")
    yield "HEIF alpha", encoded("HEIF", "RGBA")
    yield "HEIF L", encoded("HEIF", "L")
    yield "HEIF 16 bits", lambda: _heif_16_bits(width, height)


def _ramp(width: int, height: int) -> np.ndarray:
    return np.add.outer(np.arange(height), np.arange(width)) * (60_000 / (width + height))


def _animated(width: int, height: int, image_format: str, **options: Any) -> bytes:
    frames = [pictures.scene(width, height, seed) for seed in range(2)]
    if image_format == "GIF":
        frames = [frame.quantize(256) for frame in frames]
    return pictures.encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)


def _interlaced(width: int, height: int) -> bytes:
    """A grey PNG in Adam7's seven passes, all black."""
    starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = sum((math.ceil((width - x) / dx) * 3 + 1) * math.ceil((height - y) / dy) for x, y, dx, dy in starts)
    good = pictures.raw_png(width, height, 8, 2, bytes(rows))
    head = good[16:28] + b"\1"
    return good[:8] + pictures.png_chunk(b"IHDR", head) + good[33:]


def _heif_16_bits(width: int, height: int) -> bytes:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.encode("RGB;16", (width, height), bytes(6 * width * height), file)
    return file.getvalue()


def _resident(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def growth(work: Callable[[], object]) -> int:
    """The bytes by which the resident memory grows at the most while `work` runs."""
    CLEAR_REFS.write_text(RESET_PEAK)
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


class Recorded(DecodeBudget):
    """A budget without end that keeps the most that one image took of it."""

    def __init__(self) -> None:
        super().__init__(1 << 50)
        self.held_at_most = 0

    def take(self, size: int, *, wait: bool) -> bool:
        self.held_at_most = max(self.held_at_most, size)
        return super().take(size, wait=wait)


def measure(which: str, path: Path, small: Path) -> tuple[int, int]:
    """(bytes that decoding a file takes in this process, bytes reserved), for one of JOBS.

    A small file of the same kind has loaded the decoder before.
    """
    budget = Recorded()
    decoder = Decoder(images.ImageLimits(max_bytes=1 << 40, max_pixels=1 << 40), budget)
    jobs: dict[str, Callable[[bytes], object]] = {
        "embed": lambda data: decoder.decode(data, CLIP, CLIP.target),
        "full": lambda data: decoder.decode(data, lambda picture: None),
        "thumbnail": lambda data: decoder.thumbnail(data, 512),
        "large thumbnail": lambda data: decoder.thumbnail(data, images.MAX_THUMBNAIL_PIXELS),
        "error": decoder.error,
    }
    data = path.read_bytes()
    jobs[which](small.read_bytes())
    memory.trim()
    return growth(lambda: jobs[which](data)), budget.held_at_most


JOBS = ("embed", "full", "thumbnail", "large thumbnail", "error")


def measured(name: str, folder: Path, width: int, height: int) -> dict[str, tuple[float, float]]:
    """{job: (bytes a pixel measured, reserved)} for one case."""
    large, small = folder / "large", folder / "small"
    large.write_bytes(dict(cases(width, height))[name]())
    small.write_bytes(dict(cases(64, 64))[name]())
    found = {}
    for job in JOBS:
        command = [sys.executable, "-m", "benchmarks.decode_memory", "--measure", job, str(large), str(small)]
        taken, reserved = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        found[job] = taken / (width * height), reserved / (width * height)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=9)
    parser.add_argument("--aspect", type=float, default=0.75, help="width over height; tall pictures take the most")
    parser.add_argument("--only", default="", help="a part of the names of cases")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        job, large, small = arguments.measure
        print(json.dumps(measure(job, Path(large), Path(small))))
        return
    width = round(math.sqrt(arguments.megapixels * 1e6 * arguments.aspect))
    height = round(width / arguments.aspect)
    exceeded = []
    print(f"bytes a pixel, measured of those reserved, {width}x{height}")
    print(f"{'':40} " + " ".join(f"{job:>15}" for job in JOBS))
    with tempfile.TemporaryDirectory() as folder:
        for name in dict(cases(64, 64)):
            if arguments.only.lower() not in name.lower():
                continue
            found = measured(name, Path(folder), width, height)
            row = " ".join(f"{taken:6.2f} of {reserved:5.2f}" for taken, reserved in found.values())
            print(f"{name:40} {row}", flush=True)
            exceeded += [f"{name}, {job}" for job, (taken, reserved) in found.items() if taken > reserved]
    if exceeded:
        sys.exit(f"more than was reserved: {'; '.join(exceeded)}")


if __name__ == "__main__":
    main()
