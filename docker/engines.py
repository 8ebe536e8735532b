"""What builds and runs images here: Docker, Podman, or Buildah alone, as root, where there is no daemon.

The three differ in how a container is run under a memory limit; whoever uses them sees one way.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

BASE = "docker.io/library/python:3.11-slim"
PORT = 8080


class Unavailable(Exception):
    """No engine can be used here, and why."""


class Running(Protocol):
    """A container that runs."""

    def ended(self) -> int | None:
        """Return its exit code, or None."""

    def wait(self, timeout_s: float) -> int:
        """Wait for its end, and return its exit code."""

    def terminate(self) -> None:
        """Send SIGTERM to its process."""

    def peak_mib(self) -> float | None:
        """Return the most memory it had, in MiB, files in the page cache counted as the kernel counts them."""

    def output(self) -> str:
        """Return what it wrote."""


class Engine(Protocol):
    """Builds images and runs containers of them."""

    def build(self, context: Path, tag: str, arguments: dict[str, str]) -> None:
        """Build CONTEXT/Dockerfile."""

    def size_mb(self, tag: str) -> float:
        """Return the size of an image in MB, all layers together."""

    def run(
        self, tag: str, *, memory_mib: int = 0, command: Sequence[str] = (), mounts: dict[Path, str] | None = None
    ) -> contextlib.AbstractContextManager[Running]:
        """Run the command of an image, or another one, its port 8080 being that of this machine."""

    def shell(self, tag: str, *command: str) -> str:
        """Run a command in a fresh container, and return what it wrote. Raises CalledProcessError."""


def find() -> Engine:
    """Return an engine that can be used here. Raises Unavailable."""
    why = []
    for name in ("docker", "podman"):
        if shutil.which(name) and _succeeds(name, "info"):
            if _succeeds(name, "image", "inspect", BASE) or _succeeds(name, "pull", "--quiet", BASE):
                return Docker(name)
            why.append(f"{name} cannot have {BASE}")
    if os.geteuid() == 0 and sys.platform == "linux":
        try:
            return Buildah()
        except Unavailable as error:
            why.append(str(error))
    raise Unavailable("; ".join(why) or "there is no docker or podman, and buildah needs root on Linux")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


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

    @contextlib.contextmanager
    def run(
        self, tag: str, *, memory_mib: int = 0, command: Sequence[str] = (), mounts: dict[Path, str] | None = None
    ) -> Iterator[Running]:
        limits = ["--memory", f"{memory_mib}m", "--memory-swap", f"{memory_mib}m"] if memory_mib else []
        bound = [word for path, inside in (mounts or {}).items() for word in ("--volume", f"{path}:{inside}:ro")]
        options = ["--detach", "--read-only", "--tmpfs", "/tmp", "--publish", f"127.0.0.1:{PORT}:{PORT}"]
        words = [self._name, "run", *options, *limits, *bound, tag, *command]
        container = DockerContainer(self._name, subprocess.check_output(words, text=True).strip())
        try:
            yield container
        finally:
            subprocess.run([self._name, "rm", "--force", container.name], stdout=subprocess.DEVNULL, check=False)

    def shell(self, tag: str, *command: str) -> str:
        words = [self._name, "run", "--rm", "--network", "none", "--entrypoint", command[0], tag, *command[1:]]
        return subprocess.check_output(words, text=True)


class DockerContainer:
    """A container of Docker or Podman."""

    def __init__(self, engine: str, name: str) -> None:
        self._engine = engine
        self.name = name

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
        path = "/sys/fs/cgroup/memory.peak"
        try:
            words = [self._engine, "exec", self.name, "cat", path]
            return int(subprocess.check_output(words, text=True, stderr=subprocess.DEVNULL)) / 2**20
        except (subprocess.CalledProcessError, ValueError):
            return None

    def output(self) -> str:
        return subprocess.check_output([self._engine, "logs", self.name], text=True, stderr=subprocess.STDOUT)


class Buildah:
    """Buildah without a daemon: chroot for isolation, this machine's network, and a cgroup for the memory limit.

    Where the base image cannot be pulled, debootstrap makes a stand-in: the same Debian with its own Python 3.11.
    """

    def __init__(self) -> None:
        missing = [name for name in ("buildah", "jq") if not shutil.which(name)]
        if missing and not (shutil.which("apt-get") and self._install(*missing, "crun")):
            raise Unavailable(f"no {', '.join(missing)} here, nor can it be installed")
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "datasette-vision-images"
        cache.mkdir(parents=True, exist_ok=True)
        self._words = ["buildah", "--storage-driver", "vfs", "--root", f"{cache}/root", "--runroot", f"{cache}/run"]
        if not self._has(BASE) and not _succeeds(*self._words, "pull", "--quiet", BASE):
            self._make_base()

    @staticmethod
    def _install(*packages: str) -> bool:
        return _succeeds("apt-get", "update", "-q") and _succeeds(
            "apt-get", "install", "-y", "-q", "--no-install-recommends", *packages
        )

    def _has(self, image: str) -> bool:
        return _succeeds(*self._words, "inspect", "--type", "image", image)

    def _make_base(self) -> None:
        if not shutil.which("debootstrap") and not self._install("debootstrap"):
            raise Unavailable(f"{BASE} cannot be pulled, and there is no debootstrap to make a stand-in")
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            packages = "python3,python3-pip,python3-venv,ca-certificates"
            words = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)]
            if not _succeeds(*words):
                raise Unavailable(f"{BASE} cannot be pulled, and debootstrap cannot make a stand-in")
            for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
                marker.unlink()
            for name, target in (("python", "python3"), ("python3", "python3"), ("pip", "pip3")):
                (root / "usr/local/bin" / name).symlink_to(f"/usr/bin/{target}")
            certificates = Path("/etc/ssl/certs/ca-certificates.crt")  # those that this machine trusts
            if certificates.exists():
                shutil.copy(certificates, root / certificates.relative_to("/"))
            for path in [*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")]:
                path.unlink()
            lines = [
                "FROM scratch",
                "COPY root /",
                "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
                f"ENV PIP_CERT={certificates}",
            ]
            (Path(folder) / "Dockerfile").write_text("\n".join(lines) + "\n", "utf-8")
            subprocess.run([*self._words, "bud", "--quiet", "--isolation", "chroot", "--tag", BASE, folder], check=True)

    def build(self, context: Path, tag: str, arguments: dict[str, str]) -> None:
        named = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        found = os.environ.get("PIP_FIND_LINKS", "")
        if Path(found).is_dir():  # wheels that pip finds here without a network, it finds there too
            named += ["--volume", f"{found}:/wheels:ro", "--build-arg", "PIP_FIND_LINKS=/wheels"]
        options = ["--isolation", "chroot", "--network", "host", "--pull-never", "--layers", "--tag", tag]
        subprocess.run([*self._words, "bud", *options, *named, str(context)], check=True)

    def size_mb(self, tag: str) -> float:
        with self._mounted(tag) as (_, root):
            return int(subprocess.check_output(["du", "-sb", str(root)], text=True).split()[0]) / 1e6

    @contextlib.contextmanager
    def _mounted(self, tag: str) -> Iterator[tuple[str, Path]]:
        name = self._output("from", "--pull-never", tag)
        try:
            yield name, Path(self._output("mount", name))
        finally:
            _succeeds(*self._words, "rm", name)

    def _output(self, *words: str) -> str:
        return subprocess.check_output([*self._words, *words], text=True).strip()

    @contextlib.contextmanager
    def run(
        self, tag: str, *, memory_mib: int = 0, command: Sequence[str] = (), mounts: dict[Path, str] | None = None
    ) -> Iterator[Running]:
        if not command:
            command = json.loads(self._output("inspect", "--type", "image", tag))["OCIv1"]["config"]["Cmd"]
        bound = [word for path, inside in (mounts or {}).items() for word in ("--volume", f"{path}:{inside}:ro")]
        with self._mounted(tag) as (name, _), tempfile.TemporaryFile() as log, _limited(memory_mib) as group:
            words = [*self._words, "run", "--isolation", "chroot", "--network", "host", *bound, name, "--", *command]
            process = subprocess.Popen(words, stdout=log, stderr=log, preexec_fn=group.join)
            container = BuildahContainer(process, log.fileno(), group)
            try:
                yield container
            finally:
                container.kill()

    def shell(self, tag: str, *command: str) -> str:
        with self._mounted(tag) as (name, _):
            return self._output("run", "--isolation", "chroot", "--network", "host", name, "--", *command)


class Group:
    """A cgroup with a memory limit, of version 1 or 2; without a limit, none."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def join(self) -> None:
        """Move the calling process into the group."""
        if self._folder is not None:
            (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_mib(self) -> float | None:
        """Return the most memory that the group had."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if self._folder is not None and (self._folder / name).exists():
                return int((self._folder / name).read_text()) / 2**20
        return None


@contextlib.contextmanager
def _limited(memory_mib: int) -> Iterator[Group]:
    if not memory_mib:
        yield Group(None)
        return
    first = Path("/sys/fs/cgroup/memory")
    parent, names = (first, ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"))
    if not first.is_dir():
        parent, names = (Path("/sys/fs/cgroup"), ("memory.max", "memory.swap.max"))
    folder = parent / f"datasette-vision-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
        limit = memory_mib * 2**20
        (folder / names[0]).write_text(str(limit))
        with contextlib.suppress(OSError):  # no swap, or not counted
            (folder / names[1]).write_text(str(limit if "memsw" in names[1] else 0))
    except OSError as error:
        raise Unavailable(f"no memory limit can be set: {error}") from None
    try:
        yield Group(folder)
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


class BuildahContainer:
    """A process of this machine in a root of its own."""

    def __init__(self, process: subprocess.Popen[bytes], log: int, group: Group) -> None:
        self._process = process
        self._log = log
        self._group = group

    def ended(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def _inside(self) -> list[int]:
        """Return the processes at the end of the tree that begins with buildah's: those of the container."""
        parents = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit():
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        found, level = [], [self._process.pid]
        while level:
            below = {process: parent for process, parent in parents.items() if parent in level}
            found += [process for process in level if process not in below.values()]
            level = list(below)
        return [process for process in found if process != self._process.pid]

    def terminate(self) -> None:
        for number in self._inside():
            os.kill(number, 15)

    def kill(self) -> None:
        """End it at once."""
        for number in self._inside():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, 9)
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(30)

    def peak_mib(self) -> float | None:
        return self._group.peak_mib()

    def output(self) -> str:
        return os.pread(self._log, 1_000_000, 0).decode("utf-8", "replace")
