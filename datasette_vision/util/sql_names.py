"""Names in SQL text."""

from __future__ import annotations

# SQLite's names for the rowid of a table that has one, unless a column has that name.
ROWID_NAMES = ("rowid", "oid", "_rowid_")


def quote(identifier: str) -> str:
    """Quote a name for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Write a text as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def rowid_name(columns: list[str]) -> str | None:
    """Return a name for the rowid of a table with these columns, or None if columns use all three names."""
    taken = {column.lower() for column in columns}
    return next((name for name in ROWID_NAMES if name not in taken), None)
