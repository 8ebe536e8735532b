"""Finds what builds and runs images here: Docker, Podman, or Buildah alone, as root, where there is no daemon."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from buildah import Buildah
from containers import AS_IT_IS, BASE, PORT, Engine, Running, Unavailable, Way, free_port, succeeds, without_files


def find() -> Engine:
    """Return an engine that can be used here. Raises Unavailable."""
    why = []
    for name in ("docker", "podman"):
        if shutil.which(name) and succeeds(name, "info"):
            if succeeds(name, "image", "inspect", BASE) or succeeds(name, "pull", "--quiet", BASE):
                return Docker(name)
            why.append(f"{name} cannot have {BASE}")
    if os.geteuid() == 0 and sys.platform == "linux":
        try:
            return Buildah()
        except Unavailable as error:
            why.append(str(error))
    raise Unavailable("; ".join(why) or "there is no docker or podman, and buildah needs root on Linux")


class Docker:
    """Docker, or Podman, which takes the same commands."""

    def __init__(self, name: str) -> None:
        self._name = name

    def build(self, context: Path, tag: str, arguments: dict[str, str]) -> None:
        named = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        subprocess.run([self._name, "build", "--tag", tag, *named, str(context)], check=True)

    def size_mb(self, tag: str) -> float:
        command = [self._name, "image", "inspect", "--format", "{{.Size}}", tag]
        return int(subprocess.check_output(command, text=True)) / 1e6

    def prepared(self, tag: str) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def run(self, tag: str, way: Way = AS_IT_IS) -> Iterator[Running]:
        memory = f"{way.memory_mib}m"
        limits = ["--memory", memory, "--memory-swap", memory] if way.memory_mib else []
        port = free_port()
        options = ["--detach", "--read-only", "--tmpfs", "/tmp", "--publish", f"127.0.0.1:{port}:{PORT}"]
        words = [self._name, "run", *options, *limits, *way.volumes, tag, *way.command]
        way.before()
        began = time.perf_counter()
        container = DockerContainer(self._name, subprocess.check_output(words, text=True).strip(), port, began)
        try:
            yield container
        finally:
            subprocess.run([self._name, "rm", "--force", container.name], stdout=subprocess.DEVNULL, check=False)

    def shell(self, tag: str, *command: str) -> str:
        words = [self._name, "run", "--rm", "--network", "none", "--entrypoint", command[0], tag, *command[1:]]
        return subprocess.check_output(words, text=True)


class DockerContainer:
    """A container of Docker or Podman."""

    def __init__(self, engine: str, name: str, port: int, began: float) -> None:
        self._engine = engine
        self.name = name
        self.port = port
        self.began = began

    def ended(self) -> int | None:
        command = [self._engine, "inspect", "--format", "{{json .State}}", self.name]
        state = json.loads(subprocess.check_output(command, text=True))
        return None if state["Running"] else int(state["ExitCode"])

    def wait(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while (code := self.ended()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"still running after {timeout_s:g} s")
            time.sleep(0.2)
        return code

    def terminate(self) -> None:
        subprocess.run([self._engine, "kill", "--signal", "TERM", self.name], stdout=subprocess.DEVNULL, check=True)

    def peak_mib(self) -> float | None:
        peak = self._memory("peak")
        return int(peak) / 2**20 if peak else None

    def held_mib(self) -> float | None:
        return without_files(self._memory("current"), self._memory("stat"))

    def _memory(self, what: str) -> str:
        """Read a file of the container's own cgroup; empty where there is none."""
        words = [self._engine, "exec", self.name, "cat", f"/sys/fs/cgroup/memory.{what}"]
        return subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout

    def output(self) -> str:
        return subprocess.check_output([self._engine, "logs", self.name], text=True, stderr=subprocess.STDOUT)
