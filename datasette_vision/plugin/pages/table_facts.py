"""Facts about tables that cells and links need repeatedly while a page is rendered, cached for a moment."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette_vision.plugin.search import embedded_table as embedded_tables
from datasette_vision.plugin.server.state import state_of
from datasette_vision.tables import keys

if TYPE_CHECKING:
    from datasette.app import Datasette

# Long enough for a page of a hundred rows, too short for anybody to notice stale values.
REMEMBERED_S = 2.0
MOST = 200


@dataclass(frozen=True)
class TableFacts:
    """The key of a table's rows in addresses, and which of its columns are embedded."""

    keys: tuple[str, ...]
    is_view: bool
    embedded_columns: frozenset[str]
    image_columns: tuple[str, ...]

    @property
    def similar_columns(self) -> tuple[str, ...]:
        """The columns whose images link to similar rows: those embedded; for embedded paths, the columns that show
        images.
        """
        embedded = tuple(column for column in self.image_columns if column in self.embedded_columns)
        return embedded or (self.image_columns[:1] if self.embedded_columns else ())

    def row_path(self, row: Any) -> str | None:
        """Return the path of a row as Datasette writes it. None for a view, or if the row comes without its key."""
        names = set(row.keys()) if hasattr(row, "keys") else set()
        if self.is_view or not self.keys or not set(self.keys) <= names:
            return None
        return path_of([row[key] for key in self.keys])


async def facts(datasette: Datasette, database: str, table: str) -> TableFacts:
    """Return the facts about a table."""
    remembered: dict[tuple[str, str], tuple[float, TableFacts]] = state_of(datasette).table_facts
    key = database, table
    now = time.monotonic()
    if key in remembered and now < remembered[key][0]:
        return remembered[key][1]
    found: TableFacts = await datasette.get_database(database).execute_fn(lambda connection: _read(connection, table))
    while len(remembered) >= MOST:
        remembered.pop(next(iter(remembered)), None)
    remembered[key] = now + REMEMBERED_S, found
    return found


def _read(connection: sqlite3.Connection, table: str) -> TableFacts:
    known = keys.describe(connection, table)
    if known is None:
        return TableFacts((), False, frozenset(), ())
    return TableFacts(known.own_key, known.is_view, *embedded_tables.columns_of(connection, known))


def path_of(values: Sequence[Any]) -> str:
    """Return the path of a row with these key values, as Datasette writes it in addresses."""
    from datasette.utils import tilde_encode

    # A foreign key may come with the label of its row.
    plain = (value["value"] if isinstance(value, dict) else value for value in values)
    return ",".join(tilde_encode(str(value)) for value in plain)
