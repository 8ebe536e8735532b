"""How many cores this process may use: the container's share, not the whole machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from datasette_vision.util.cgroups import CGROUPS, MEMBERSHIP, folders


def available_cores(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the number of cores that the scheduler gives this process, or its CPU quota if that is less; at least 1.

    `docker run --cpus 1.5` on 64 cores leaves 64 visible: 64 threads would spend their time being throttled.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (quota for folder in folders("cpu", cgroups, membership) for quota in _quota(folder))
    return max(1, min([seen, *(math.ceil(quota) for quota in quotas)]))


def _quota(folder: Path) -> Iterator[float]:
    """Yield the CPU quota of a control group, in cores, if it has one."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text("utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text("utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text("utf-8").strip()
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return
