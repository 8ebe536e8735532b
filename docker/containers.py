"""What is asked of an engine that builds images and runs containers, whichever it is."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

BASE = "docker.io/library/python:3.11-slim"
PORT = 8080


class Unavailable(Exception):
    """No engine can be used here, and why."""


class Running(Protocol):
    """A container that runs: since when (time.perf_counter), and the port of this machine where it answers."""

    began: float
    port: int

    def ended(self) -> int | None:
        """Return its exit code, or None."""

    def wait(self, timeout_s: float) -> int:
        """Wait for its end, and return its exit code."""

    def terminate(self) -> None:
        """Send SIGTERM to its process."""

    def peak_mib(self) -> float | None:
        """Return the most memory it had, in MiB, files in the page cache counted as the kernel counts them."""

    def held_mib(self) -> float | None:
        """Return what it has now, in MiB, without files in the page cache, which the kernel takes back at will."""

    def output(self) -> str:
        """Return what it wrote."""


@dataclass(frozen=True)
class Way:
    """How an image is run: its memory in MiB (0: no limit), its own command or another, and what is mounted where.

    `before` is called when all else is ready.
    """

    memory_mib: int = 0
    command: Sequence[str] = ()
    mounts: Mapping[Path, str] = field(default_factory=dict)
    before: Callable[[], object] = lambda: None

    @property
    def volumes(self) -> list[str]:
        """The options that mount, in the words of Docker and Buildah alike."""
        return [word for path, inside in self.mounts.items() for word in ("--volume", f"{path}:{inside}:ro")]


AS_IT_IS = Way()


class Engine(Protocol):
    """Builds images and runs containers of them."""

    def build(self, context: Path, tag: str, arguments: dict[str, str]) -> None:
        """Build CONTEXT/Dockerfile."""

    def size_mb(self, tag: str) -> float:
        """Return the size of an image in MB, all layers together."""

    def prepared(self, tag: str) -> contextlib.AbstractContextManager[object]:
        """Make what it takes to run an image once for all runs in the block, where that takes long."""

    def run(self, tag: str, way: Way = AS_IT_IS) -> contextlib.AbstractContextManager[Running]:
        """Run an image. Raises Unavailable when no memory limit can be set."""

    def shell(self, tag: str, *command: str) -> str:
        """Run a command in a fresh container without a network, and return what it wrote. Raises CalledProcessError."""


def without_files(used: str, statistics: str) -> float | None:
    """Return what a cgroup has without files in the page cache, in MiB, by its memory.current and memory.stat.

    In version 1 these are memory.usage_in_bytes and memory.stat. What lies in a tmpfs is no file on a disk: it stays.
    """
    found = dict(line.split() for line in statistics.splitlines())
    files = found.get("file", found.get("cache"))
    return None if not used or files is None else (int(used) - int(files) + int(found.get("shmem", 0))) / 2**20


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def succeeds(*command: str) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0
