"""Generation numbers: how a reader knows that a side table has changed, and which of its rows.

Triggers on a side table record each written row in `_visionchanges`, whoever writes it and from whatever process: the
number of the change, counted for each side table (its generation), the row, and a random stamp. Two states of a side
table are the same if generation and stamp are the same: a file restored from a backup, with a different history since,
has different stamps. The rows in between lead from one state to the next.

Only the last KEPT_CHANGES changes are kept: a reader that has missed more reads the whole table. A change without a row
means that anything may have happened before it.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from datasette_vision.util.sql_names import literal, quote, rowid_name
from datasette_vision.util.transactions import in_transaction

# No side table can have this name: their names begin with "_vision_".
LOG = "_visionchanges"
TRIGGERS = "_vision-"
KEPT_CHANGES = 1 << 18
EVENTS = ("replace", "insert", "update", "delete")

CREATE_LOG = (
    f"create table if not exists {LOG} (side_table text not null, generation integer not null, row integer,"
    " stamp integer not null, primary key (side_table, generation)) without rowid"
)


class State(NamedTuple):
    """The state of a side table: a number that grows, and a stamp that no other history has."""

    generation: int
    stamp: int


def log_changes(connection: sqlite3.Connection, side_table: str, primary_key: tuple[str, ...]) -> None:
    """Start recording the changes of a side table. Does nothing if they are recorded already.

    If they were not recorded, or by triggers of another version, the generation increases, because anything may have
    happened.
    """
    found = "select name from sqlite_master where type = 'table' and name = ? collate nocase"
    (side_table,) = connection.execute(found, (side_table,)).fetchone()
    columns = [row[1] for row in connection.execute(f"pragma table_info({quote(side_table)})")]
    wanted = _triggers(side_table, primary_key, rowid_name(columns))
    if _installed(connection, side_table) == wanted and state(connection, "main", side_table):
        return

    def write(connection: sqlite3.Connection) -> None:
        connection.execute(CREATE_LOG)
        for name in _installed(connection, side_table):
            connection.execute(f"drop trigger {quote(name)}")
        for statement in wanted.values():
            connection.execute(statement)
        connection.execute(_note(side_table, "null"))

    in_transaction(connection, write)


def state(connection: sqlite3.Connection, schema: str, side_table: str) -> State | None:
    """Return the state of a side table as this connection sees it, or None if its changes are not recorded."""
    master = f"{quote(schema)}.sqlite_master"
    marks = ", ".join("?" * len(EVENTS))
    triggers = [_trigger(event, side_table) for event in EVENTS]
    there = connection.execute(
        f"select count(*) from {master} where (type = 'table' and name = ?)"
        f" or (type = 'trigger' and tbl_name = ? and name in ({marks}))",
        (LOG, side_table, *triggers),
    ).fetchone()[0]
    if there != 1 + len(EVENTS):
        return None
    row = connection.execute(
        f"select generation, stamp from {quote(schema)}.{LOG} where side_table = ? order by generation desc limit 1",
        (side_table,),
    ).fetchone()
    return State(*row) if row else None


def changes(
    connection: sqlite3.Connection, schema: str, side_table: str, since: State, limit: int
) -> list[tuple[State, int]] | None:
    """Return the changes since a state: (the state after it, the row), oldest first.

    None if they are unknown: the state is not in the history of the current one, the changes after it are no longer
    kept, or there are more than `limit`.
    """
    rows = connection.execute(
        f"select generation, stamp, row from {quote(schema)}.{LOG} where side_table = ? and generation >= ?"
        " order by generation limit ?",
        (side_table, since.generation, limit + 2),
    ).fetchall()
    if not rows or tuple(rows[0])[:2] != since or len(rows) == limit + 2:
        return None
    if any(row[2] is None for row in rows[1:]):
        return None
    return [(State(row[0], row[1]), row[2]) for row in rows[1:]]


def recent(connection: sqlite3.Connection, schema: str, side_table: str, limit: int) -> list[tuple[State, int | None]]:
    """Return the last changes: (the state after it, the row or None if all may have changed), oldest first."""
    rows = connection.execute(
        f"select generation, stamp, row from {quote(schema)}.{LOG} where side_table = ?"
        " order by generation desc limit ?",
        (side_table, limit),
    ).fetchall()
    return [(State(row[0], row[1]), row[2]) for row in reversed(rows)]


def _trigger(event: str, side_table: str) -> str:
    # The name begins with the event, so that no two side tables have a trigger of the same name.
    return f"{TRIGGERS}{event}-{side_table}"


def _installed(connection: sqlite3.Connection, side_table: str) -> dict[str, str]:
    return dict(
        connection.execute(
            "select name, sql from sqlite_master where type = 'trigger' and tbl_name = ? and substr(name, 1, ?) = ?"
            " order by rowid",
            (side_table, len(TRIGGERS), TRIGGERS),
        )
    )


def _triggers(side_table: str, primary_key: tuple[str, ...], rowid: str | None) -> dict[str, str]:
    """Return the triggers by name, as in sqlite_master."""
    table = quote(side_table)
    new, old, row = (f"new.{rowid}", f"old.{rowid}", rowid) if rowid else ("null", "null", "null")
    same = " and ".join(f"{quote(column)} = new.{quote(column)}" for column in primary_key)
    bodies = {
        # `insert or replace` deletes the old row without running the trigger for deletes.
        "replace": ("before insert", _note(side_table, row, f"from {table} where {same}")),
        "insert": ("after insert", _note(side_table, new) + "; " + _prune(side_table)),
        "update": (
            "after update",
            _note(side_table, old) + "; " + _note(side_table, new, f"where {new} is not {old}"),
        ),
        "delete": ("after delete", _note(side_table, old)),
    }
    return {
        (name := _trigger(event, side_table)): f"CREATE TRIGGER {quote(name)} {when} on {table} begin {body}; end"
        for event, (when, body) in bodies.items()
    }


def _note(side_table: str, row: str, where: str = "") -> str:
    name = literal(side_table)
    last = f"(select coalesce(max(generation), 0) + 1 from {LOG} where side_table = {name})"
    return f"insert into {LOG} select {name}, {last}, {row}, random() {where}".rstrip()


def _prune(side_table: str) -> str:
    name = literal(side_table)
    last = f"(select max(generation) from {LOG} where side_table = {name})"
    return f"delete from {LOG} where side_table = {name} and generation <= {last} - {KEPT_CHANGES}"
