"""Kills `load`, `embed`, `index`, `import-embeddings` and `embed-files` at random moments, and runs them again.

python -m benchmarks.kills [--kills 30] [--seed 1] [--only NAME …]

Prints for each command how often it was killed and at which moments, as a share of an undisturbed run. Fails where an
end is not that of a run in one go: rows, embeddings to the bit, errors, side tables, answers to searches, files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.kills import SCENARIOS, killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=[scenario.name for scenario in SCENARIOS], help="commands")
    parser.add_argument("--keep", type=Path, help="folder to work in, which stays")
    options = parser.parse_args()
    problems = 0
    with tempfile.TemporaryDirectory() as temporary:
        for number, scenario in enumerate(SCENARIOS):
            if options.only and scenario.name not in options.only:
                continue
            began = time.monotonic()
            report = killed(scenario, (options.keep or Path(temporary)) / str(number), options.kills, options.seed)
            moments = ", ".join(f"{moment:.0%}" for moment in sorted(report.moments))
            print(
                f"{scenario.name}: {len(report.moments)} kills, {report.ends} ends, {len(report.problems)} problems;"
                f" {report.seconds:.1f} s undisturbed, {time.monotonic() - began:.0f} s in all\n  at {moments}"
            )
            if report.unreadable:
                print(f"  after {report.unreadable} of them the database cannot be read until somebody writes to it")
            for problem in report.problems:
                print(f"  PROBLEM {problem}")
            sys.stdout.flush()
            problems += len(report.problems)
    if problems:
        sys.exit(f"FAILED: {problems} problems")


if __name__ == "__main__":
    main()
