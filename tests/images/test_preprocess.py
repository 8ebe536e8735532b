"""images/preprocess.py against the plain way: resize the whole picture, cut out the centre, subtract, divide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from datasette_vision.images.preprocess import RESAMPLE, Preprocess, Size

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
AS_BYTES = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}


def picture(width: int, height: int) -> Image.Image:
    """Noise: the hardest picture for a resampling filter."""
    noise = np.random.default_rng(width * 7 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def resized(image: Image.Image, width: int, height: int, resample: str) -> Image.Image:
    """The whole picture resized across, then down, as Pillow did it when the models were trained."""
    return image.resize((width, image.height), RESAMPLE[resample]).resize((width, height), RESAMPLE[resample])


def reference(image: Image.Image, spec: Preprocess) -> NDArray[np.uint8]:
    """CLIPImageProcessor of transformers, before it rescales: (h, w, 3)."""
    width, height = image.size
    edge = spec.resize.shortest_edge
    if edge is not None:
        longer = int(edge * max(width, height) / min(width, height))
        new_width, new_height = (edge, longer) if width <= height else (longer, edge)
    else:
        assert spec.resize.width is not None
        assert spec.resize.height is not None
        new_width, new_height = spec.resize.width, spec.resize.height
    whole = np.asarray(resized(image, new_width, new_height, spec.resample))
    top, left = (new_height - spec.crop_height) // 2, (new_width - spec.crop_width) // 2
    # Where the crop is larger, transformers pads with zeros: rounded up above and on the left.
    pad_top = max(0, -((new_height - spec.crop_height) // 2))
    pad_left = max(0, -((new_width - spec.crop_width) // 2))
    padded = np.zeros((max(spec.crop_height, new_height), max(spec.crop_width, new_width), 3), dtype=np.uint8)
    padded[pad_top : pad_top + new_height, pad_left : pad_left + new_width] = whole
    top, left = top + pad_top, left + pad_left
    return padded[top : top + spec.crop_height, left : left + spec.crop_width]


def as_bytes(image: Image.Image, spec: Preprocess) -> NDArray[np.int64]:
    """What the specification makes of a picture, as whole numbers of 255: (h, w, 3)."""
    pixels = spec(image)
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, spec.crop_height, spec.crop_width)
    whole = np.rint(pixels)
    np.testing.assert_allclose(pixels, whole, atol=1e-4)
    return whole.astype(np.int64).transpose(1, 2, 0)


def spec_of(resize: Size, crop: int | tuple[int, int], resample: str = "bicubic") -> Preprocess:
    height, width = (crop, crop) if isinstance(crop, int) else crop
    return Preprocess(resize, height, width, resample, **AS_BYTES)


SIZES = [
    (640, 480), (480, 640), (33, 97), (97, 33), (224, 224), (225, 224), (224, 225), (448, 224), (1000, 224),
    (224, 1000), (223, 1001), (1001, 223), (3, 7), (7, 3), (1, 1), (1, 50), (50, 1), (1600, 1200), (300, 299),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("edge", [224, 256])
def test_as_the_whole_picture_resized_and_cropped(size: tuple[int, int], resample: str, edge: int) -> None:
    image, spec = picture(*size), spec_of(Size(shortest_edge=edge), 224, resample)
    difference = np.abs(as_bytes(image, spec) - reference(image, spec))
    # Pillow takes a box as float32: a value in a thousand may round to the other side.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1600, 1200), (1920, 1080)], ids=str)
def test_as_one_call_of_pillow(size: tuple[int, int]) -> None:
    """Whatever order of the two passes this Pillow prefers, nobody can see it in a picture that is not noise."""
    image = picture(12, 9).resize(size, Image.Resampling.BICUBIC)
    width, height = int(224 * size[0] / min(size)), int(224 * size[1] / min(size))
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 224) // 2, (height - 224) // 2
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224))).astype(np.int64)
    assert np.abs(as_bytes(image, spec_of(Size(shortest_edge=224), 224)) - expected).max() <= 1


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nearest(size: tuple[int, int]) -> None:
    image, spec = picture(*size), spec_of(Size(shortest_edge=224), 224, "nearest")
    # A pixel halfway between two is one of them: a row and a column of 224 may be the neighbour.
    assert (as_bytes(image, spec) != reference(image, spec)).mean() < 0.01


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2, 4001)], ids=str)
@pytest.mark.parametrize(("edge", "crop"), [(32, 32), (32, 48), (48, 32)])
def test_strips(size: tuple[int, int], edge: int, crop: int) -> None:
    image, spec = picture(*size), spec_of(Size(shortest_edge=edge), crop)
    assert np.abs(as_bytes(image, spec) - reference(image, spec)).max() <= 1


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1)], ids=str)
@pytest.mark.parametrize("crop", [224, 256])
def test_a_long_strip_needs_no_memory(size: tuple[int, int], crop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resized as a whole it would be 224 x 22,400,000 pixels. Its centre is three pixels, enlarged."""
    line = np.zeros((100_000, 1, 3), dtype=np.uint8)
    line[49_990:50_010] = (10, 20, 30)
    image = Image.fromarray(line if size[1] > 1 else line.transpose(1, 0, 2))
    spec = spec_of(Size(shortest_edge=224), crop)
    made: list[int] = []
    original = Image.Image._new

    def counting(self: Image.Image, core: Any) -> Image.Image:
        made.append(core.size[0] * core.size[1])
        return original(self, core)

    monkeypatch.setattr(Image.Image, "_new", counting)
    found = as_bytes(image, spec)
    assert 0 < max(made) <= 224 * 100_000 // 50
    margin = (crop - 224) // 2
    across = (slice(None), slice(margin, margin + 224)) if size[1] > 1 else (slice(margin, margin + 224), slice(None))
    assert (found[across] == (10, 20, 30)).all()
    assert found.sum() == crop * 224 * 60


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("resize", "crop"),
    [
        (Size(height=224, width=224), 224),
        (Size(height=100, width=150), (100, 150)),
        (Size(height=100, width=150), 224),
        (Size(height=101, width=151), (224, 64)),
    ],
    ids=str,
)
def test_fixed_sizes(size: tuple[int, int], resize: Size, crop: int | tuple[int, int]) -> None:
    image, spec = picture(*size), spec_of(resize, crop)
    difference = np.abs(as_bytes(image, spec) - reference(image, spec))
    assert difference.max() <= 1


@pytest.mark.parametrize("size", [(640, 480), (33, 97), (224, 224), (1, 60)], ids=str)
@pytest.mark.parametrize("crop", [33, 48, 49, 64])
def test_black_around_what_is_smaller_than_the_crop(size: tuple[int, int], crop: int) -> None:
    image, spec = picture(*size), spec_of(Size(shortest_edge=32), crop)
    expected = reference(image, spec)
    assert (expected.reshape(-1, 3) == 0).all(axis=1).any()
    assert np.abs(as_bytes(image, spec) - expected).max() <= 1


def test_the_picture_itself_when_it_fits() -> None:
    image = picture(224, 224)
    np.testing.assert_array_equal(as_bytes(image, spec_of(Size(shortest_edge=224), 224)), np.asarray(image))


def test_the_longer_edge_is_truncated() -> None:
    """224 * 5 / 3 is 373.33, and 224 * 640 / 481 is 298.04: rounding up would move the centre."""
    image, spec = picture(300, 500), spec_of(Size(shortest_edge=224), (373, 224))
    assert np.abs(as_bytes(image, spec) - np.asarray(resized(image, 224, 373, "bicubic"))).max() == 0


def test_channels_come_first_in_the_order_of_rgb() -> None:
    image = Image.new("RGB", (6, 4), (255, 128, 0))
    pixels = spec_of(Size(shortest_edge=2), (2, 3))(image)
    np.testing.assert_allclose(pixels[:, 0, 0], [255, 128, 0], atol=1e-4)


def test_mean_and_std_of_clip() -> None:
    spec = Preprocess(Size(shortest_edge=8), 8, 8, "bicubic", CLIP_MEAN, CLIP_STD)
    black, white, grey = (spec(Image.new("RGB", (8, 8), (value,) * 3))[:, 3, 3] for value in (0, 255, 100))
    np.testing.assert_allclose(black, [-1.7922626, -1.7520971, -1.4802198], atol=5e-7)
    np.testing.assert_allclose(white, [1.9303361, 2.0748837, 2.1458970], atol=5e-7)
    np.testing.assert_allclose(grey, [-0.3324199, -0.2513203, -0.0582132], atol=5e-7)


def test_every_value_as_in_float64() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([ramp] * 3, axis=2))
    found = Preprocess(Size(shortest_edge=16), 16, 16, "bicubic", CLIP_MEAN, CLIP_STD)(image)
    mean, std = np.array(CLIP_MEAN)[:, None, None], np.array(CLIP_STD)[:, None, None]
    np.testing.assert_allclose(found, (ramp[None] / 255 - mean) / std, atol=5e-7)


def test_the_default_is_minus_one_to_one() -> None:
    spec = Preprocess(Size(shortest_edge=2), 2, 2)
    assert spec.resample == "bicubic"
    assert spec(Image.new("RGB", (2, 2), "white")).tolist() == np.ones((3, 2, 2)).tolist()
    assert spec(Image.new("RGB", (2, 2), "black")).tolist() == (-np.ones((3, 2, 2))).tolist()


def test_the_picture_is_left_alone() -> None:
    image = picture(60, 40)
    before = image.tobytes()
    spec_of(Size(shortest_edge=16), 16)(image)
    assert image.tobytes() == before
    assert image.size == (60, 40)


@pytest.mark.parametrize(
    ("resize", "target"),
    [
        (Size(shortest_edge=224), 224),
        (Size(height=100, width=150), 150),
        (Size(height=384, width=200), 384),
    ],
    ids=str,
)
def test_target_is_what_a_decoder_may_not_go_below(resize: Size, target: int) -> None:
    assert Preprocess(resize, 64, 64).target == target


def test_equal_when_the_numbers_are() -> None:
    assert Preprocess(Size(shortest_edge=8), 8, 8) == Preprocess(Size(shortest_edge=8), 8, 8)
    assert Preprocess(Size(shortest_edge=8), 8, 8) != Preprocess(Size(shortest_edge=8), 8, 9)
    assert len({Preprocess(Size(shortest_edge=8), 8, 8), Preprocess(Size(shortest_edge=8), 8, 8)}) == 1
