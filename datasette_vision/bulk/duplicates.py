"""Groups the photos of a table that look the same: see perceptual_hash.py."""

from __future__ import annotations

import sqlite3

import numpy as np

from datasette_vision.images import perceptual_hash
from datasette_vision.util.sql_names import quote
from datasette_vision.util.transactions import Transactions, Writer


def write_groups(reader: sqlite3.Connection, writer: Writer, table: str) -> int:
    """Update near_duplicate_group where it has changed, and return the number of photos that are not the first of their
    group.

    Files that are gone or could not be read are in no group.
    """
    name = quote(table)
    ids, hashes, noted = [], [], {}
    equal: dict[str, list[int]] = {}
    for key, digest, hashed, group in reader.execute(
        f"select id, digest, perceptual_hash, near_duplicate_group from {name}"
        f" where (gone_at is null and error is null and digest is not null) or near_duplicate_group is not null"
        " order by id"
    ):
        if group is not None:
            noted[key] = group
        if hashed is not None:
            ids.append(key)
            hashes.append(bytes.fromhex(hashed))
        elif digest is not None:  # no detail: only identical files are duplicates
            equal.setdefault(digest, []).append(key)
    gone = {
        key
        for (key,) in reader.execute(
            f"select id from {name} where (gone_at is not null or error is not null)"
            " and near_duplicate_group is not null"
        )
    }
    there = [number for number, key in enumerate(ids) if key not in gone]
    first = perceptual_hash.groups([hashes[number] for number in there])
    sizes = np.bincount(first, minlength=len(there))
    wanted = {ids[there[n]]: ids[there[one]] for n, one in enumerate(first.tolist()) if sizes[one] > 1}
    for same in equal.values():
        alive = [key for key in same if key not in gone]
        wanted.update(dict.fromkeys(alive, alive[0]) if len(alive) > 1 else {})
    changed = [(wanted.get(key), key) for key in {*noted, *wanted} if wanted.get(key) != noted.get(key)]

    def write(connection: sqlite3.Connection, rows: list[tuple[int | None, int]]) -> None:
        connection.executemany(f"update {name} set near_duplicate_group = ? where id = ?", rows)

    with Transactions(writer, write) as transactions:
        for row in changed:
            transactions.add(row)
    return sum(key != group for key, group in wanted.items())
