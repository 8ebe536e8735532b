"""How long `datasette serve` takes until its first answer, with the plugin and without.

python benchmarks/startup.py [--runs 15]
"""

from __future__ import annotations

import argparse
from statistics import median

from servers import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for run in range(runs + 1):
        for plugins in (False, True):
            with serve(plugins=plugins) as server:
                if run:  # the first of each warms the disk cache
                    seconds[plugins].append(server.started_s)
    without, with_plugin = median(seconds[False]), median(seconds[True])
    print(f"without the plugin  {without:.3f} s (median of {runs}, from {min(seconds[False]):.3f})")
    print(f"with the plugin     {with_plugin:.3f} s (median of {runs}, from {min(seconds[True]):.3f})")
    print(f"ratio               {with_plugin / without:.2f}")


if __name__ == "__main__":
    main()
