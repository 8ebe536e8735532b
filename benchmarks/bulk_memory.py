"""The memory of `datasette vision embed` and `datasette vision load` over 1,000 images and over 20,000.

DATASETTE_VISION_MODELS=… python benchmarks/bulk_memory.py [--model tiny-emoji] [--counts 1000 20000]

Fails when a peak grows by more than 15 % from the first count to the last.
"""

from __future__ import annotations

import argparse
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generated import write_pictures

# Most of them small, so that twenty thousand take minutes; large ones enough that a thousand know the peak of many.
SIZES = ((320, 240, 92), (1600, 1200, 4), (4000, 3000, 4))


def peak_mib(*arguments: str) -> float:
    """Run a command of datasette and return its largest resident memory in MiB."""
    process = subprocess.Popen([sys.executable, "-m", "datasette", "vision", *arguments, "--quiet"])
    status = Path(f"/proc/{process.pid}/status")
    peak = 0
    while process.poll() is None:
        try:
            lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        except OSError:
            break
        peak = int(lines[0].split()[1]) if lines else peak
        time.sleep(0.05)
    if process.wait():
        sys.exit(f"{' '.join(arguments)}: exit code {process.returncode}")
    return peak / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-emoji")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--folder", type=Path, help="where the pictures are made, and stay")
    options = parser.parse_args()
    grown = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "pictures"
        write_pictures(folder, max(options.counts), sizes=SIZES, unique_below=0)
        files = sorted(folder.rglob("*.jpg"))
        peaks: dict[str, list[float]] = {"embed": [], "load": []}
        for count in options.counts:
            database = Path(temporary) / f"{count}.db"
            connection = sqlite3.connect(database)
            connection.execute("create table images (id integer primary key, image blob)")
            with connection:
                for number, path in enumerate(files[:count]):
                    connection.execute("insert into images values (?, ?)", (number, path.read_bytes()))
            connection.close()
            peaks["embed"].append(peak_mib("embed", str(database), "images", "--model", options.model))
            database.unlink()
            folders = [str(path) for path in sorted(folder.iterdir())][: -(-count // 1000)]
            peaks["load"].append(peak_mib("load", str(database), *folders, "--model", options.model))
            database.unlink()
            print(f"{count:,} images: embed {peaks['embed'][-1]:.0f} MiB, load {peaks['load'][-1]:.0f} MiB", flush=True)
    for name, (first, *_, last) in peaks.items():
        grown.append(last / first - 1)
        print(f"{name}: {100 * grown[-1]:+.0f} % from {options.counts[0]:,} to {options.counts[-1]:,} images")
    if max(grown) > 0.15:
        sys.exit("FAILED")


if __name__ == "__main__":
    main()
