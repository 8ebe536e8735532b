"""Makes the databases that an image serves: those that are there, and one of each folder of pictures.

python fill.py SOURCE TARGET METADATA

Pictures are embedded with the default_model of the metadata, and what searches look into is saved beside them.
`datasette inspect` counts their rows once, here, and marks them as immutable: a server then neither locks nor counts.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

SUFFIXES = {".db", ".sqlite", ".sqlite3"}
# What `datasette vision` ends with when all went well but for some broken pictures, which it has named.
SOME_FAILED = 3


def vision(*arguments: str) -> None:
    """Run a command of `datasette vision`, or end with its exit code."""
    done = subprocess.run(["datasette", "vision", *arguments], check=False)
    if done.returncode not in (0, SOME_FAILED):
        sys.exit(done.returncode)


def settle(database: Path) -> None:
    """Leave nothing beside a database that only a writer could fold into it."""
    connection = sqlite3.connect(database)
    connection.execute("pragma journal_mode = delete")
    connection.execute("vacuum")
    connection.close()


def embedded(database: Path) -> list[str]:
    """Return the tables whose embeddings stand beside them."""
    connection = sqlite3.connect(database)
    names = {name for (name,) in connection.execute("select name from sqlite_master where type in ('table', 'view')")}
    connection.close()
    return sorted(name for name in names if f"_vision_{name}" in names)


def fill(source: Path, target: Path, model: str) -> list[Path]:
    """Make the databases in `target`, and return them."""
    target.mkdir(parents=True, exist_ok=True)
    databases = []
    for entry in sorted(source.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.suffix in SUFFIXES:
            database = target / entry.name
            shutil.copyfile(entry, database)
        elif entry.is_dir():
            database = target / f"{entry.name}.db"
            vision("load", str(database), str(entry), "--model", model)
        else:
            sys.exit(f"{entry.name}: expected a database ({', '.join(sorted(SUFFIXES))}) or a folder of pictures")
        settle(database)
        for table in embedded(database):
            vision("index", str(database), table)
        databases.append(database)
    if databases:
        names = [database.name for database in databases]
        subprocess.run(["datasette", "inspect", *names, "--inspect-file", "inspect-data.json"], cwd=target, check=True)
    return databases


if __name__ == "__main__":
    plugins = json.loads(Path(sys.argv[3]).read_text("utf-8"))["plugins"]
    for made in fill(Path(sys.argv[1]), Path(sys.argv[2]), plugins["datasette-vision"]["default_model"]):
        sys.stdout.write(f"{made.name}: {made.stat().st_size / 1e6:.1f} MB\n")
