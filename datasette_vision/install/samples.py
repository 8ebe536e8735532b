"""Images and texts for comparing models: the same everywhere and always, or the user's own images."""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

import datasette_vision
from datasette_vision.errors import InvalidArgument, InvalidImage
from datasette_vision.images import decode as images

CANONICAL_TEXT = "a photo of a cat on a purple and gold rug"
CANONICAL_PICTURE = "discs-1"
# The maximum number of images from a folder.
MAX_SAMPLE_IMAGES = 64
# The demo's drawings, read as a file because the demo is in a higher layer.
DRAWINGS = Path(datasette_vision.__file__).parent / "demo" / "emoji.zip"
DRAWING_COUNT = 20
# Images whose nearest neighbours are compared, and the size of the imitated photographs among them.
RANKED_IMAGES = 200
RANKED_SIZE = (160, 120)
# Common shapes of photographs; the last ones are extreme on purpose.
SIZES = ((640, 480), (480, 640), (400, 400), (800, 600), (333, 500), (1024, 576), (224, 224), (160, 120), (700, 90))

SAMPLE_TEXTS = (
    "purple and gold",
    "a photo of a cat",
    "a photo of two dogs playing in the snow",
    "sunset over the sea, long exposure",
    "a red bicycle leaning against a brick wall",
    "an aerial photograph of a city at night",
    "black and white portrait of an old man with a beard",
    "a bowl of ramen with egg, spring onions and nori",
    "diagram of a neural network",
    "screenshot of a spreadsheet with numbers",
    "a child's drawing of a house with smoke from the chimney",
    "macro shot of a bee on a sunflower",
    "the Eiffel Tower seen from below",
    "an empty road through the desert",
    "logo of a coffee shop",
    "X-ray of a human hand",
    "pug",
    "UPPER CASE TEXT",
    "3 apples and 12 oranges!",
    "",
    "   spaces   around   ",
    "un chat noir sur un toit",
    "ein roter Ball auf grüner Wiese",
    "una playa tropical al amanecer",
    "uma cachoeira na floresta",
    "bir fincan Türk kahvesi",
    "czerwony samochód na ulicy",
    "собака бежит по пляжу",
    "ένα παλιό ξύλινο πλοίο",
    "夜の東京の街並み",
    "一只熊猫在吃竹子",
    "눈 덮인 산",
    "قطة نائمة على الأريكة",
    "ילדה עם בלון אדום",
    "गुलाबी फूलों वाला पेड़",
    "วัดในกรุงเทพ",
    "🦊🌈 fox under a rainbow",
    "👩‍👩‍👧‍👦",
    "e = mc², naïve café — “quotes” … <html> &amp; {json: [1, 2]}",
    "a very long description of a busy market square in the early morning with people buying vegetables, bread and"
    " flowers from wooden stalls under striped awnings while pigeons walk between their feet, a church tower stands in"
    " the background, a tram passes behind the fountain, two musicians play the accordion and the violin, and the low"
    " sun throws long blue shadows over the wet cobblestones that shine after the rain of the night before the feast",
)


def canonical_picture() -> Image.Image:
    """Return CANONICAL_PICTURE: 160 x 120 pixels of gradients with two discs, computed with whole numbers."""
    row, column = np.mgrid[0:120, 0:160].astype(np.int64)
    pixels = np.stack([column * 255 // 159, row * 255 // 119, (row + column) * 2 % 256], axis=2)
    for across, down, radius, colour in ((47, 39, 14, (0, 200, 30)), (78, 82, 25, (90, 140, 30))):
        pixels[(column - across) ** 2 + (row - down) ** 2 <= radius**2] = colour
    return Image.fromarray(pixels.astype(np.uint8))


def sample_images(folder: Path | None = None) -> Iterator[Image.Image]:
    """Yield RGB images: the readable ones in `folder`, at most MAX_SAMPLE_IMAGES, or drawings and imitated photographs.

    Raises InvalidArgument when the folder has none.
    """
    if folder is None:
        yield from drawings()
        yield from imitated_photographs()
        return
    yield from itertools.islice(_readable(folder), MAX_SAMPLE_IMAGES)


def ranked_images(folder: Path | None = None) -> Iterator[Image.Image]:
    """Yield RANKED_IMAGES RGB images: the readable ones in `folder`, then drawings and imitated photographs.

    Raises InvalidArgument when the folder has none.
    """
    generator = np.random.default_rng(2)
    half = RANKED_IMAGES // 2
    made = itertools.chain(
        drawings(count=half), (imitated_photograph(RANKED_SIZE, generator) for _ in range(RANKED_IMAGES - half))
    )
    own = () if folder is None else _readable(folder)
    return itertools.islice(itertools.chain(own, made), RANKED_IMAGES)


def _readable(folder: Path) -> Iterator[Image.Image]:
    found = False
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            picture = images.decode(path.read_bytes())
        except InvalidImage:
            continue
        yield picture
        found = True
    if not found:
        raise InvalidArgument(f"--calibration: {folder}: no readable image")


def drawings(first: int = 0, count: int = DRAWING_COUNT) -> Iterator[Image.Image]:
    """Yield `count` of the demo's drawings, evenly spread; others for another `first`."""
    with zipfile.ZipFile(DRAWINGS) as archive:
        for entry in _drawing_entries(archive, first, count):
            yield images.decode(archive.read(entry["file"]))


def drawing_names(first: int = 0, count: int = DRAWING_COUNT) -> list[str]:
    """Return the names of these drawings: "grinning face"."""
    with zipfile.ZipFile(DRAWINGS) as archive:
        return [entry["name"] for entry in _drawing_entries(archive, first, count)]


def _drawing_entries(archive: zipfile.ZipFile, first: int, count: int) -> list[dict[str, str]]:
    entries = json.loads(archive.read("emoji.json"))
    return entries[first :: len(entries) // count][:count]


def imitated_photographs(seed: int = 0) -> Iterator[Image.Image]:
    """Yield two images of each of SIZES; different ones for another `seed`."""
    generator = np.random.default_rng(seed)
    for size in SIZES * 2:
        yield imitated_photograph(size, generator)


def imitated_photograph(size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Return an image with the properties of photographs: an amplitude falling as 1 / frequency, edges, blur, a colour
    cast.

    The spectrum: Field 1987, "Relations between the statistics of natural images and the response properties of
    cortical cells".
    """
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    layers = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * generator.random(frequency.shape))
        layer = np.fft.irfft2(phase / frequency, s=(height, width))
        layers.append(layer / layer.std())
    mixing = np.eye(3) * 0.4 + 0.6 * generator.random((1, 3))  # the channels of photographs are correlated
    channels = np.stack(layers, axis=-1) @ mixing
    cast = generator.uniform(60, 190, 3)
    picture = Image.fromarray(np.clip(cast + generator.uniform(20, 60) * channels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(generator.integers(2, 7)):
        left, top = int(generator.integers(0, width)), int(generator.integers(0, height))
        box = (left, top, left + int(generator.integers(8, width)), top + int(generator.integers(8, height)))
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        (draw.ellipse if generator.random() < 0.5 else draw.rectangle)(box, fill=colour)
    return picture.filter(ImageFilter.GaussianBlur(float(generator.uniform(0, 1.5))))


def rounded(values: Sequence[float] | NDArray[np.floating]) -> list[float]:
    """Return floats with seven decimal places, for a manifest."""
    return [round(float(value), 7) for value in values]
