"""How fast the towers of an installed model run as we run them, beside ONNX Runtime with its own defaults.

python benchmarks/engine.py [--models DIR] [--model clip] [--seconds 20] [--options]

One thread and all, one input and eight, turn about: the ratio of a round is ours to that of its neighbour, and the
median of all rounds is printed, of wall-clock time and of processor time. `--options` also puts each of our options
back to its default, one at a time. Fails where ours takes more than 1.05 times the time of ONNX Runtime's defaults.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from datasette_vision.engine import runtime
from datasette_vision.engine.tokenizer import Tokenizer
from datasette_vision.install.samples import SAMPLE_TEXTS
from datasette_vision.models.store import InstalledModel, ModelStore
from datasette_vision.util import memory
from datasette_vision.util.cores import available_cores

TARGET = 1.05
# ONNX Runtime's threads spin for some 30 ms when they have nothing to do, and would take the cores from what is next.
PAUSE_S = 0.05
Run = Callable[[], object]


@dataclass
class Times:
    """What one variant took in each round, in milliseconds."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, run: Run, pause_s: float) -> None:
        time.sleep(pause_s)
        started, used = time.perf_counter(), time.process_time()
        run()
        self.wall.append(1000 * (time.perf_counter() - started))
        self.cpu.append(1000 * (time.process_time() - used))


def inputs(model: InstalledModel, batch: int) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield (tower, file, output, inputs) for each tower."""
    manifest = model.manifest
    spec, image, text = manifest.preprocess, manifest.image, manifest.text
    shape = (batch, 3, spec.crop_height, spec.crop_width)
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    yield "image", image.file, image.output, {image.input: pixels}
    if text is not None:
        tokenizer = Tokenizer(model.path(text.tokenizer), text)
        padded = tokenizer.pad([tokenizer.encode(string) for string in SAMPLE_TEXTS[:batch]])
        fed = {text.input_ids: padded["input_ids"]}
        if text.attention_mask is not None:
            fed[text.attention_mask] = padded["attention_mask"]
        yield "text", text.file, text.output, fed


def runner(path: Path, output: str, fed: dict[str, Any], options: Any, run_options: Any = None) -> Run:
    session = onnxruntime.InferenceSession(str(path), options, providers=[runtime.CPU])
    return lambda: session.run([output], fed, run_options)


def own(path: Path, output: str, fed: dict[str, Any], threads: int) -> Run:
    session = runtime.OnnxSession(path, inputs=tuple(fed), output=output, threads=threads)
    return lambda: session.run(fed)


def defaults(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return options


def put_back(threads: int) -> Iterator[tuple[str, Any, Any]]:
    """Yield (what is put back to its default, the options of the session, those of a run), ours but for that."""
    ours, plain = runtime.session_options(threads), defaults(threads)
    numbers = [name for name in dir(plain) if isinstance(getattr(plain, name), (bool, int)) and "log" not in name]
    for name in numbers:
        value = getattr(plain, name)
        if value != getattr(ours, name):
            options = runtime.session_options(threads)
            setattr(options, name, value)
            yield f"ours, {name} {value}", options, runtime.run_options()
    yield "ours, the arena kept", ours, None
    for name in numbers:
        setattr(plain, name, getattr(ours, name))
    yield "ours, spinning by default", plain, runtime.run_options()


def compare(model: InstalledModel, threads: int, batch: int, seconds: float, options: bool) -> Iterator[float]:
    """Print a line for each tower and variant, and yield the ratios of wall-clock time of ours."""
    for tower, file, output, fed in inputs(model, batch):
        path = model.path(file)
        variants = {"raw": runner(path, output, fed, defaults(threads)), "ours": own(path, output, fed, threads)}
        if options:
            variants |= {name: runner(path, output, fed, *changed) for name, *changed in put_back(threads)}
        times = {name: Times() for name in variants}
        for run in variants.values():
            run()
        end = time.perf_counter() + seconds
        names = list(variants)
        while time.perf_counter() < end:
            for name in names:
                times[name].measure(variants[name], PAUSE_S if threads > 1 else 0)
            names.reverse()  # nobody always comes after the same one
        plain = times["raw"]
        for name, found in times.items():
            wall = median(one / other for one, other in zip(found.wall, plain.wall, strict=True))
            cpu = median(one / other for one, other in zip(found.cpu, plain.cpu, strict=True))
            print(
                f"{tower:5} {threads} threads, batch {batch}: {name:40} {median(found.wall):7.1f} ms, x{wall:.2f};"
                f" of processor {median(found.cpu):7.1f} ms, x{cpu:.2f}  ({len(found.wall)} rounds)",
                flush=True,
            )
            if name == "ours":
                yield wall


def processor() -> str:
    """Return the processor's name, and what it has for 8-bit products."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in found.items()}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    fast = sorted(flags & {"avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
    return f"{facts.get('model name', 'unknown')} ({', '.join(fast)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--model", default="clip")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--options", action="store_true")
    arguments = parser.parse_args()
    model = ModelStore(arguments.models).find(arguments.model)
    memory.return_large_blocks()  # as Vision does
    found = "overflow" if runtime.products_overflow() else "are exact"
    print(
        f"{processor()}, {available_cores()} cores; ONNX Runtime {onnxruntime.__version__}; its 8-bit products {found}"
    )
    ratios = [
        ratio
        for threads in sorted({1, available_cores()})
        for batch in (1, 8)
        for ratio in compare(model, threads, batch, arguments.seconds, arguments.options)
    ]
    print(f"ours takes at most x{max(ratios):.2f}, target x{TARGET}; load average {os.getloadavg()[0]:.1f}")
    sys.exit(max(ratios) > TARGET)


if __name__ == "__main__":
    main()
