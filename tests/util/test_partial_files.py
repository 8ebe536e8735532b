"""util/partial_files.py: files that appear whole, and what killed processes leave of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasette_vision.util import partial_files as module
from datasette_vision.util.partial_files import remove_leftovers, unfinished
from tests.paths import ROOT


def test_a_file_appears_whole_in_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with unfinished(path, ".tmp") as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".file-")
        assert temporary.suffix == ".tmp"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with contextlib.suppress(error), unfinished(path, ".tmp") as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), unfinished(tmp_path / "none" / "file", ".tmp"):
        pass


@pytest.mark.parametrize("hours", [-24, 0, 24], ids=["a clock set back", "now", "long ago"])
def test_what_is_being_written_stays_whatever_the_clock_says_and_goes_once_its_writer_is_killed(
    tmp_path: Path, hours: int
) -> None:
    path = tmp_path / "file"
    code = """
import sys, time
from pathlib import Path
from datasette_vision.util.partial_files import unfinished
with unfinished(Path(sys.argv[1]), ".tmp"):
    print("writing", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        (temporary,) = tmp_path.iterdir()
        moment = time.time() - 3600 * hours
        os.utime(temporary, (moment, moment))
        remove_leftovers(tmp_path, ".*.tmp")
        assert list(tmp_path.iterdir()) == [temporary]
    finally:
        process.kill()
        process.communicate()
    remove_leftovers(tmp_path, ".*.tmp")
    assert list(tmp_path.iterdir()) == []


class NoLocks:
    """A file system without locks."""

    LOCK_EX = LOCK_NB = 0

    @staticmethod
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")


@pytest.mark.parametrize(("hours", "stays"), [(-2, False), (-0.5, True), (0.5, True), (2, False)])
def test_without_locks_the_age_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float, stays: bool
) -> None:
    monkeypatch.setattr(module, "fcntl", NoLocks)
    with unfinished(tmp_path / "file", ".tmp"):
        pass
    left = tmp_path / ".file-0.tmp"
    left.touch()
    os.utime(left, (time.time() - 3600 * hours,) * 2)
    remove_leftovers(tmp_path, ".*.tmp")
    assert left.exists() == stays


def test_what_cannot_be_removed_stays(tmp_path: Path) -> None:
    folder = tmp_path / ".folder.tmp"
    folder.mkdir()
    remove_leftovers(tmp_path, ".*.tmp")
    assert folder.is_dir()
