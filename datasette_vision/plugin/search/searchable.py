"""The searchable tables of all databases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette_vision.plugin.search import embedded_table
from datasette_vision.plugin.server.permissions import may_view_table

if TYPE_CHECKING:
    from datasette.app import Datasette


@dataclass(frozen=True)
class Searchable:
    """A table with embeddings. `pairs` are their (model, column) pairs."""

    database: str
    table: str
    pairs: list[tuple[str, str]]


async def searchable_tables(datasette: Datasette, actor: dict[str, Any] | None) -> list[Searchable]:
    """Return the tables with embeddings that an actor may see, by database and name."""
    found = []
    for name, database in datasette.databases.items():
        tables = await database.execute_fn(embedded_table.tables)
        found += [
            Searchable(name, table, pairs)
            for table, pairs in tables
            if await may_view_table(datasette, actor, name, table)
        ]
    return found
