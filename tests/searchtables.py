"""Tables to search, of every kind of key: the embedding of each row is that of its name."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from datasette_vision.engine.vision import Vision
from datasette_vision.tables.schema import SideTable, SideTableRow, content_hash
from datasette_vision.vectors import embedding as vectors
from tests import pictures

NAMES = ("red apple", "green apple", "happy cat", "sad cat", "fire engine", "violin", "purple heart", "pizza")


@dataclass(frozen=True)
class Kind:
    """A table: how it is made, the columns of its key, and the key of its n-th row."""

    table: str
    create: str
    key: tuple[str, ...]

    def key_of(self, number: int) -> tuple[object, ...]:
        if self.key == ("id",) or "rowid" in self.key:
            return (number + 1,)
        if self.key == ("hex code",):
            return (f"a/b,{number} é",)
        return tuple(f"{part} {number}" if "letter" in part else number for part in self.key)


KINDS = (
    Kind("photos", "create table photos (id integer primary key, name text, price real, image blob)", ("id",)),
    Kind("plain", "create table plain (name text, price real, image blob)", ("rowid",)),
    Kind("codes", 'create table codes ("hex code" text primary key, name text, price real, image blob)', ("hex code",)),
    Kind(
        "pairs",
        "create table pairs (letter text, number integer, name text, price real, image blob,"
        " primary key (letter, number))",
        ("letter", "number"),
    ),
    Kind(
        "tight",
        "create table tight (id integer primary key, name text, price real, image blob) without rowid",
        ("id",),
    ),
    Kind(
        'odd "table"',
        'create table "odd ""table""" (id integer primary key, name text, price real, image blob, model text,'
        ' embedding text, source_column text, similarity text, "select" text, error text)',
        ("id",),
    ),
)


def make(path: Path, vision: Vision, model: str) -> None:
    """Write a database with a table of each kind, and a view that is embedded by a key of its own."""
    image = pictures.png()
    connection = sqlite3.connect(path)
    with connection:
        for kind in KINDS:
            connection.execute(kind.create)
            table, rows = f'"{kind.table.replace(chr(34), chr(34) * 2)}"', []
            for number, name in enumerate(NAMES):
                key = kind.key_of(number)
                columns = [*kind.key, "name", "price", "image"]
                connection.execute(
                    f"insert into {table} ({', '.join(f'{chr(34)}{c}{chr(34)}' for c in columns)})"
                    f" values ({', '.join('?' * len(columns))})",
                    (*key, name, number + 0.5, image),
                )
                rows.append(
                    SideTableRow(
                        key, "image", model, content_hash(image), vectors.to_blob(vision.embed_text(name, model))
                    )
                )
            side = SideTable(kind.table, kind.key)
            side.create(connection)
            side.write(connection, rows)
        connection.execute("create view cheap as select id as number, name, price, image from photos where price < 4")
        side = SideTable("cheap", ("number",))
        side.create(connection)
        side.write(
            connection,
            [
                SideTableRow(
                    (n + 1,), "name", model, content_hash(b""), vectors.to_blob(vision.embed_text(name, model))
                )
                for n, name in enumerate(NAMES[:4])
            ],
        )
        connection.execute("create table bare (id integer primary key, picture blob, note text)")
        connection.execute("insert into bare values (1, ?, 'not embedded')", (image,))
        connection.execute("create table words (id integer primary key, word text)")
    connection.close()
