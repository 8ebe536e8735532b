"""What Ray costs beside the same work in one process, and what a second worker of one core brings.

python -m benchmarks.ray_scaling [--model clip] [--models-dir DIR] [--rounds 3]

Each way is a process of its own on the cores that it is given (taskset), turn about: one process on core 0; Ray with
one worker, all of Ray on core 0; Ray with two workers on cores 0 and 1. A rate is that of the images by which a long
job is longer than a short one: starting Ray and loading the model are told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import ray_images

WAYS = {"one process": (0, "0"), "Ray, 1 worker": (1, "0"), "Ray, 2 workers": (2, "0,1")}


def child(folder: Path, workers: int, model: str, models_dir: str | None, short: int, long: int) -> None:
    """Run a short and a long job, and print {"start": s to start Ray, "short": s, "long": s}."""
    from datasette_vision import embed_files
    from datasette_vision.config import Config
    from datasette_vision.embed_files import Job
    from datasette_vision.pipeline import config_for_bulk
    from datasette_vision.vision import Vision

    config = Config(models_dir=models_dir)
    seconds = {"start": 0.0}
    if workers:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        began = time.perf_counter()
        import ray

        from datasette_vision import ray_job

        ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
        seconds["start"] = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as name:
        for kind, count in (("short", short), ("long", long)):
            job = Job((f"{folder}/{kind}",), f"{name}/{kind}", model)
            began = time.perf_counter()
            if workers:
                pool = ray_job.Workers(minimum=workers, maximum=workers, images_per_block=64)
                done = ray_job.embed_files(job, config, workers=pool, quiet=True)
            else:
                vision = Vision(config_for_bulk(config, workers=1))
                done = embed_files.embed_files(job, vision, workers=3)
                vision.close()
            seconds[kind] = time.perf_counter() - began
            assert done.summary.embedded == count, done
    print(json.dumps(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-emoji")
    parser.add_argument("--models-dir")
    parser.add_argument("--short", type=int, default=256)
    parser.add_argument("--long", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, workers = options.child
        child(Path(folder), int(workers), options.model, options.models_dir, options.short, options.long)
        return
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    starts: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        for kind in ("short", "long"):
            ray_images.write(Path(name) / kind, getattr(options, kind), sizes=((640, 480),))
        for _ in range(options.rounds):
            for way, (workers, cores) in WAYS.items():
                command = ["taskset", "-c", cores, sys.executable, "-m", "benchmarks.ray_scaling"]
                command += ["--child", name, str(workers), "--model", options.model]
                command += ["--short", str(options.short), "--long", str(options.long)]
                command += ["--models-dir", options.models_dir] if options.models_dir else []
                run = subprocess.run(command, capture_output=True, text=True)
                if run.returncode:
                    sys.exit(run.stderr)
                seconds = json.loads(run.stdout.splitlines()[-1])
                rate = (options.long - options.short) / (seconds["long"] - seconds["short"])
                rates[way].append(rate)
                starts[way].append(seconds["start"] + seconds["short"] - options.short / rate)
                print(f"  {way:15} {rate:7.1f} images/s; {json.dumps(seconds)}", flush=True)
    alone, one, two = (median(rates[way]) for way in WAYS)
    print(f"{options.model}, medians of {options.rounds}:")
    for way in WAYS:
        print(f"{way:15} {median(rates[way]):7.1f} images/s after {median(starts[way]):4.1f} s to start")
    print(f"Ray with one worker does {100 * one / alone:.0f} % of the images of one process in the same time")
    print(f"two workers do {two / one:.2f} times the images of one: {100 * two / one / 2:.0f} % of linear")
    pairs = [b / a / 2 for a, b in zip(rates["Ray, 1 worker"], rates["Ray, 2 workers"], strict=True)]
    print(f"by round: {', '.join(f'{100 * share:.0f} %' for share in pairs)}")


if __name__ == "__main__":
    main()
