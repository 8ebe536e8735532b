"""What Ray costs beside the same work in one process, and what a second worker of one core brings.

python -m benchmarks.ray_scaling [--model clip] [--models-dir DIR] [--rounds 3]

Each way is a process of its own on the cores that it is given (taskset), turn about: one process on core 0; Ray with
one worker, all of Ray on core 0; Ray with two workers on cores 0 and 1. Each does a short job and a long one: the
difference is the images alone, without starting Ray and loading the model. Processor time is that of all processes,
Ray's daemons among them: it says the same on a machine that has other things to do, where the clock does not.
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

from benchmarks import ray_images

WAYS = {"one process": (0, "0"), "Ray, 1 worker": (1, "0"), "Ray, 2 workers": (2, "0,1")}


def job(folder: Path, workers: int, model: str, models_dir: str | None) -> None:
    """Embed a folder, and print the seconds it took once Ray had started, and those of processors."""
    from datasette_vision import embed_files
    from datasette_vision.config import Config
    from datasette_vision.embed_files import Job
    from datasette_vision.pipeline import config_for_bulk
    from datasette_vision.vision import Vision

    config = Config(models_dir=models_dir)
    processor = ProcessorTime()
    if workers:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        from datasette_vision import ray_job

        ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as out:
        wanted = Job((str(folder),), out, model)
        began = time.perf_counter()
        if workers:
            pool = ray_job.Workers(minimum=workers, maximum=workers, images_per_block=64)
            done = ray_job.embed_files(wanted, config, workers=pool, quiet=True)
        else:
            vision = Vision(config_for_bulk(config, workers=1))
            done = embed_files.embed_files(wanted, vision, workers=3)
            vision.close()
        assert done.summary.embedded == done.summary.total, done
        seconds = time.perf_counter() - began
    print(seconds, processor.end())


class ProcessorTime:
    """Adds up the processor time of this process and of all below it, those that end on the way too. Linux alone."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def end(self) -> float:
        """Return the seconds."""
        self._ended.set()
        self._thread.join()
        return sum(self._seconds.values())

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
            if last:
                return


def measured(command: list[str]) -> tuple[float, float]:
    """Run a job: (its seconds, the processor seconds of it and of all that it started)."""
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    seconds, used = map(float, run.stdout.splitlines()[-1].split())
    return seconds, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-emoji")
    parser.add_argument("--models-dir")
    parser.add_argument("--short", type=int, default=128)
    parser.add_argument("--long", type=int, default=896)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", nargs=2, metavar=("FOLDER", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(Path(options.job[0]), int(options.job[1]), options.model, options.models_dir)
        return
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    images = options.long - options.short
    with tempfile.TemporaryDirectory() as name:
        for kind in ("short", "long"):
            ray_images.write(Path(name) / kind, getattr(options, kind), sizes=((640, 480),))
        for _ in range(options.rounds):
            for way, (workers, cores) in WAYS.items():
                command = ["taskset", "-c", cores, sys.executable, "-m", "benchmarks.ray_scaling"]
                command += ["--model", options.model]
                command += ["--models-dir", options.models_dir] if options.models_dir else []
                (short, short_cpu), (long, long_cpu) = (
                    measured([*command, "--job", f"{name}/{kind}", str(workers)]) for kind in ("short", "long")
                )
                rates[way].append(images / (long - short))
                costs[way].append(1000 * (long_cpu - short_cpu) / images)
                print(
                    f"  {way:15} {rates[way][-1]:7.1f} images/s, {costs[way][-1]:5.1f} ms of a processor each;"
                    f" {short:.1f} and {long:.1f} s, {short_cpu:.1f} and {long_cpu:.1f} s of a processor",
                    flush=True,
                )
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
