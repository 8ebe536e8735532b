"""Embedding a folder of JPEGs, beside what the processor could do at best, and beside llm with llm-clip.

DATASETTE_VISION_MODELS=… python benchmarks/bulk_throughput.py --model clip [--count 600] [--seed-stack DIR]

The ideal is the processor time of decoding and of inference, each measured apart on one thread, divided by the cores.
DIR holds the stack of today: venv/bin/llm with llm-clip.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from generated import write_pictures

from datasette_vision.bulk.embed_table import embed_table
from datasette_vision.bulk.pipeline import BATCH_SIZE, config_for_bulk
from datasette_vision.bulk.tally import Summary
from datasette_vision.engine.runtime import default_threads
from datasette_vision.engine.vision import Vision


def ideal(model: str, paths: list[Path]) -> tuple[float, float]:
    """Return the processor time in seconds of an image's decoding and of its inference."""
    vision = Vision(config_for_bulk(workers=1))
    tower = vision.image_tower(model)
    tower.queue(tower.prepare(paths[0].read_bytes()))
    sample = paths[:: max(1, len(paths) // 96)][:96]
    contents = [path.read_bytes() for path in sample]
    prepared = []
    began = time.thread_time()
    for content in contents:
        prepared.append(tower.prepare(content))
    decoding = (time.thread_time() - began) / len(contents)
    encoder = vision.services.dual_encoder(model).encoder
    batches = [np.stack(prepared[start : start + BATCH_SIZE]) for start in range(0, len(prepared), BATCH_SIZE)]
    began = time.thread_time()
    for batch in batches:
        encoder.encode_pixels(batch)
    inference = (time.thread_time() - began) / len(prepared)
    vision.close()
    return decoding, inference


def job(model: str, folder: Path, paths: list[Path], database: Path) -> Summary:
    database.unlink(missing_ok=True)
    connection = sqlite3.connect(database)
    connection.execute("create table photos (path text primary key)")
    names = ((path.relative_to(folder).as_posix(),) for path in paths)
    connection.executemany("insert into photos values (?)", names)
    connection.commit()
    connection.close()
    vision = Vision(config_for_bulk())
    vision.image_tower(model).queue(np.zeros((3, 224, 224), np.float32))  # loading is no throughput
    summary = embed_table(database, "photos", vision=vision, model=model, base=folder)
    vision.close()
    assert summary.embedded == len(paths), summary
    return summary


def today(stack: Path, folder: Path, paths: list[Path], database: Path) -> float:
    """Return images a second of llm embed-multi with llm-clip, its start included: it says of no time what it is."""
    chosen = folder.parent / "chosen"
    shutil.rmtree(chosen, ignore_errors=True)
    chosen.mkdir()
    for path in paths:
        chosen.joinpath(path.name).hardlink_to(path)
    database.unlink(missing_ok=True)
    command = [str(stack / "venv/bin/llm"), "embed-multi", "photos", "--files", str(chosen), "*.jpg", "--binary"]
    began = time.perf_counter()
    subprocess.run(
        [*command, "-m", "clip", "-d", str(database)],
        check=True,
        cwd=stack,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - began
    (count,) = sqlite3.connect(database).execute("select count(*) from embeddings").fetchone()
    if count != len(paths):
        sys.exit(f"llm embedded {count} of {len(paths)}")
    return len(paths) / seconds


def command(model: str, folder: Path, database: Path, count: int) -> float:
    """Return images a second of the command, its start included."""
    connection = sqlite3.connect(database)
    connection.execute("drop table _vision_photos")
    connection.commit()
    connection.close()
    began = time.perf_counter()
    arguments = ["vision", "embed", str(database), "photos", "--base", str(folder), "--model", model, "--quiet"]
    subprocess.run([sys.executable, "-m", "datasette", *arguments], check=True, stdout=subprocess.DEVNULL)
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="clip")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the pictures are made, and stay")
    parser.add_argument("--seed-stack", type=Path, help="a folder with venv/bin/llm and llm-clip in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "pictures"
        write_pictures(folder, options.count)
        paths = sorted(folder.rglob("*.jpg"))[: options.count]
        database = Path(temporary) / "photos.db"
        few = paths[:: max(1, len(paths) // 200)][:200]
        cores = default_threads()
        figures: dict[str, list[float]] = {"of the ideal": [], "times llm": [], "command": []}
        for _ in range(options.runs):
            decoding, inference = ideal(options.model, paths)
            best = cores / (decoding + inference)
            summary = job(options.model, folder, paths, database)
            figures["of the ideal"].append(summary.per_second / best)
            print(
                f"decoding {decoding * 1000:.1f} ms, inference {inference * 1000:.1f} ms, {cores} cores:"
                f" ideal {best:.1f} images/s; embed_table {summary.per_second:.1f} images/s,"
                f" {100 * summary.per_second / best:.0f} %"
            )
            if options.seed_stack:
                theirs = today(options.seed_stack, folder, few, Path(temporary) / "llm.db")
                job(options.model, folder, few, database)
                ours = command(options.model, folder, database, len(few))
                figures["times llm"].append(ours / theirs)
                print(f"the same {len(few)}: llm {theirs:.1f} images/s, datasette vision embed {ours:.1f} images/s")
    for name, values in figures.items():
        if values:
            print(f"{name}: {median(values):.2f} (median of {len(values)})")


if __name__ == "__main__":
    main()
