"""Builds images and runs containers with Buildah, as root, under a memory limit of its own."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from containers import AS_IT_IS, BASE, PORT, Running, Unavailable, Way, free_port, succeeds, without_files

# Of linux/sched.h, linux/sockios.h and linux/if.h.
CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0x8914, 1


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
        self._prepared: dict[str, tuple[str, Path]] = {}
        self._words = ["buildah", "--storage-driver", "vfs", "--root", f"{cache}/root", "--runroot", f"{cache}/run"]
        if not self._has(BASE) and not succeeds(*self._words, "pull", "--quiet", BASE):
            self._make_base()

    @staticmethod
    def _install(*packages: str) -> bool:
        return succeeds("apt-get", "update", "-q") and succeeds(
            "apt-get", "install", "-y", "-q", "--no-install-recommends", *packages
        )

    def _has(self, image: str) -> bool:
        return succeeds(*self._words, "inspect", "--type", "image", image)

    def _make_base(self) -> None:
        if not shutil.which("debootstrap") and not self._install("debootstrap"):
            raise Unavailable(f"{BASE} cannot be pulled, and there is no debootstrap to make a stand-in")
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            packages = "python3,python3-pip,python3-venv,ca-certificates"
            words = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root)]
            if not succeeds(*words):
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
        # No layer for each instruction: with the plain storage that works everywhere, each is a copy of all files,
        # 30 GB in all.
        options = ["--isolation", "chroot", "--network", "host", "--pull-never", "--layers=false", "--tag", tag]
        subprocess.run([*self._words, "bud", *options, *named, str(context)], check=True)

    def size_mb(self, tag: str) -> float:
        with self._mounted(tag) as (_, root):
            return int(subprocess.check_output(["du", "-sb", str(root)], text=True).split()[0]) / 1e6

    @contextlib.contextmanager
    def prepared(self, tag: str) -> Iterator[None]:
        """A container is a copy of all files, made once here."""
        with self._mounted(tag) as found:
            self._prepared[tag] = found
            try:
                yield
            finally:
                del self._prepared[tag]

    @contextlib.contextmanager
    def _mounted(self, tag: str) -> Iterator[tuple[str, Path]]:
        if tag in self._prepared:
            yield self._prepared[tag]
            return
        name = self._output("from", "--pull-never", tag)
        try:
            yield name, Path(self._output("mount", name))
        finally:
            succeeds(*self._words, "rm", name)

    def _output(self, *words: str) -> str:
        return subprocess.check_output([*self._words, *words], text=True).strip()

    @contextlib.contextmanager
    def run(self, tag: str, way: Way = AS_IT_IS) -> Iterator[Running]:
        command = way.command or json.loads(self._output("inspect", "--type", "image", tag))["OCIv1"]["config"]["Cmd"]
        # Its network is this machine's: where it would listen, somebody else may.
        port = free_port()
        command = [str(port) if word == str(PORT) else word for word in command]
        with self._mounted(tag) as (name, _), tempfile.TemporaryFile() as log, _limited(way.memory_mib) as group:
            options = ["--isolation", "chroot", "--network", "host", *way.volumes]
            words = [*self._words, "run", *options, name, "--", *command]
            way.before()
            began = time.perf_counter()
            process = subprocess.Popen(words, stdout=log, stderr=log, preexec_fn=group.join)
            container = BuildahContainer(process, log.fileno(), group, port, began)
            try:
                yield container
            finally:
                container.kill()

    def shell(self, tag: str, *command: str) -> str:
        with self._mounted(tag) as (name, _):
            words = [*self._words, "run", "--isolation", "chroot", "--network", "host", name, "--", *command]
            return subprocess.check_output(words, text=True, preexec_fn=leave_the_network).strip()


def leave_the_network() -> None:
    """Give the calling process a network of its own, in which there is nothing but itself: netns(7), netdevice(7)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace can be made")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


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

    def held_mib(self) -> float | None:
        """Return what the group has now, without files in the page cache."""
        for name in ("memory.usage_in_bytes", "memory.current"):
            if self._folder is not None and (self._folder / name).exists():
                return without_files((self._folder / name).read_text(), (self._folder / "memory.stat").read_text())
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

    def __init__(self, process: subprocess.Popen[bytes], log: int, group: Group, port: int, began: float) -> None:
        self._process = process
        self._log = log
        self._group = group
        self.port = port
        self.began = began

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

    def held_mib(self) -> float | None:
        return self._group.held_mib()

    def output(self) -> str:
        return os.pread(self._log, 1_000_000, 0).decode("utf-8", "replace")
