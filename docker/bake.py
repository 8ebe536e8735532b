"""Installs models into a folder, each proved before it is kept: what the builder of the image runs.

python bake.py FOLDER PRECISION WISH…    a wish is a name of the catalogue, or name=source

A name of the catalogue is exported from its original PyTorch weights: the quantised graphs are proved against them, and
are smaller than those that others publish. Where that cannot be done, the published graphs are taken. A source is
whatever `datasette vision install` takes: a repository of the hub, or a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from datasette_vision.bake.bake import bake
from datasette_vision.errors import InstallFailed, SourceNotFound, VisionError
from datasette_vision.install import trial
from datasette_vision.install.install import Installer
from datasette_vision.install.requests import Request
from datasette_vision.models import catalog


def say(line: str) -> None:
    """Tell the builder's log what goes on."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def sources(name: str, source: str) -> list[str]:
    """Return where to take a model from, the best first."""
    row = catalog.catalog_row(name)
    if source or row is None or row.text_source is not None:
        return [source or name]
    return list(dict.fromkeys([row.original, name]))


def install(installer: Installer, wish: str, precision: str) -> None:
    """Install one model from the first of its sources that can be used, and check it."""
    name, _, source = wish.partition("=")
    candidates = sources(name, source)
    for candidate in candidates:
        try:
            say(f"{name}, from {candidate}")
            outcome = installer.install(Request(source=candidate, name=name, precision=precision))
            break
        except (InstallFailed, SourceNotFound) as error:
            if candidate == candidates[-1]:
                raise
            say(f"{candidate} cannot be used: {error}")
    say(f"{name}: {'; '.join(trial.verify(outcome.model))}")


def main(folder: Path, precision: str, wishes: list[str]) -> None:
    """Install all, or end with the exit code of the first that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    installer = Installer(folder, say, bake)
    for wish in wishes:
        try:
            install(installer, wish, precision)
        except VisionError as error:
            say(f"Error: {wish}: {error}")
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
