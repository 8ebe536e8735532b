"""Functions for connections of any SQLite module."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from datasette_vision.util.sql_names import quote

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection, schema: str) -> Iterator[None]:
    """Make all reads in the block see one state of a database, whatever others commit meanwhile."""
    cursor = connection.cursor()
    # An unfinished statement holds its view of the database: this one has one more row than is read.
    try:
        cursor.execute(f"select 1 from (select count(*) from {quote(schema)}.sqlite_master) union all values (2), (3)")
        cursor.fetchone()
        yield
    finally:
        cursor.close()


def database_path(connection: sqlite3.Connection, schema: str) -> str:
    """Return the path of a database's file, "" for one in memory."""
    for _, name, path in connection.execute("pragma database_list").fetchall():
        if name == schema:
            return path or ""
    return ""


def recover_database(connect: Callable[..., sqlite3.Connection], path: str) -> None:
    """Roll back what a killed process was writing, if anything. A read-only connection cannot do this, and cannot read.

    SQLite itself detects whether the journal beside the file belongs to an abandoned transaction. Errors are ignored:
    reading the database reports them.
    """
    if not path or not Path(f"{path}-journal").exists():
        return
    try:
        with contextlib.closing(
            connect(f"{Path(path).absolute().as_uri()}?mode=rw", uri=True, timeout=0)
        ) as connection:
            connection.execute("select count(*) from sqlite_master").fetchone()
    except Exception as error:  # each SQLite module has its own class of errors
        logger.debug("%s: %s", path, error)


def open_to_read(connect: Callable[..., sqlite3.Connection], path: str) -> sqlite3.Connection | None:
    """Open a database file to read it on any thread, or return None if it cannot be opened a second time.

    `connect` is the class of the existing connection: another SQLite may not support everything in the file.
    """
    for mode in ("mode=ro", "mode=ro&immutable=1"):  # the second, if a write-ahead log cannot be created beside it
        try:
            connection = connect(
                f"{Path(path).absolute().as_uri()}?{mode}", uri=True, check_same_thread=False, isolation_level=None
            )
            connection.execute("select count(*) from sqlite_master").fetchone()
        except Exception as error:  # each SQLite module has its own class of errors
            logger.debug("%s cannot be opened with %s: %s", path, mode, error)
        else:
            return connection
    return None
