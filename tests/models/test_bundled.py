"""The bundled model: its answers mean something. What is measured here with room is in its card in full."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from datasette_vision.demo import demo
from datasette_vision.engine.vision import Vision
from datasette_vision.models.manifest import read_manifest
from datasette_vision.models.store import BUNDLED, ModelStore
from tests import pictures

FOLDER = BUNDLED / "tiny-emoji"
COLOURS = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (255, 220, 40),
    "green": (40, 160, 60),
    "blue": (40, 90, 220),
    "purple": (140, 50, 180),
    "pink": (255, 130, 180),
    "brown": (130, 80, 40),
    "black": (20, 20, 20),
    "white": (255, 255, 255),
}


def test_it_is_whole_and_small() -> None:
    model = ModelStore(Path("no-models")).find("tiny-emoji")
    for file in model.manifest.files:
        assert model.path(file.path).is_file()
    listed = {file.path for file in model.manifest.files}
    assert listed == {path.name for path in FOLDER.iterdir()} - {"manifest.json"}
    towers = sum(file.size for file in model.manifest.files if file.path.endswith(".onnx"))
    assert towers <= 8_000_000


def test_its_card_says_what_it_is_and_holds_measured_numbers() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text("utf-8")
    assert "photographs" in card
    assert "drawings" in read_manifest(FOLDER).description
    assert re.search(r"recall@10.*0\.\d\d", card)


def test_the_canonical_embedding(vision: Vision) -> None:
    canonical = read_manifest(FOLDER).canonical
    found = vision.embed_text(canonical["text"])[: len(canonical["embedding"])]
    np.testing.assert_allclose(found, canonical["embedding"], atol=2e-3)


@pytest.mark.parametrize("name", COLOURS)
def test_colours_of_swatches_and_shapes(vision: Vision, name: str) -> None:
    labels = json.dumps(list(COLOURS))
    swatch = Image.new("RGB", (96, 96), COLOURS[name])
    shape = Image.new("RGB", (96, 96), "white" if name != "white" else "gray")
    ImageDraw.Draw(shape).ellipse((16, 16, 80, 80), fill=COLOURS[name])
    assert vision.zero_shot(pictures.encode(swatch, "PNG"), labels)[0]["label"] == name
    if name != "white":
        assert vision.zero_shot(pictures.encode(shape, "PNG"), labels)[0]["label"] == name


@pytest.mark.parametrize(
    ("text", "words", "least"),
    [
        ("purple heart", r"heart", 4),
        ("happy cat", r"cat", 3),
        ("red fruit", r"apple|strawberry|cherries|tomato|watermelon|fruit|grapes|peach|chili|pepper", 3),
        ("crying", r"cry|tear|sad|weary|sob|disappointed|pleading", 3),
        (
            "musical instrument",
            r"guitar|violin|trumpet|saxophone|banjo|drum|piano|keyboard|accordion|flute|maracas|harp",
            3,
        ),
    ],
)
def test_searches_make_sense_to_a_person(demo_path: Path, vision: Vision, text: str, words: str, least: int) -> None:
    names = [name for _, name, _ in demo.search_demo(demo_path, vision, text)]
    assert sum(bool(re.search(words, name)) for name in names) >= least, names


def test_something_to_eat_is_food(demo_path: Path, vision: Vision) -> None:
    food = {emoji.name for emoji in demo.read_archive() if emoji.group_name == "food-drink"}
    names = [name for _, name, _ in demo.search_demo(demo_path, vision, "something to eat")]
    assert len(food & set(names)) >= 4, names


def test_most_emoji_are_found_by_their_name(demo_path: Path, vision: Vision) -> None:
    with contextlib.closing(sqlite3.connect(demo_path)) as connection:
        rows = connection.execute("select name, embedding from emoji join _vision_emoji using (hexcode)").fetchall()
    images = np.stack([np.frombuffer(row[1], dtype="<f4") for row in rows])
    texts = vision.embed_texts([row[0] for row in rows])
    own = np.einsum("nd,nd->n", texts, images)
    rank = ((texts @ images.T) > own[:, None]).sum(axis=1)
    assert (rank < 10).mean() >= 0.95
