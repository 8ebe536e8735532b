"""Cores and memory: those of the machine, less what a container's limits leave."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from datasette_vision.engine.runtime import default_threads
from datasette_vision.util import memory
from datasette_vision.util.cores import available_cores

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


MIB = 1 << 20
UNLIMITED = str(9223372036854771712)


@pytest.mark.parametrize(
    ("membership", "files", "mebibytes"),
    [
        ("0::/\n", {"memory.max": f"{512 * MIB}\n"}, 512),
        ("0::/\n", {"memory.max": "max\n"}, 3000),
        ("0::/a/b\n", {"a/b/memory.max": f"{1024 * MIB}\n", "a/memory.max": f"{700 * MIB}\n"}, 700),
        ("0::/not/seen/from/inside\n", {"memory.max": f"{600 * MIB}\n"}, 600),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": f"{256 * MIB}\n"}, 256),
        ("5:memory:/a/b\n", {"memory/a/memory.limit_in_bytes": f"{256 * MIB}\n"}, 256),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": UNLIMITED}, 3000),
        ("5:cpu:/\n", {"memory/memory.limit_in_bytes": f"{256 * MIB}\n"}, 3000),
        ("0::/\n", {"memory.max": f"{8000 * MIB}\n"}, 3000),
        ("0::/\n", {"memory.max": "garbage\n"}, 3000),
        ("0::/\n", {}, 3000),
    ],
)
def test_memory_of_a_container(tmp_path: Path, membership: str, files: dict[str, str], mebibytes: int) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: {4000 * 1024} kB\nMemAvailable: {2900 * 1024} kB\n")
    (tmp_path / "status").write_text(f"Name: python\nVmRSS: {100 * 1024} kB\n")
    places = (*machine(tmp_path, membership, files), tmp_path / "meminfo", tmp_path / "status")
    assert memory.available_bytes(*places) == mebibytes * MIB
    unknown = (*places[:3], tmp_path / "none")  # what the process holds already is not told
    assert memory.available_bytes(*unknown) == min(mebibytes, 2900) * MIB


def test_memory_without_proc(tmp_path: Path) -> None:
    none = tmp_path / "none"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    assert memory.available_bytes(none, none, none, none) == pages


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_large_blocks_that_are_freed_are_given_back() -> None:
    """Otherwise what is freed between two small blocks that stay is held: here 256 MiB."""
    program = """
        from datasette_vision.util import memory
        from datasette_vision.engine.vision import Vision

        vision = Vision()
        first = bytearray(b"a") * (31 << 20)
        del first
        before = memory.resident_mib()
        large, small = [], []
        for _ in range(16):
            large.append(bytearray(b"a") * (16 << 20))
            small.append(bytearray(b"a") * 100_000)
        held = memory.resident_mib()
        large.clear()
        print(held - before, memory.resident_mib() - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    held, kept = map(float, done.stdout.split())
    assert held > 250
    assert kept < 50
