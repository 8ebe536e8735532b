"""Measure the shipped files through ONNX Runtime, on the style that was trained on and on the one that was held out.

python training/evaluate.py [--update-card] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from card import update_card
from colours import ANCHORS, CSS, rgb
from emoji_set import emoji_set, google_drawings, openmoji_drawings, plain
from manifest import MODEL_FOLDER, group_labels, refresh_files, subgroup_labels
from render import rasterise
from runtime import ShippedModel
from shapes import SHAPES

#: The ten named colours of the colour test, each in the shade that CSS gives it and in an emoji's usual one.
TEST_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey")
TEST_SHAPES = ("circle", "square", "triangle", "star", "heart")
QUERIES = (
    "purple heart",
    "happy cat",
    "something to eat",
    "purple and gold",
    "red fruit",
    "flying machine",
    "crying",
    "musical instrument",
    "winter",
)
OPENMOJI_SIZE = 128


@dataclass(frozen=True)
class StyleReport:
    """How well one style is understood."""

    title: str
    recall: dict[int, float]
    groups: float
    subgroups: float
    drawings: int


def _google() -> list[Image.Image]:
    files = google_drawings()
    return [Image.open(files[plain(emoji.hexcode)]).convert("RGBA") for emoji in emoji_set()]


def _openmoji() -> list[Image.Image]:
    files = openmoji_drawings()
    documents = [files[plain(emoji.hexcode)].read_text(encoding="utf-8") for emoji in emoji_set()]
    return [Image.fromarray(rasterise(document, OPENMOJI_SIZE)) for document in documents]


def _zero_shot(model: ShippedModel, images: np.ndarray, labels: list[dict[str, str]], truth: list[str]) -> float:
    """The share of images whose nearest prompt is that of their true label."""
    best = (images @ model.embed_texts([label["prompt"] for label in labels]).T).argmax(1)
    return float(np.mean([labels[index]["label"] == true for index, true in zip(best, truth, strict=True)]))


def evaluate_style(model: ShippedModel, title: str, pictures: list[Image.Image]) -> StyleReport:
    """Recall of the English names and zero-shot accuracy over one style; `pictures` are in the order of the set."""
    emoji = emoji_set()
    images = model.embed_images(pictures)
    similarity = model.embed_texts([one.name for one in emoji]) @ images.T
    better = (similarity > np.diag(similarity)[:, None]).sum(1)
    return StyleReport(
        title=title,
        recall={k: float((better < k).mean()) for k in (1, 5, 10)},
        groups=_zero_shot(model, images, group_labels(), [one.group for one in emoji]),
        subgroups=_zero_shot(model, images, subgroup_labels(), [one.subgroup for one in emoji]),
        drawings=len(emoji),
    )


def colour_test(model: ShippedModel, shades: dict[str, str]) -> tuple[int, int, int, int]:
    """How many swatches and coloured shapes in these shades have their own colour's name first, each with how many
    there are.
    """
    names = list(shades)

    def right(pictures: list[Image.Image], truth: list[str], forms: list[str]) -> int:
        total = 0
        for image, true, form in zip(model.embed_images(pictures), truth, forms, strict=True):
            scores = model.embed_texts([form.format(name) for name in names]) @ image
            total += int(names[int(scores.argmax())] == true)
        return total

    swatches = [Image.new("RGB", (96, 96), rgb(code)) for code in shades.values()]
    pictures, truth, forms = [], [], []
    for name, code in shades.items():
        for shape in TEST_SHAPES:
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" fill="{code}">{SHAPES[shape]}</svg>'
            pictures.append(Image.fromarray(rasterise(svg, 96)))
            truth.append(name)
            forms.append(f"{{}} {shape}")
    return right(swatches, names, ["{}"] * len(names)), len(names), right(pictures, truth, forms), len(pictures)


def top(model: ShippedModel, images: np.ndarray, query: str, count: int) -> list[int]:
    """The positions in the set of the best `count` drawings for a query."""
    return np.argsort(-(images @ model.embed_texts([query])[0]))[:count].tolist()


def milliseconds(model: ShippedModel, repeats: int = 200) -> tuple[float, float]:
    """Median time of one picture and of one text (tokenising included), towers warm."""
    pixels = np.zeros((1, 3, 64, 64), np.float32)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for kept, call in zip(
            times, (lambda: model.embed_pixels(pixels), lambda: model.embed_texts(["purple and gold"])), strict=True
        ):
            started = time.perf_counter()
            call()
            kept.append(time.perf_counter() - started)
    return float(np.median(times[0]) * 1e3), float(np.median(times[1]) * 1e3)


def report(model: ShippedModel, folder: Path) -> str:
    """The whole evaluation as Markdown."""
    google = _google()
    styles = [
        evaluate_style(model, "Noto (trained on)", google),
        evaluate_style(model, "OpenMoji (held out)", _openmoji()),
    ]
    palettes = {
        "usual in emoji": {name: ANCHORS[name][0] for name in TEST_COLOURS},
        "of CSS, whose brown is a reddish one": {name: CSS[name] for name in TEST_COLOURS},
    }
    image_time, text_time = milliseconds(model)
    size = sum((folder / name).stat().st_size for name in ("image.onnx", "text.onnx")) / 1e6
    lines = [
        f"Measured on the shipped ONNX files, over the {styles[0].drawings:,} emoji of the set. The query of the",
        "recall is the English name; chance is 0.005 for recall@10 and 0.111 for the nine groups.",
        "",
        "| drawings | recall@1 | recall@5 | recall@10 | zero-shot, 9 groups | zero-shot, "
        f"{len(subgroup_labels())} subgroups |",
        "|---|---|---|---|---|---|",
    ]
    for style in styles:
        recalls = " | ".join(f"{style.recall[k]:.3f}" for k in (1, 5, 10))
        lines.append(f"| {style.title} | {recalls} | {style.groups:.3f} | {style.subgroups:.3f} |")
    lines.append("")
    for palette, shades in palettes.items():
        swatches, all_swatches, shapes, all_shapes = colour_test(model, shades)
        lines.append(
            f"- In the shades {palette}, the right one of ten colour names comes first for {swatches} of "
            f"{all_swatches} plain swatches and {shapes} of {all_shapes} coloured shapes."
        )
    lines += [
        f"- Both towers together: {size:.1f} MB. One picture: {image_time:.1f} ms; one text: {text_time:.1f} ms "
        "(2 threads, x86-64 with AVX-512).",
        "",
        "| query | the five nearest Noto drawings |",
        "|---|---|",
    ]
    images = model.embed_images(google)
    for query in QUERIES:
        found = [emoji_set()[index] for index in top(model, images, query, 5)]
        lines.append(f"| {query} | {', '.join(f'{one.character} {one.name}' for one in found)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--update-card", action="store_true", help="write the numbers into MODEL_CARD.md")
    arguments = parser.parse_args()
    evaluation = report(ShippedModel(arguments.folder), arguments.folder)
    print(evaluation)
    if arguments.update_card:
        update_card(arguments.folder, evaluation)
        refresh_files(arguments.folder)
