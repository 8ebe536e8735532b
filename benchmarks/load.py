"""200 clients at once on a real server, texts and images mixed, every answer checked, beside the queues alone.

python benchmarks/load.py [--model tiny-emoji] [--clients 200] [--seconds 20] [--inputs 1] [--size 640x480]

Measures in turns, as the machine is not always as fast: the queues of the models alone, in this process, then over HTTP
from a process of its own, then in this process with decoding and tokenising. Each time from the first request until the
last of so many is answered, as a rate over a window would count the texts that are answered at once and leave out the
images that still wait.
Ends with exit code 1 when an answer was wrong or missing, when the queue grew beyond its bound, or when memory did.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from servers import Server, serve

from datasette_vision.config.settings import Config
from datasette_vision.engine.inference import Inference
from datasette_vision.engine.vision import Vision

TEXTS, IMAGES = 200, 40
# What the order of additions may make of the same input in batches of different sizes.
COSINE = 0.99999
GROWTH = 1.1
OVER_HTTP = "over HTTP"


@dataclass
class Mix:
    """What is asked for: half texts, half images."""

    texts: list[str]
    images: list[bytes]


@dataclass
class Work:
    """A request, ready to be sent, and the embeddings that have to come back."""

    kind: str
    request: bytes
    expected: np.ndarray


@dataclass
class Rate:
    """How fast inputs were answered, and the processor time that each took, which a busy machine does not change."""

    per_second: float
    cpu_s: float


@dataclass
class Tally:
    """What came of a run."""

    inputs: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def picture(seed: int, width: int, height: int) -> bytes:
    """A smooth picture with grain, as a JPEG: what a photograph costs to decode."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = random.integers(0, 24, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.asarray(coarse) // 2 + grain).save(file, "JPEG", quality=85)
    return file.getvalue()


def make_work(vision: Vision, mix: Mix, inputs: int) -> list[Work]:
    """Requests of so many inputs each: half of them texts, half images, as JSON and as files, in turn."""
    model, texts, images = vision.config.default_model, mix.texts, mix.images
    of_texts = vision.embed_texts(texts)
    of_images = np.stack([vision.embed_image(image) for image in images])
    work = []
    for turn in range(TEXTS):
        some = [(turn * inputs + place) % TEXTS for place in range(inputs)]
        body = json.dumps({"text": [texts[number] for number in some], "model": model, "encoding_format": "base64"})
        work.append(Work("text", post(body.encode(), "application/json"), of_texts[some]))
        some = [(turn * inputs + place) % IMAGES for place in range(inputs)]
        if turn % 2:
            sent = [base64.b64encode(images[number]).decode() for number in some]
            body = json.dumps({"image": sent, "model": model, "encoding_format": "base64"})
            work.append(Work("image", post(body.encode(), "application/json"), of_images[some]))
        else:
            fields = {"model": model, "encoding_format": "base64"}
            work.append(Work("image", form(fields, [images[number] for number in some]), of_images[some]))
    return work


def post(body: bytes, content_type: str) -> bytes:
    head = f"POST /-/vision/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def form(fields: dict[str, str], files: list[bytes]) -> bytes:
    parts = [(f'form-data; name="{name}"', value.encode()) for name, value in fields.items()]
    parts += [('form-data; name="image"; filename="x.jpg"', file) for file in files]
    body = b"".join(b"--=b\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (name.encode(), value) for name, value in parts)
    return post(body + b"--=b--\r\n", 'multipart/form-data; boundary="=b"')


# Alone


def alone(vision: Vision, mix: Mix, clients: int, count: int, prepared: bool) -> Rate:
    """How fast so many inputs are computed, so many at a time: inputs that are prepared, or as they come."""
    service = vision.services.dual_encoder(vision.config.default_model)
    inference = Inference(vision)
    tokens = [service.tokenise(text) for text in mix.texts]
    pixels = [vision.pixels(service, image) for image in mix.images]
    places = threading.Semaphore(clients)
    began, cpu = time.perf_counter(), time.process_time()
    for turn in range(count):
        places.acquire()
        number = turn // 2
        if prepared and turn % 2:
            future: Any = service.images.submit(pixels[number % IMAGES])
        elif prepared:
            future = service.texts.submit(tokens[number % TEXTS])
        elif turn % 2:
            future = inference.embed_image(mix.images[number % IMAGES])
        else:
            future = inference.embed_texts([mix.texts[number % TEXTS]])[0]
        future.add_done_callback(lambda _: places.release())
    for _ in range(clients):
        places.acquire()
    rate = Rate(count / (time.perf_counter() - began), (time.process_time() - cpu) / count)
    inference.close()
    return rate


# Over HTTP


async def client(port: int, work: Iterator[Work], tally: Tally) -> None:
    """Send one request after the other on a connection that is kept open, and check what comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    for one in work:
        began = time.perf_counter()
        writer.write(one.request)
        status, headers, body = await answer(reader)
        tally.statuses[status] += 1
        tally.latencies.append(time.perf_counter() - began)
        if status == 200:
            tally.inputs += len(one.expected)
            check(one, body, tally)
        elif status in (429, 503) and "retry-after" in headers:
            await asyncio.sleep(0.05)  # sooner than is asked for: the server has to bear it
        else:
            tally.wrong.append(f"{status} {body[:200]!r}")
    writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    if "content-length" in headers:
        return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return int(head[0].split()[1]), headers, body


def check(one: Work, body: bytes, tally: Tally) -> None:
    results = json.loads(body)["results"]
    if len(results) != len(one.expected):
        tally.wrong.append(f"{one.kind}: {len(results)} results for {len(one.expected)} inputs")
        return
    for result, expected in zip(results, one.expected, strict=True):
        found = np.frombuffer(base64.b64decode(result.get("embedding", "")), "<f4")
        if found.shape != expected.shape or float(found @ expected) < COSINE:
            tally.wrong.append(f"{one.kind}: {str(result)[:100]}")


def over_http(server: Server, work: list[Work], clients: int, requests: int) -> tuple[Tally, Rate]:
    """How fast so many requests are answered to so many clients."""
    tally = Tally()

    async def watch() -> None:
        while True:
            tally.memory.append(server.resident_mib())
            await asyncio.sleep(0.1)

    async def run() -> None:
        watching = asyncio.ensure_future(watch())
        shared = islice(cycle(work), requests)
        await asyncio.gather(*(client(server.port, shared, tally) for _ in range(clients)))
        watching.cancel()

    began, cpu = time.perf_counter(), server.cpu_seconds()
    asyncio.run(run())
    took, cpu = time.perf_counter() - began, server.cpu_seconds() - cpu
    return tally, Rate(tally.inputs / took, cpu / max(1, tally.inputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-emoji")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20, help="that it takes, about")
    parser.add_argument("--turns", type=int, default=3, help="at least 2, of which medians are taken")
    parser.add_argument("--inputs", type=int, default=1, help="of each request")
    parser.add_argument("--size", default="640x480", help="of the images")
    options = parser.parse_args()
    if options.turns < 2:
        parser.error("--turns: memory is compared from one to the next, which takes 2")
    size = tuple(map(int, options.size.split("x")))
    texts = [f"a photograph of {number} cats on sofa number {number * 7}" for number in range(TEXTS)]
    mix = Mix(texts, [picture(seed, size[0], size[1]) for seed in range(IMAGES)])
    own = {"default_model": options.model, "cache_mb": 0, "preload": [options.model]}
    vision = Vision(Config.from_mapping(own))
    work = make_work(vision, mix, options.inputs)
    failures = []

    count = int(alone(vision, mix, options.clients, 3 * options.clients, False).per_second * options.seconds)
    count = max(count, 4 * options.clients * options.inputs)

    turns: list[dict[str, Rate]] = []
    tallies = []
    with serve(plugin=own) as server:
        over_http(server, work, options.clients, 2 * options.clients)
        rest = [server.resting_mib()]
        for _ in range(options.turns):
            queues = alone(vision, mix, options.clients, count // 2, True)
            tally, rate = over_http(server, work, options.clients, count // options.inputs)
            rest.append(server.resting_mib())
            prepared = alone(vision, mix, options.clients, count // 2, False)
            tallies.append(tally)
            turns.append({"the queues alone": queues, "decoding and the queues": prepared, OVER_HTTP: rate})
    bound = max(1, options.clients * options.inputs // 4)
    with serve(plugin={**own, "max_queue": bound}) as server:
        beyond, _ = over_http(server, work, options.clients, 5 * options.clients)
    vision.close()

    print(f"{options.clients} clients, {options.inputs} inputs a request, images of {options.size}, {options.model}")
    print(f"{f'medians of {options.turns}':36}{'inputs/s':>10}{'ms of processor an input':>28}")
    for name in turns[0]:
        rates = [turn[name] for turn in turns]
        print(f"{name:36}{median(r.per_second for r in rates):10.1f}{1000 * median(r.cpu_s for r in rates):28.2f}")
    for name in turns[0]:
        if name != OVER_HTTP:
            pairs = [(turn[OVER_HTTP], turn[name]) for turn in turns]
            speeds = [http.per_second / other.per_second for http, other in pairs]
            costs = [http.cpu_s / other.cpu_s for http, other in pairs]
            print(f"{f'over HTTP, of {name}':36}{median(speeds):10.2f}{median(costs):28.2f}")
    statuses = sum((tally.statuses for tally in tallies), Counter[int]())
    latencies = [latency for tally in tallies for latency in tally.latencies]
    milliseconds = [1000 * float(np.percentile(latencies, part)) for part in (50, 95, 99)]
    print(f"{'answers':36}{'':10} {dict(statuses)}")
    print(
        f"{'latency':36}{milliseconds[0]:10.0f} ms median, {milliseconds[1]:.0f} ms 95 %, {milliseconds[2]:.0f} ms 99 %"
    )
    # While there is work it rises and falls with the batches: the peak has to stay, and what is held at rest.
    peaks = [max(tally.memory) for tally in tallies]
    for name, mib in (("memory: peak of each turn", peaks), ("at rest, before and after each", rest)):
        print(f"{name:36}{', '.join(f'{one:.0f}' for one in mib):>10} MiB")
    print(f"{'with max_queue ' + str(bound):36}{'':10} {dict(beyond.statuses)}")
    if wrong := [wrong for tally in (*tallies, beyond) for wrong in tally.wrong]:
        failures.append(f"wrong: {wrong[:5]}")
    growth = max(peaks[-1] / peaks[0], rest[-1] / rest[1])
    if growth > GROWTH:
        failures.append(f"memory grew by {100 * (growth - 1):.0f} %")
    if not beyond.statuses[503]:
        failures.append("nothing was refused beyond max_queue")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
