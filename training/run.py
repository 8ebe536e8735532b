"""Make the bundled model from nothing: fetch, render, train, polish, export, evaluate, write the card.

    python training/run.py

Takes about an hour on two free cores. What `.cache/` has already is not made again, but for the checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: glibc gives large blocks back to the system at once, and every batch pays for clearing them again: five times slower.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "100000000",
}
STEPS = (("render.py",), ("train.py",), ("polish.py",), ("export.py",), ("evaluate.py", "--update-card"))


def main() -> None:
    """Run every step, each in a process of its own; stops at the first that fails."""
    here = Path(__file__).resolve().parent
    for script, *arguments in STEPS:
        print(f"== {script}", flush=True)
        subprocess.run([sys.executable, here / script, *arguments], check=True, env={**os.environ, **KEEP_MEMORY})


if __name__ == "__main__":
    main()
