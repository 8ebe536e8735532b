"""The image under a memory limit: cold start to the first text embedding, then many clients, then the peak.

python benchmarks/container.py TAG [--memory 512] [--runs 5] [--texts 500] [--images 200] [--clients 16]
    [--model tiny-emoji]

Build it with `python docker/check.py build TAG`. Cold starts are measured with files in the page cache and, as root,
without, turn about. "Inside" is as the server tells it; "outside" includes what the engine needs to start a container.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docker"))
from check import ROOT, TEXT, ask, first_answer, query
from containers import Engine, Running, Way
from engines import find

BOUNDARY = "a-boundary-that-no-jpeg-contains"
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def drop_caches() -> None:
    """Empty the page cache. What has not been written yet would stay in it."""
    os.sync()
    DROP_CACHES.write_text("3")


def start(engine: Engine, options: argparse.Namespace, drop: bool) -> tuple[float, float, str]:
    """Return the seconds to the first embedding, outside and inside, and the server's own account of its start."""
    way = dataclasses.replace(options.way, before=drop_caches) if drop else options.way
    with engine.run(options.tag, way) as container:
        first_answer(container, query(TEXT))
        took = time.perf_counter() - container.began
        ages = re.findall(r"start, in seconds: (.*)", container.output())
        for _ in range(200):
            if ages:
                break
            time.sleep(0.05)
            ages = re.findall(r"start, in seconds: (.*)", container.output())
        report = ages[0] if ages else "no account"
    found = re.search(r"text ([0-9.]+)", report)
    return took, float(found[1]) if found else float("nan"), report


def jpeg(number: int, width: int, height: int) -> bytes:
    """Return a photograph-like JPEG that no other number gives."""
    random = np.random.default_rng(number)
    small = random.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def load(container: Running, texts: int, images: int, clients: int) -> None:
    """Ask for so many different texts and images, by so many clients at a time, and print what came back."""
    pictures = [jpeg(number, *((4000, 3000) if number % 2 else (1280, 960))) for number in range(min(images, 24))]
    seconds: dict[str, list[float]] = {"text": [], "image": []}
    statuses: Counter[tuple[str, int]] = Counter()

    def text(number: int) -> None:
        began = time.perf_counter()
        status, _, _ = ask(container, query(f"select hex(vision_embed('a picture of number {number}')) as x"))
        seconds["text"].append(time.perf_counter() - began)
        statuses["text", status] += 1

    def image(number: int) -> None:
        # A byte after the end of a JPEG changes no pixel, but makes it new to the cache.
        body = pictures[number % len(pictures)] + number.to_bytes(4, "big")
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{number}.jpg"\r\n\r\n'
        form = head.encode() + body + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        began = time.perf_counter()
        status, _, _ = ask(container, "/-/vision/embed", "POST", form, **kind)
        seconds["image"].append(time.perf_counter() - began)
        statuses["image", status] += 1

    work = [(text, number) for number in range(texts)] + [(image, number) for number in range(images)]
    np.random.default_rng(0).shuffle(work)
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda task: task[0](task[1]), work))
    took = time.perf_counter() - began
    if set(statuses) - {("text", 200), ("image", 200)}:
        sys.exit(f"not every request was answered: {dict(statuses)}")
    print(f"{texts} texts and {images} images by {clients} clients: {took:.1f} s; {dict(statuses)}")
    for kind, values in seconds.items():
        if values:
            print(f"  {kind:6} median {1000 * median(values):6.0f} ms, slowest {1000 * max(values):6.0f} ms")


@contextlib.contextmanager
def watched(container: Running) -> Iterator[list[float]]:
    """Note what a container holds, several times a second, while the block runs."""
    held = [container.held_mib() or 0.0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            held.append(container.held_mib() or 0.0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield held
    finally:
        ended.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag")
    parser.add_argument("--memory", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", help="of those in the image, instead of that in metadata.json")
    options = parser.parse_args()
    engine = find()
    with tempfile.TemporaryDirectory() as folder, engine.prepared(options.tag):
        options.way = Way(options.memory, mounts=with_model(Path(folder), options.model) if options.model else {})
        measure(engine, options)


def with_model(folder: Path, model: str) -> dict[Path, str]:
    """Write the deployed configuration with another model, and return what to mount."""
    metadata = json.loads((ROOT / "metadata.json").read_text("utf-8"))
    metadata["plugins"]["datasette-vision"] |= {"default_model": model, "preload": [model]}
    path = folder / "metadata.json"
    path.write_text(json.dumps(metadata), "utf-8")
    path.chmod(0o644)
    folder.chmod(0o755)
    return {path: "/app/metadata.json"}


def measure(engine: Engine, options: argparse.Namespace) -> None:
    """Print all figures."""
    print(f"size      {engine.size_mb(options.tag):.0f} MB")
    can_drop = False
    with contextlib.suppress(OSError):
        DROP_CACHES.write_text("1")
        can_drop = True
    start(engine, options, False)
    outside: dict[bool, list[float]] = {False: [], True: []}
    inside: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.runs):
        for drop in (False, True) if can_drop else (False,):
            took, own, report = start(engine, options, drop)
            outside[drop].append(took)
            inside[drop].append(own)
            print(f"  {'cold' if drop else 'warm'} page cache: {took:.2f} s outside; {report}")
    for drop, name in ((False, "in the page cache"), (True, "cold page cache  ")):
        if outside[drop]:
            print(f"{name}  outside {median(outside[drop]):.2f} s, text tower {median(inside[drop]):.2f} s (medians)")
    if can_drop:
        print(f"ratio     {median(outside[True]) / median(outside[False]):.2f}")
    with engine.run(options.tag, options.way) as container:
        first_answer(container, query(TEXT))
        with watched(container) as held:
            load(container, options.texts, options.images, options.clients)
        code = container.ended()
        print(f"peak      {container.peak_mib():.0f} MiB of {options.memory}; {'alive' if code is None else code}")
        print(
            f"held      {max(held):.0f} MiB at most, looked at 20 times a second; the rest are files in the page cache"
        )
        json.loads(ask(container, query(TEXT))[2])


if __name__ == "__main__":
    main()
