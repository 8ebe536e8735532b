"""What each setting of the coder of thumbnails costs: processor time, bytes, and how far it is from the original.

python benchmarks/thumbnails.py [FOLDER]

Over the images in FOLDER, or made photographs and drawings, 512 pixels long; ratios to Pillow's own setting, the
variants turn about.
"""

from __future__ import annotations

import io
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasette_vision.install import samples

PIXELS, COUNT, ROUNDS = 512, 40, 5
# Pillow's own first.
WEBP = ((80, 4), (80, 0), (80, 1), (80, 2), (80, 3), (85, 0), (85, 2))
SETTINGS: dict[str, dict[str, Any]] = {
    f"WebP {quality}, method {method}": {"format": "WEBP", "quality": quality, "method": method}
    for quality, method in WEBP
} | {f"JPEG {quality}": {"format": "JPEG", "quality": quality} for quality in (80, 85)}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    pictures = list(itertools.islice(samples.sample_images(folder), COUNT))
    for picture in pictures:
        picture.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    seconds = dict.fromkeys(SETTINGS, 0.0)
    size, decibels = dict.fromkeys(SETTINGS, 0), dict.fromkeys(SETTINGS, 0.0)
    for turn in range(ROUNDS):
        for picture in pictures:
            for name, setting in SETTINGS.items():
                file = io.BytesIO()
                used = time.process_time()
                picture.save(file, **setting)
                seconds[name] += time.process_time() - used
                if turn == 0:
                    size[name] += len(file.getvalue())
                    difference = np.asarray(picture, float) - np.asarray(Image.open(file).convert("RGB"), float)
                    decibels[name] += 10 * np.log10(255**2 / max(1e-6, (difference**2).mean())) / len(pictures)
    first = next(iter(SETTINGS))
    for name in SETTINGS:
        print(
            f"{name:18} {1000 * seconds[name] / ROUNDS / len(pictures):6.2f} ms of processor,"
            f" x{seconds[name] / seconds[first]:.2f};"
            f" {size[name] / len(pictures) / 1000:6.1f} kB, x{size[name] / size[first]:.2f}; {decibels[name]:.1f} dB"
        )


if __name__ == "__main__":
    main()
