"""Folders that appear completely or not at all: locks, staging, replacing, and cleaning up after killed processes.

In the models folder, besides one folder per model::

    .install-<name>-<8 hex digits>   a model being installed; renamed to <name> when it is complete
    .old-<name>-<8 hex digits>       what --force replaces, until the new one is in place
    .locks/<name>                    held while <name> is installed, removed or cleaned up
    .downloads/                      files from the hub, complete or to be resumed

After a kill at any moment, the next install removes a staging folder, and restores an old folder without a successor.
Until then the old one is used (store.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from datasette_vision.errors import InstallFailed
from datasette_vision.install.origins import Origin
from datasette_vision.models.leftovers import all_leftovers, leftovers
from datasette_vision.util.progress import OnProgress

# An abandoned download.
STALE_SECONDS = 7 * 24 * 3600


@contextlib.contextmanager
def exclusive(path: Path, waiting_for: str, on_progress: OnProgress[str], *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path`. If another process holds it: report that and wait, or yield False if `wait` is
    False.
    """
    import filelock  # a dependency of huggingface_hub

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not wait:
            yield False
            return
        on_progress(f"{waiting_for}: waiting for it to finish")
        lock.acquire()
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def held(models_dir: Path, name: str, on_progress: OnProgress[str]) -> Iterator[None]:
    """Hold the name of a model, after cleaning up unfinished work on it.

    Raises InstallFailed if the folder cannot be written.
    """
    with (
        writing(models_dir),
        exclusive(models_dir / ".locks" / name, f"{name} is being installed by another process", on_progress),
    ):
        recover_install(models_dir, name)
        yield


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the system's errors into one clear line: no space, no permission, a read-only file system.

    Raises InstallFailed.
    """
    try:
        yield
    except OSError as error:
        where = str(error.filename or folder)
        hint = ""
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = ": free some space, and install again: downloads are kept"
        elif where.startswith(str(folder)):
            hint = ": choose another folder with --models-dir or DATASETTE_VISION_MODELS"
        raise InstallFailed(f"{where}: {error.strerror or error}{hint}") from None


def recover_install(models_dir: Path, name: str) -> None:
    """Clean up after killed installs of `name`. The lock of the name is held."""
    for entry, kind in leftovers(models_dir, name):
        if kind == "old" and not (models_dir / name).exists() and (entry / "manifest.json").is_file():
            entry.rename(models_dir / name)
        else:
            shutil.rmtree(entry)


def clear_up(models_dir: Path, on_progress: OnProgress[str]) -> None:
    """Clean up after killed installs of any name, except running ones.

    Deletes downloads that are installed or abandoned.
    """
    for name in sorted({match["name"] for match, _ in all_leftovers(models_dir)}):
        with exclusive(models_dir / ".locks" / name, "", on_progress, wait=False) as mine:
            if mine:
                recover_install(models_dir, name)
    downloads = models_dir / ".downloads"
    at_work = any(match["kind"] == "install" for match, _ in all_leftovers(models_dir))
    for path in sorted(downloads.iterdir()) if downloads.is_dir() else []:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            # A download with another hard link is in a model's folder: the process was killed before it could remove it
            # here.
            is_in_place = status.st_nlink > 1 and not at_work
            if is_in_place or time.time() - status.st_mtime > STALE_SECONDS:
                path.unlink()


@contextlib.contextmanager
def staged(models_dir: Path, name: str) -> Iterator[Path]:
    """Make a folder to build the model in. It is removed at the end, unless put_in_place() moved it."""
    folder = models_dir / f".install-{name}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(staging: Path, target: Path) -> None:
    """Rename a finished staging folder to its name, replacing the old one. The lock of the name is held."""
    # Some exporters write files for their user only, but everyone who may read the folder needs to read the model.
    readable = staging.stat().st_mode & 0o444
    for path in sorted(staging.rglob("*"), reverse=True):
        if path.is_file() and path.stat().st_mode & readable != readable:
            path.chmod(path.stat().st_mode | readable)
        flush(path)
    flush(staging)
    old = None
    if target.exists():
        old = target.with_name(f".old-{target.name}-{secrets.token_hex(4)}")
        target.rename(old)
    staging.rename(target)
    flush(target.parent)
    if old is not None:
        shutil.rmtree(old)


def take_away(target: Path) -> None:
    """Remove a model's folder. It is renamed first, so that it is never visible half-removed. The lock is held."""
    gone = target.with_name(f".install-{target.name}-{secrets.token_hex(4)}")
    target.rename(gone)
    flush(target.parent)
    shutil.rmtree(gone)


def flush(path: Path) -> None:
    """Make the system write a file, or a folder's entries, to disk."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        if path.is_dir():  # Windows cannot open folders, and writes their entries by itself
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def link_or_copy(origin: Origin, name: str, target: Path) -> None:
    """Put a file of an origin into the staging folder. A download is linked, so that it is on disk once.

    A user's own file is copied, because they may write to it later.
    """
    source = origin.file(name).resolve()  # the cache of huggingface_hub holds symbolic links
    target.parent.mkdir(parents=True, exist_ok=True)
    if origin.revision is not None:
        with contextlib.suppress(OSError):  # another disk, or a file system without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)
