"""Names in SQL text."""

from __future__ import annotations

# The names by which SQLite knows the row number of a table that has one, unless a column takes the name.
ROWID_NAMES = ("rowid", "oid", "_rowid_")


def quote(identifier: str) -> str:
    """Quote a name for SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Write a text as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def rowid_name(columns: list[str]) -> str | None:
    """Return a name for the row number of a table with these columns, or None when columns take all three."""
    taken = {column.lower() for column in columns}
    return next((name for name in ROWID_NAMES if name not in taken), None)
