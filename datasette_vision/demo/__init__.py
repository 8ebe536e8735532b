"""The demo database: every emoji with its picture, its names and the embedding of the picture."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasette_vision import sql, vectors
from datasette_vision.errors import VisionError
from datasette_vision.schema import Row, SideTable, content_hash
from datasette_vision.vision import Vision

ARCHIVE = Path(__file__).parent / "emoji.zip"
QUERIES = Path(__file__).parent / "queries.json"

CREATE_EMOJI = """
create table emoji (
  hexcode text primary key,
  emoji text not null,
  name text not null,
  group_name text not null,
  subgroup text not null,
  keywords text not null,
  image blob not null
)"""
SEARCH = """
select emoji, name, vision_similarity(embedding, vision_embed(:q)) as similarity
from emoji join _vision_emoji using (hexcode) order by similarity desc limit :limit"""
EMOJI = SideTable("emoji", ("hexcode",))


@dataclass(frozen=True)
class Emoji:
    """One emoji: its names and a small WebP picture of it (Noto Emoji)."""

    hexcode: str
    emoji: str
    name: str
    group_name: str
    subgroup: str
    keywords: str
    image: bytes


def read_archive() -> Iterator[Emoji]:
    """Read the emoji that come with the package, in Unicode order."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        for entry in json.loads(archive.read("emoji.json")):
            yield Emoji(
                entry["hexcode"],
                entry["emoji"],
                entry["name"],
                entry["group"],
                entry["subgroup"],
                ", ".join(entry["keywords"]),
                archive.read(entry["file"]),
            )


def write_database(path: Path, vision: Vision, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Write the demo database to `path`, in place of what is there, and return the number of emoji.

    It is made beside `path` and renamed when whole: stopping half-way leaves nothing. `progress` gets (done, total).
    """
    emoji = list(read_archive())
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent or Path())
    os.close(handle)
    try:
        connection = sqlite3.connect(temporary)
        with contextlib.closing(connection), connection:
            fill(connection, emoji, vision, progress)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return len(emoji)


def fill(
    connection: sqlite3.Connection,
    emoji: list[Emoji],
    vision: Vision,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Create the tables emoji and _vision_emoji on a connection, and fill them."""
    connection.execute(CREATE_EMOJI)
    EMOJI.create(connection)
    connection.executemany(
        "insert into emoji values (?, ?, ?, ?, ?, ?, ?)",
        ((e.hexcode, e.emoji, e.name, e.group_name, e.subgroup, e.keywords, e.image) for e in emoji),
    )
    model = vision.config.default_model

    def rows() -> Iterator[Row]:
        outcomes = vision.embed_images((entry.image for entry in emoji), model)
        for done, (entry, outcome) in enumerate(zip(emoji, outcomes, strict=True), start=1):
            if isinstance(outcome, VisionError):
                raise outcome
            yield Row((entry.hexcode,), "image", model, content_hash(entry.image), vectors.encode(outcome))
            progress(done, len(emoji))

    EMOJI.write(connection, rows())


def metadata(database: str) -> dict[str, object]:
    """Return metadata with the descriptions and saved queries, for Datasette to serve the demo as `database`."""
    value: dict[str, object] = json.loads(QUERIES.read_text("utf-8").replace("{database}", database))
    return value


def is_demo(path: Path) -> bool:
    """Say whether this file is a demo database, which may be made anew."""
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        with contextlib.closing(connection):
            found = connection.execute("select sql from sqlite_master where name = 'emoji'").fetchone()
    except sqlite3.Error:
        return False
    return (
        found is not None
        and found[0].split() == CREATE_EMOJI.replace("create", "CREATE", 1).replace("table", "TABLE", 1).split()
    )


def search(path: Path, vision: Vision, text: str, limit: int = 5) -> list[tuple[str, str, float]]:
    """Return the (emoji, name, similarity) of the pictures in a demo database closest to a text, best first."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with contextlib.closing(connection):
        sql.register(connection, lambda: vision)
        rows = connection.execute(SEARCH, {"q": text, "limit": limit}).fetchall()
    return [(str(row[0]), str(row[1]), float(row[2])) for row in rows]
