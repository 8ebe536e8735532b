"""What embedding 1 million, 100 million and 5 billion images takes and costs on machines of several kinds, simulated.

python -m benchmarks.scale             the tables of docs/scale.md (cog writes them there)
python -m benchmarks.scale --measure   the times of this machine that they start from, as processor time

A fleet works as files/ray/job.py has it work: the driver hands out blocks of images (128, to a GPU 2,048) one by one; a
worker's block takes as long as the slowest of computing it, fetching it over its machine's network, and being let in by
the store; a machine that dies takes the block in hand with it, and another comes two minutes later. Twenty blocks a
worker are simulated, and a corpus goes on at the rate of those in the middle.
"""

from __future__ import annotations

import argparse
import heapq
import random
from dataclasses import dataclass
from functools import cache
from typing import Any

BLOCK = 128
GPU_BLOCK = 2048

# Measured by --measure on the machine that the other benchmarks ran on; milliseconds of one core for an image.
INFER_MS = 29.2  # CLIP ViT-B/32, int8, eight at a time
PREPARE_MS = {"web": 2.5, "photo": 34.1}  # digest, decode, resize: 640x480, and 12 megapixels
WRITE_MS = 0.01  # a row of Parquet
DRIVER_MS = 3.5  # what a block costs Ray's driver, by --measure-driver

KILOBYTES = {"web": 80, "photo": 3_300}
REQUESTS_PER_S = 55_000  # ten prefixes of a bucket at the 5,500 a second that Amazon S3 names for each
STORE_GBIT = 800
REQUEST_PRICE = 0.4  # dollars a million GETs
STORAGE_PRICE = 0.023  # dollars a gigabyte and month
DEATHS_PER_HOUR = 0.05  # of a machine, as of those that can be taken back
REPLACED_AFTER_S = 120.0
STARTED_AFTER_S = 90.0


@dataclass(frozen=True)
class Fleet:
    """Machines of one kind. `gpu_ms` is an image on its GPU, None for those that compute on their cores."""

    name: str
    machines: int
    cores: int
    gbit: float
    price: float  # dollars an hour, of one machine
    gpu_ms: float | None = None
    jobs: int = 1  # the corpus in so many parts, each with a driver of its own


# On-demand list prices, rounded, of 2025: c7i.4xlarge (16 vCPUs), and g6.2xlarge (8 vCPUs, an L4).
FLEETS = (
    Fleet("this machine, 2 cores", 1, 2, 1, 0.0),
    Fleet("1 of 16 cores", 1, 16, 6.25, 0.71),
    Fleet("64 of 16 cores", 64, 16, 6.25, 0.71),
    Fleet("500 of 16 cores", 500, 16, 6.25, 0.71),
    Fleet("500 of 16 cores, 8 jobs", 500, 16, 6.25, 0.71, jobs=8),
    Fleet("16 of 8 cores and a GPU", 16, 8, 5, 0.98, 0.5),
    Fleet("100 of 8 cores and a GPU", 100, 8, 5, 0.98, 0.5),
)
CORPORA = {"1 M": 1_000_000, "100 M": 100_000_000, "5 B": 5_000_000_000}


@dataclass(frozen=True)
class Pace:
    """Images a second, what is busiest and how much of the time, and the seconds of one block."""

    rate: float
    bottleneck: str
    busy: float
    block_s: float


@cache
def pace(kind: str, fleet: Fleet, seed: int = 0) -> Pace:
    """Run a fleet for a while."""
    generator = random.Random(seed)
    # A worker is a core, or a machine with its GPU, whose cores decode for it.
    workers = fleet.machines * (1 if fleet.gpu_ms else fleet.cores)
    block = GPU_BLOCK if fleet.gpu_ms else BLOCK
    parts = {
        "decoding": block * (PREPARE_MS[kind] + WRITE_MS) / 1000 / (fleet.cores if fleet.gpu_ms else 1),
        "inference": block * (fleet.gpu_ms or INFER_MS) / 1000,
        "the network of a machine": block * KILOBYTES[kind] * 8 / (fleet.gbit * 1e6),
        "the store": block * max(1 / REQUESTS_PER_S, KILOBYTES[kind] * 8 / (STORE_GBIT * 1e6)),
        "Ray's driver": DRIVER_MS / 1000 / fleet.jobs,
    }
    decoding, inference, fetching, letting_in, handing_out = parts.values()
    # On a core one follows the other; a GPU computes while the cores decode what comes next.
    block_s = max(decoding, inference) if fleet.gpu_ms else decoding + inference
    ready = [(0.0, number) for number in range(workers)]
    network = [0.0] * fleet.machines
    driver = store = 0.0
    ends = []
    for _ in range(max(2_000, 20 * workers)):
        free, worker = heapq.heappop(ready)
        driver = max(driver, free - block_s) + handing_out  # one block ahead of the worker
        start = max(free, driver)
        machine = worker % fleet.machines
        network[machine] = max(network[machine], start) + fetching
        store = max(store, start) + letting_in
        done = max(start + block_s * generator.lognormvariate(0, 0.1), network[machine], store)
        if generator.random() < DEATHS_PER_HOUR * (done - start) / 3600:
            done += REPLACED_AFTER_S + block_s
        ends.append(done)
        heapq.heappush(ready, (done, worker))
    ends.sort()
    first, last = len(ends) // 5, 4 * len(ends) // 5
    rate = block * (last - first) / (ends[last] - ends[first])
    shared = {"decoding": workers, "inference": workers, "the network of a machine": fleet.machines}
    busy = {part: seconds * rate / block / shared.get(part, 1) for part, seconds in parts.items()}
    name = max(busy, key=lambda part: busy[part])
    return Pace(rate, name, busy[name], block_s)


def run(images: int, kind: str, fleet: Fleet) -> tuple[float, float]:
    """Return the seconds and the dollars of a corpus."""
    found = pace(kind, fleet)
    seconds = STARTED_AFTER_S + max(images / found.rate, found.block_s)
    return seconds, fleet.machines * fleet.price * seconds / 3600 + images / 1e6 * REQUEST_PRICE


def duration(seconds: float) -> str:
    """Write seconds as people say them."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h"), (63_072_000, 86_400, "days")):
        if seconds < limit:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds / 31_536_000:,.1f} years"


def table(kind: str) -> str:
    """Return the table for a kind of images, in Markdown."""
    lines = ["| machines | images/s | " + " | ".join(f"{name} images" for name in CORPORA) + " | busiest |"]
    lines.append("| --- | ---: |" + " ---: |" * len(CORPORA) + " --- |")
    for fleet in FLEETS:
        cells = []
        for images in CORPORA.values():
            seconds, dollars = run(images, kind, fleet)
            cells.append(duration(seconds) + (f", ${dollars:,.0f}" if fleet.price else ""))
        found = pace(kind, fleet)
        busiest = f"{found.bottleneck}, {100 * min(1.0, found.busy):.0f} %"
        lines.append(f"| {fleet.name} | {found.rate:,.0f} | {' | '.join(cells)} | {busiest} |")
    return "\n".join(lines)


def sizes() -> str:
    """Return what embeddings take on disk and in memory, in Markdown: 512 numbers each, from the bytes of a row."""
    per_image = {
        "Parquet of `embed-files`": 512 * 4 + 90,
        "SQLite, pages of 16 KB": 2_560,
        "SQLite, pages of 4 KB (the default)": 4_520,
        "8-bit vectors in memory": 512 + 8,
        "product-quantised, 64 bytes each": 64 + 8,
    }
    lines = ["| | " + " | ".join(f"{name} images" for name in CORPORA) + " |", "| --- |" + " ---: |" * len(CORPORA)]
    for name, size in per_image.items():
        cells = [f"{size * count / 1e9:,.1f} GB" if size * count < 1e12 else f"{size * count / 1e12:,.1f} TB"
                 for count in CORPORA.values()]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(model: str, models_dir: str | None) -> None:
    """Print the times that the tables start from, as the processor counts them."""
    import hashlib
    import io
    import tempfile
    import time
    from collections.abc import Callable
    from statistics import median

    import numpy as np
    from PIL import Image

    from datasette_vision.bulk.pipeline import config_for_bulk
    from datasette_vision.config.settings import Config
    from datasette_vision.engine.vision import Vision
    from datasette_vision.files.parquet import ImageRow, Output, OutputForm

    def milliseconds(work: Callable[[], object], runs: int = 30) -> float:
        taken = []
        for _ in range(runs):
            began = time.thread_time()
            work()
            taken.append((time.thread_time() - began) * 1000)
        return median(taken)

    vision = Vision(config_for_bulk(Config(models_dir=models_dir), workers=1))
    tower = vision.image_tower(model)
    encoder = vision.services.dual_encoder(model).encoder
    for kind, size in (("web", (640, 480)), ("photo", (4000, 3000))):
        generator = np.random.default_rng(0)
        coarse = Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize(size)
        grain = generator.integers(-12, 13, (size[1], size[0], 1), dtype=np.int16)
        picture = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=88)
        content = file.getvalue()
        taken = milliseconds(lambda content=content: (hashlib.sha256(content).digest(), tower.prepare(content)))
        print(f"digest, decode, resize, {kind}: {len(content) / 1000:,.0f} kB, {taken:.1f} ms")
    batch = np.stack([tower.prepare(content)] * 8)
    encoder.encode_pixels(batch)
    print(f"inference of {model}, eight at a time: {milliseconds(lambda: encoder.encode_pixels(batch)) / 8:.1f} ms")
    with tempfile.TemporaryDirectory() as folder:
        output = Output(folder, OutputForm(model, "0" * 64, tower.dimensions))
        vector = np.full(tower.dimensions, 0.1, dtype=np.float32)
        rows = [ImageRow(f"s3://bucket/photos/{number}.jpg", "0" * 64, 640, 480, vector) for number in range(10_000)]
        taken = milliseconds(lambda: output.write(output.form.table(rows)), 5) / len(rows)
        print(f"a row of Parquet: {taken:.3f} ms")


class _Nothing:
    """An actor that has no work: what is left is Ray's."""

    def __call__(self, batch: Any) -> Any:
        return batch


def measure_driver(blocks: int) -> None:
    """Print the processor time that Ray's driver takes for a block, on a cluster of this machine's cores."""
    import time

    import pyarrow as pa
    import ray
    import ray.data

    from datasette_vision.files.ray import cluster

    cluster.settle()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    table = pa.table({"path": [f"s3://bucket/photos/{number:09}.jpg" for number in range(BLOCK)]})
    taken = []
    for count in (blocks // 10, blocks):
        began = time.process_time()
        data = ray.data.from_arrow([table] * count)
        pool = ray.data.ActorPoolStrategy(size=2)
        data = data.map_batches(_Nothing, batch_size=BLOCK, batch_format="pyarrow", compute=pool, num_cpus=0.5)
        for _ in data.iter_internal_ref_bundles():
            pass
        taken.append(time.process_time() - began)
    ray.shutdown()
    print(f"Ray's driver: {1000 * (taken[1] - taken[0]) / (blocks - blocks // 10):.1f} ms a block")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--model", default="clip")
    parser.add_argument("--models-dir")
    parser.add_argument("--measure-driver", type=int, metavar="BLOCKS", help="needs Ray")
    options = parser.parse_args()
    if options.measure_driver:
        measure_driver(options.measure_driver)
        return
    if options.measure:
        measure(options.model, options.models_dir)
        return
    for kind in KILOBYTES:
        print(f"\n{kind}:\n\n{table(kind)}")
    print(f"\n{sizes()}")


if __name__ == "__main__":
    main()
