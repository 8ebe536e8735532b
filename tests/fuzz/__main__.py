"""Fuzzes for so many minutes, in rounds of all properties: python -m tests.fuzz [minutes] [arguments of pytest].

Each round is a process of its own, with new inputs. What fails is kept by hypothesis in .hypothesis and tried again
first. At the end: what failed, and how many inputs each property was tried with. Exits with 1 when anything failed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).parent
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


def main(minutes: float, arguments: list[str]) -> int:
    """Run rounds until the time is up, and return the exit code."""
    until = time.time() + 60 * minutes
    tried: Counter[str] = Counter()
    failed: set[str] = set()

    def report(names: list[str], output: str) -> None:
        if not failed.issuperset(names):
            print(output, flush=True)
        failed.update(names)

    rounds = 0
    with tempfile.TemporaryDirectory() as folder:
        counts, last = Path(folder) / "counts.jsonl", Path(folder) / "last.txt"
        environment = {
            **os.environ,
            "FUZZ_PROFILE": os.environ.get("FUZZ_PROFILE", "hour"),
            "FUZZ_UNTIL": str(until),
            "FUZZ_COUNTS": str(counts),
            "FUZZ_LAST_INPUT": str(last),
        }
        while time.time() < until:
            rounds += 1
            command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", str(FOLDER), *arguments]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace", cwd=FOLDER.parent.parent
            )
            report(FAILED.findall(done.stdout), done.stdout)
            if done.returncode not in (0, 1, 5):  # it did not end by itself
                at = last.read_text("utf-8") if last.exists() else "nothing was tried"
                name = f"the process ended with {done.returncode} at {at.partition(chr(10))[0]}"
                report([name], f"{done.stdout}\n{done.stderr}\nThe input at hand:\n{at}")
            if counts.exists():
                for line in counts.read_text("utf-8").splitlines():
                    tried.update(json.loads(line))
                counts.unlink()
            print(f"round {rounds}: {tried.total():,} inputs, {len(failed)} failed", flush=True)
    print(f"\nInputs tried in {minutes:g} minutes, {rounds} rounds:")
    for name, count in sorted(tried.items()):
        print(f"{count:>11,}  {name.removeprefix('tests/fuzz/')}")
    print(f"{tried.total():>11,}  in all, for {len(tried)} properties")
    for name in sorted(failed):
        print(f"FAILED {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, sys.argv[2:]))
