"""The demo database: every emoji with its image, its names and the embedding of the image."""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasette_vision.engine.vision import Vision
from datasette_vision.errors import VisionError
from datasette_vision.sql import registration as sql
from datasette_vision.tables.change_log import LOG
from datasette_vision.tables.schema import SideTable, SideTableRow, content_hash
from datasette_vision.util.progress import OnProgress, Progress, no_progress
from datasette_vision.vectors import embedding as vectors

ARCHIVE = Path(__file__).parent / "emoji.zip"
QUERIES_FILE = Path(__file__).parent / "queries.json"

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
SEARCH_SQL = """
select emoji, name, vision_similarity(embedding, vision_embed(:q)) as similarity
from emoji join _vision_emoji using (hexcode) where model = :model order by similarity desc limit :limit"""
EMOJI = SideTable("emoji", ("hexcode",))


@dataclass(frozen=True)
class Emoji:
    """One emoji: its names and a small WebP image of it (Noto Emoji)."""

    hexcode: str
    emoji: str
    name: str
    group_name: str
    subgroup: str
    keywords: str
    image: bytes


def read_archive() -> Iterator[Emoji]:
    """Read the bundled emoji, in Unicode order."""
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


def write_database(path: Path, vision: Vision, on_progress: OnProgress[Progress] = no_progress) -> int:
    """Write the demo database to `path`, replacing an old one, and return the number of emoji.

    It is written beside `path` and renamed when complete: stopping half-way leaves nothing. Calls `on_progress` after
    each emoji. Raises OSError or sqlite3.Error if it cannot be written, or if another program is writing to the old
    one.
    """
    emoji = list(read_archive())
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        connection = sqlite3.connect(temporary)
        with contextlib.closing(connection), connection:
            fill(connection, emoji, vision, on_progress)
        if path.exists():
            _settle(path)
        temporary.replace(path)
    finally:
        for leftover in (temporary, temporary.with_name(f"{temporary.name}-journal")):
            leftover.unlink(missing_ok=True)
    return len(emoji)


def _settle(path: Path) -> None:
    """Checkpoint a database's write-ahead log. Otherwise the log would be applied to a new file of the same name.

    Raises sqlite3.OperationalError while another program writes to it.
    """
    connection = sqlite3.connect(path)
    with contextlib.closing(connection):
        try:
            connection.execute("pragma journal_mode = delete").fetchall()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            pass  # not a database, so it has no log


def fill(
    connection: sqlite3.Connection,
    emoji: list[Emoji],
    vision: Vision,
    on_progress: OnProgress[Progress] = no_progress,
) -> None:
    """Create the tables emoji and _vision_emoji on a connection, and fill them."""
    connection.execute(CREATE_EMOJI)
    EMOJI.create(connection)
    connection.executemany(
        "insert into emoji values (?, ?, ?, ?, ?, ?, ?)",
        ((e.hexcode, e.emoji, e.name, e.group_name, e.subgroup, e.keywords, e.image) for e in emoji),
    )
    model = vision.config.default_model

    def rows() -> Iterator[SideTableRow]:
        outcomes = vision.embed_images((entry.image for entry in emoji), model)
        for done, (entry, outcome) in enumerate(zip(emoji, outcomes, strict=True), start=1):
            if isinstance(outcome, VisionError):
                raise outcome
            yield SideTableRow((entry.hexcode,), "image", model, content_hash(entry.image), vectors.to_blob(outcome))
            on_progress(Progress("embedding emoji", done, len(emoji)))

    EMOJI.write(connection, rows())


def metadata(database: str, route: str) -> dict[str, object]:
    """Return metadata with the descriptions and saved queries, for Datasette to serve the demo as `database`.

    `route` is its name in addresses.
    """

    def filled(value: object) -> object:
        if isinstance(value, dict):
            return {key.replace("{database}", database): filled(inner) for key, inner in value.items()}
        return value.replace("{database}", route) if isinstance(value, str) else value

    result = filled(json.loads(QUERIES_FILE.read_text("utf-8")))
    assert isinstance(result, dict)
    return result


def is_demo(path: Path) -> bool:
    """Say whether this file is a demo database and nothing more, so that it can be overwritten."""
    try:
        with contextlib.closing(_open_to_read(path)) as connection:
            found = dict(connection.execute("select name, sql from sqlite_master where name not like 'sqlite_%'"))
    except sqlite3.Error:
        return False
    # The table of changes is part of it. Demos made before it existed count too.
    found = {name: sql for name, sql in found.items() if not name.startswith((LOG, "_vision-"))}
    return set(found) == {EMOJI.table, EMOJI.name} and found[EMOJI.table].split()[2:] == CREATE_EMOJI.split()[2:]


def is_demo_metadata(path: Path) -> bool:
    """Say whether this file is metadata of a demo, so that it can be overwritten."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.get("title") == metadata("", "")["title"]


def search_demo(path: Path, vision: Vision, text: str, limit: int = 5) -> list[tuple[str, str, float]]:
    """Return the (emoji, name, similarity) of the images in a demo database closest to a text, best first."""
    with contextlib.closing(_open_to_read(path)) as connection:
        sql.register(connection, lambda: vision)
        parameters = {"q": text, "limit": limit, "model": vision.config.default_model}
        rows = connection.execute(SEARCH_SQL, parameters).fetchall()
    return [(str(row[0]), str(row[1]), float(row[2])) for row in rows]


def _open_to_read(path: Path) -> sqlite3.Connection:
    # As a URI, so that no character of the name is misread.
    return sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)
