"""perceptual_hash.py: copies of a picture are found, other pictures are not, and a hundred thousand take no time."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from datasette_vision.demo import demo
from datasette_vision.images import decode as images
from datasette_vision.images import perceptual_hash
from tests import pictures


def distance(a: bytes | None, b: bytes | None) -> int:
    assert a is not None
    assert b is not None
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


def same(pictures: list[Image.Image]) -> list[int]:
    hashes = [perceptual_hash.perceptual_hash(picture) for picture in pictures]
    assert all(hashes)
    return perceptual_hash.groups([one for one in hashes if one]).tolist()


@pytest.mark.parametrize("seed", range(10))
def test_copies_are_found(seed: int) -> None:
    original = pictures.scene(640, 480, seed)
    copies = [
        original,
        images.decode(pictures.encode(original, "JPEG", quality=50)),
        images.decode(pictures.encode(original.resize((320, 240)), "WEBP", quality=70)),
        original.resize((1280, 960)),
        ImageEnhance.Brightness(original).enhance(1.08),
        images.decode(pictures.with_orientation(6, picture=original)),
        pictures.scene(640, 480, seed + 100),
        original.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        original.rotate(90, expand=True),
    ]
    assert same(copies) == [0, 0, 0, 0, 0, 0, 6, 7, 8]


def test_other_pictures_are_not_taken_for_one() -> None:
    drawings = [images.decode(emoji.image) for emoji in list(demo.read_archive())[:1500:10]]
    scenes = [pictures.scene(64, 48, seed) for seed in range(150)]
    found = same(drawings + scenes)
    assert found[150:] == list(range(150, 300))
    assert len(set(found)) > 280  # some emoji are drawn alike


def test_a_picture_without_detail_has_no_hash() -> None:
    assert perceptual_hash.perceptual_hash(Image.new("RGB", (640, 480), (200, 30, 30))) is None
    noisy = np.random.default_rng(1).integers(120, 124, (480, 640, 3), dtype=np.uint8)
    assert perceptual_hash.perceptual_hash(Image.fromarray(noisy)) is None
    assert perceptual_hash.perceptual_hash(pictures.scene()) is not None


def test_the_bits_are_pinned() -> None:
    """They are kept in databases: another Pillow or NumPy must not change them."""
    gradient = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    assert distance(perceptual_hash.perceptual_hash(gradient), bytes(16)) == 0
    falling = gradient.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert perceptual_hash.perceptual_hash(falling) == bytes.fromhex("84020010000800004000002000000000")
    scene = perceptual_hash.perceptual_hash(pictures.scene(256, 192, seed=1))
    assert distance(scene, bytes.fromhex(SCENE)) <= 2  # resampling is Pillow's


SCENE = "5bc2d3cb011858250200a01820104000"


def near(value: int, bits: int, within: range, source: random.Random) -> int:
    for bit in source.sample(within, bits):
        value ^= 1 << bit
    return value


def test_groups() -> None:
    source = random.Random(1)
    first, other = source.getrandbits(128), source.getrandbits(128)
    low, high = range(64, 128), range(64)
    chain = near(near(first, 5, low, source), 5, high, source)
    values = [
        other,
        first,
        near(first, 5, low, source),  # as many as may differ
        near(first, 16, high, source),
        near(first, 17, high, source),
        near(first, 9, low, source),
        near(near(first, 5, low, source), 12, high, source),
        chain,
        first,
    ]
    found = perceptual_hash.groups([value.to_bytes(16, "big") for value in values]).tolist()
    assert found == [0, 1, 1, 1, 4, 5, 6, 1, 1]
    assert perceptual_hash.groups([]).tolist() == []


def test_groups_of_very_many() -> None:
    """Against comparing each with each."""
    source = np.random.default_rng(1)
    table = source.integers(0, 256, (3000, 16), dtype=np.uint8)
    table[::3, :8] = table[1::3, :8]  # many close ones, of all distances
    flips = source.integers(0, 128, (3000, 6))
    bits = np.unpackbits(table, axis=1)
    bits[1::2] = bits[::2]
    for number in range(3000):
        bits[number, flips[number, : number % 7]] ^= 1
    hashes = [row.tobytes() for row in np.packbits(bits, axis=1)]
    expected = list(range(3000))

    def root(node: int) -> int:
        while expected[node] != node:
            node = expected[node]
        return node

    for number in range(3000):
        differing = bits[number] ^ bits[:number]
        close = (differing[:, :64].sum(axis=1) <= perceptual_hash.MAX_LOW) & (
            differing.sum(axis=1) <= perceptual_hash.MAX_ALL
        )
        for earlier in np.flatnonzero(close).tolist():
            one, another = sorted((root(number), root(earlier)))
            expected[another] = one
    assert perceptual_hash.groups(hashes).tolist() == [root(number) for number in range(3000)]


def test_thousands_of_the_same_take_no_longer() -> None:
    hashes = [bytes(16), *(near(0, 2, range(128), random.Random(seed)).to_bytes(16, "big") for seed in range(20_000))]
    assert set(perceptual_hash.groups(hashes).tolist()) == {0}
