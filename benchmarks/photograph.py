"""What a photograph costs in bulk: processor time of `load`, thumbnail included, and of `embed`, beside the least.

python benchmarks/photograph.py [--models DIR] [--model clip] [--count 60] [--rounds 3]

The least is plain Pillow and ONNX Runtime with its own defaults on one thread. Turn about, for 500x375 and for 12
megapixels; the targets are 1.3 for `load` and 1.1 for `embed`.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from generated import write_pictures
from PIL import Image

from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.load import load
from datasette_vision.bulk.pipeline import config_for_bulk
from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision

SIZES = {"500x375": (500, 375), "12 megapixels": (4000, 3000)}


def plain(vision: Vision, model: str, files: list[Path]) -> Callable[[], None]:
    """Return what decodes and embeds the files with Pillow and ONNX Runtime alone."""
    installed = vision.store.find(model)
    image, edge = installed.manifest.image, installed.manifest.preprocess.target
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(installed.path(image.file)), options, providers=["CPUExecutionProvider"])

    def run() -> None:
        for file in files:
            with Image.open(file) as picture:
                picture.draft("RGB", (2 * edge, 2 * edge))
                small = picture.convert("RGB").resize((edge, edge), Image.Resampling.BICUBIC)
            pixels = np.asarray(small, np.float32).transpose(2, 0, 1)[None] / np.float32(255)
            session.run([image.output], {image.input: pixels})

    return run


def processor_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models")
    parser.add_argument("--model", default="clip")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    vision = Vision(config_for_bulk(Config(models_dir=arguments.models, default_model=arguments.model)))
    vision.embed_image(Path(__file__).parent.joinpath("../docs/search.webp").read_bytes())
    with tempfile.TemporaryDirectory() as temporary:
        for name, (width, height) in SIZES.items():
            folder = Path(temporary) / name.replace(" ", "-")
            write_pictures(folder, arguments.count, sizes=((width, height, 1),))
            files = sorted(folder.rglob("*.jpg"))
            least = plain(vision, arguments.model, files)
            least()
            times: dict[str, list[float]] = {"plain": [], "load": [], "embed": []}
            for number in range(arguments.rounds):
                database = Path(temporary) / f"{number}.db"
                times["plain"].append(processor_seconds(least))
                times["load"].append(processor_seconds(lambda: load(database, [str(folder)], vision=vision)))  # noqa: B023
                rows(database.with_suffix(".2.db"), files)
                times["embed"].append(
                    processor_seconds(
                        lambda: embed_table(database.with_suffix(".2.db"), "photos", column="image", vision=vision)  # noqa: B023
                    )
                )
                os.unlink(database)  # noqa: PTH108
            for kind, seconds in times.items():
                if seconds:
                    ratios = [one / other for one, other in zip(seconds, times["plain"], strict=True)]
                    milliseconds = 1000 * median(seconds) / len(files)
                    print(f"{name:14} {kind:8} {milliseconds:6.1f} ms of processor an image, x{median(ratios):.2f}")
    vision.close()


def rows(path: Path, files: list[Path]) -> None:
    """Write a table of images as embed_table() reads it."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("create table photos (id integer primary key, image blob)")
    connection.executemany("insert into photos (image) values (?)", [(file.read_bytes(),) for file in files])
    connection.commit()
    connection.close()


if __name__ == "__main__":
    main()
