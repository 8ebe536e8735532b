"""What Ray costs beside the same work in one process, and what a second worker of one core brings.

python -m benchmarks.ray_scaling [--model clip] [--models-dir DIR] [--rounds 3]

Each way is a process of its own on the cores that it is given (taskset), turn about: one process on core 0; Ray with
one worker, all of Ray on core 0; Ray with two workers on cores 0 and 1. A rate is that of files of 32 images as they
appear, in the middle of the job, when all workers are at work. Processor time is that of all processes meanwhile, Ray's
daemons among them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import ray_images

BLOCK = 32
WAYS = {"one process": (0, "0"), "Ray, 1 worker": (1, "0"), "Ray, 2 workers": (2, "0,1")}


def job(folder: Path, workers: int, model: str, models_dir: str | None) -> None:
    """Embed a folder, and print images a second, and milliseconds of processors for each."""
    from datasette_vision.bulk.pipeline import config_for_bulk
    from datasette_vision.config.settings import Config
    from datasette_vision.engine.vision import Vision
    from datasette_vision.files import embed_files
    from datasette_vision.files.embed_files import Job

    config = Config(models_dir=models_dir)
    processor = ProcessorTime()
    if workers:
        import ray

        from datasette_vision.files.ray import cluster
        from datasette_vision.files.ray import job as ray_job

        cluster.settle()
        ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as out:
        wanted = Job((str(folder),), out, model, rows_per_file=BLOCK)
        if workers:
            pool = ray_job.Workers(minimum=workers, maximum=workers, images_per_block=BLOCK)
            done = ray_job.embed_files_on_ray(wanted, config, workers=pool, quiet=True)
        else:
            vision = Vision(config_for_bulk(config, workers=1))
            done = embed_files.embed_files(wanted, vision, workers=3)
            vision.close()
        assert done.summary.embedded == done.summary.total, done
        times = np.array(sorted(path.stat().st_mtime for path in Path(out).iterdir()))
    processor.end()
    window = times[len(times) // 4 : -2]  # workers start one after the other, and one ends first
    slope = np.polyfit(np.arange(len(window)) * BLOCK, window, 1)[0]
    used = processor.at(window[-1]) - processor.at(window[0])
    print(1 / slope, 1000 * used / ((len(window) - 1) * BLOCK))


class ProcessorTime:
    """Adds up the processor time of this process and of all below it, those that end on the way too. Linux alone."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}
        self._history: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def at(self, moment: float) -> float:
        """Return the seconds used until a moment of time.time()."""
        times, seconds = zip(*self._history, strict=True)
        return float(np.interp(moment, times, seconds))

    def _sample(self) -> None:
        while True:
            last = self._ended.wait(0.2)
            parents: dict[int, int] = {}
            found: dict[int, tuple[int, float]] = {}
            for path in Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError, ValueError):
                    fields = path.read_text().rpartition(")")[2].split()  # proc(5): from the third field on
                    number = int(path.parent.name)
                    parents[number] = int(fields[1])
                    ticks = int(fields[11]) + int(fields[12])
                    found[number] = int(fields[19]), ticks / os.sysconf("SC_CLK_TCK")
            for number, (started, seconds) in found.items():
                above: int | None = number
                while above and above != os.getpid():
                    above = parents.get(above)
                if above:
                    self._seconds[number, started] = seconds
            self._history.append((time.time(), sum(self._seconds.values())))
            if last:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-emoji")
    parser.add_argument("--models-dir")
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", nargs=2, metavar=("FOLDER", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(Path(options.job[0]), int(options.job[1]), options.model, options.models_dir)
        return
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        ray_images.write(Path(name) / "photos", options.images, sizes=((640, 480),))
        for _ in range(options.rounds):
            for way, (workers, cores) in WAYS.items():
                command = ["taskset", "-c", cores, sys.executable, "-m", "benchmarks.ray_scaling"]
                command += ["--model", options.model, "--job", f"{name}/photos", str(workers)]
                command += ["--models-dir", options.models_dir] if options.models_dir else []
                run = subprocess.run(command, capture_output=True, text=True)
                if run.returncode:
                    sys.exit(run.stderr)
                rate, cost = map(float, run.stdout.splitlines()[-1].split())
                rates[way].append(rate)
                costs[way].append(cost)
                print(f"  {way:15} {rate:7.1f} images/s, {cost:5.1f} ms of a processor each", flush=True)
    print(f"{options.model}, medians of {options.rounds}:")
    for way in WAYS:
        print(f"{way:15} {median(rates[way]):7.1f} images/s, {median(costs[way]):5.1f} ms of a processor each")
    alone, one, two = (median(rates[way]) for way in WAYS)
    cost_alone, cost_one, cost_two = (median(costs[way]) for way in WAYS)
    print(f"Ray with one worker: {100 * one / alone:.0f} % of the images of one process in the same time,")
    print(f"  {100 * (cost_one / cost_alone - 1):+.1f} % of processor time an image")
    pairs = [b / a / 2 for a, b in zip(rates["Ray, 1 worker"], rates["Ray, 2 workers"], strict=True)]
    print(
        f"two workers beside one: {100 * two / one / 2:.0f} % of linear ({', '.join(f'{100 * p:.0f}' for p in pairs)}),"
    )
    print(f"  {100 * (cost_two / cost_one - 1):+.1f} % of processor time an image")


if __name__ == "__main__":
    main()
