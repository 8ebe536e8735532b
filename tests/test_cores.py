"""Cores: those of the process, less what a container's quota leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datasette_vision.cores import available_cores
from datasette_vision.runtime import default_threads

SEEN = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(tmp_path: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A tree of control groups, and the file that says which are this process's."""
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "membership").write_text(membership)
    return tmp_path / "cgroup", tmp_path / "membership"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, SEEN),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ("0::/not/seen/from/inside\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, SEEN),
        (
            "3:cpu,cpuacct:/\n2:memory:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, SEEN),
        ("3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, SEEN),
        ("0::/\n", {"cpu.max": "garbage\n"}, SEEN),
        ("0::/\n", {"cpu.max": "100000 0\n"}, SEEN),
        ("0::/\n", {}, SEEN),
    ],
)
def test_cores_of_a_container(tmp_path: Path, membership: str, files: dict[str, str], cores: int) -> None:
    assert available_cores(*machine(tmp_path, membership, files)) == min(cores, SEEN)


def test_without_control_groups(tmp_path: Path) -> None:
    assert available_cores(tmp_path / "none", tmp_path / "none") == SEEN


def test_inference_uses_as_many_threads() -> None:
    assert default_threads() == available_cores()
