"""The table that `datasette vision load` fills: a row for each image file, with facts from its content."""

from __future__ import annotations

import datetime
import os
import sqlite3
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.errors import InvalidArgument
from datasette_vision.images import exif, perceptual_hash
from datasette_vision.images.decode import DecodedImage
from datasette_vision.images.decoder import Decoder
from datasette_vision.images.preprocess import Preprocess
from datasette_vision.tables.schema import LOADS
from datasette_vision.util.sql_names import quote
from datasette_vision.util.transactions import in_transaction

# The tables made by load, with their folder and what they keep of each image.
CREATE_LOADS = f"create table if not exists {LOADS} (name text primary key, base not null, pictures text not null)"

# The image is the last column, so that SQLite reads the columns before it without reading the image.
PHOTO_COLUMNS = ("format", "width", "height", "taken_at", "latitude", "longitude", "digest", "perceptual_hash")
CREATE_PHOTOS = (
    "create table {table} (id integer primary key, path text not null unique, name text not null,"
    " size integer not null, modified text not null, format text, width integer, height integer, taken_at text,"
    " latitude real, longitude real, digest text, perceptual_hash text, near_duplicate_group integer, error text,"
    " gone_at text{image_column})"
)


@dataclass(frozen=True)
class ImageStorage:
    """What to keep of an image: a thumbnail of so many pixels, the file itself, or only its path."""

    pixels: int = 0
    originals: bool = False

    @property
    def column(self) -> str | None:
        """The column for the image."""
        return "thumbnail" if self.pixels else "image" if self.originals else None

    def __str__(self) -> str:
        return f"thumbnails of {self.pixels} pixels" if self.pixels else "originals" if self.originals else "paths only"


@dataclass(frozen=True)
class Photo:
    """The facts about a file's content, by column."""

    described: dict[str, Any]
    image: bytes | None


def describe_photo(
    content: bytes, storage: ImageStorage, decoder: Decoder, preprocess: Preprocess
) -> tuple[Photo, NDArray[np.float32]]:
    """Determine the facts about an image, and its pixels for a tower: (3, h, w). Raises InvalidImage."""

    def use(image: DecodedImage) -> tuple[Photo, NDArray[np.float32]]:
        pixels = preprocess(image.picture)
        kept = image.thumbnail(storage.pixels) if storage.pixels else content if storage.originals else None
        hashed = perceptual_hash.perceptual_hash(image.picture)
        taken = exif.read_exif(image.exif)
        described = {
            "format": image.info["format"],
            "width": image.info["width"],
            "height": image.info["height"],
            "taken_at": taken.at,
            "latitude": taken.latitude,
            "longitude": taken.longitude,
            "perceptual_hash": hashed.hex() if hashed else None,
        }
        return Photo(described, kept), pixels

    return decoder.decode_once(content, use, preprocess.target, storage.pixels or None)


def prepare_photo_table(
    connection: sqlite3.Connection, table: str, base: str, storage: ImageStorage, *, move: bool
) -> str:
    """Prepare the table, and return the folder that its paths are relative to: `base`, unless it had another.

    With `move` it is `base` from now on. Raises InvalidArgument for an existing table that load did not make, or made
    with another ImageStorage.
    """
    connection.execute(CREATE_LOADS)
    found = connection.execute(f"select base, pictures from {LOADS} where name = ? collate nocase", (table,)).fetchone()
    exists = connection.execute(
        "select 1 from sqlite_master where type in ('table', 'view') and name = ? collate nocase", (table,)
    ).fetchone()
    if found is None and exists:
        raise InvalidArgument(f"{table} was not made by vision load: choose another name with --table")
    if found is not None and exists and found[1] != str(storage):
        raise InvalidArgument(f"{table} was loaded with {found[1]}, not with {storage}: choose another --table")
    if not exists:
        image = f", {storage.column} blob" if storage.column else ""

        def make(connection: sqlite3.Connection) -> None:
            connection.execute(CREATE_PHOTOS.format(table=quote(table), image_column=image))
            connection.execute(
                f"create index {quote(f'{table}_near_duplicate_group')} on {quote(table)} (near_duplicate_group)"
            )
            connection.execute(f"insert or replace into {LOADS} values (?, ?, ?)", (table, stored(base), str(storage)))

        in_transaction(connection, make)
    elif move:
        connection.execute(f"update {LOADS} set base = ? where name = ? collate nocase", (stored(base), table))
    else:
        base = os.fsdecode(found[0])
    return base


def base_of(connection: sqlite3.Connection, table: str) -> str | None:
    """Return the folder that the paths in a table made by load are relative to; None for another table."""
    try:
        row = connection.execute(f"select base from {LOADS} where name = ? collate nocase", (table,)).fetchone()
    except connection.OperationalError:  # nothing was ever loaded
        return None
    return None if row is None else os.fsdecode(row[0])


def stored(path: str) -> str | bytes:
    """Return a path as a table holds it: text, or bytes if the name is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def relative(path: str, base: str) -> str:
    """Return a path as written in the table: relative to its folder, or absolute."""
    prefix = base.rstrip(os.sep) + os.sep
    return path[len(prefix) :] if path.startswith(prefix) else path


def absolute(path: str | bytes, base: str) -> str:
    """Return the absolute path of a path in the table."""
    return os.path.join(base, os.fsdecode(path))  # noqa: PTH118


def moment(nanoseconds: int) -> str:
    """Write a file's time in ISO 8601, in UTC, to the nanosecond, so that different times stay different."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    whole = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    return f"{whole.isoformat()}.{rest:09d}Z"


def readable_path(path: str | bytes) -> str:
    """Return a path as text for people."""
    return path if isinstance(path, str) else path.decode("utf-8", "replace")
