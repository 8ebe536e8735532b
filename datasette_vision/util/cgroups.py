"""Linux control groups: the limits that a container or a service manager sets for this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def folders(controller: str, cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """Yield the folders of the control groups that apply to this process: its own and their parents, of versions 2 and
    1.

    `controller` is cpu or memory. In a container, the path of a group may be that of the host, which is not visible
    inside. So the root is always included, and a folder need not exist.
    """
    try:
        lines = membership.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        inner = PurePosixPath(path.lstrip("/"))
        yield root / inner
        for parent in inner.parents:
            yield root / parent
