"""Answers a search: from an HTTP request to rows, for the page and the JSON."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from datasette_vision.errors import Busy, InvalidArgument, InvalidInput, NotPermitted, VisionError
from datasette_vision.plugin.http.context import context_of, outcomes
from datasette_vision.plugin.search import embedded_table as embedded_tables
from datasette_vision.plugin.search import sql as search_sql
from datasette_vision.plugin.search.embedded_table import EmbeddedTable
from datasette_vision.plugin.search.request import SearchRequest
from datasette_vision.plugin.search.sql import RowKey, SearchSql, Where
from datasette_vision.plugin.server import permissions
from datasette_vision.plugin.server.compatibility import filter_arguments, query_path
from datasette_vision.plugin.server.state import state_of
from datasette_vision.retrieval.choice import choose_embeddings

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database
    from datasette.utils.asgi import Request

LABEL_COLUMNS = ("name", "title", "label", "caption", "file_name", "filename", "path")


@dataclass(frozen=True)
class FoundRow:
    """A row: its path in addresses, its label, its similarity (None if rows are merely listed), and its values."""

    path: str
    label: str
    similarity: float | None
    values: dict[str, Any]


@dataclass
class Search:
    """A table to search, the search, and its rows once it has run."""

    database: Database
    table: str
    embedded: EmbeddedTable
    request: SearchRequest
    column: str = ""
    model: str = ""
    where: Where = field(default_factory=Where)
    human_filters: str = ""
    keys: tuple[RowKey, ...] = ()
    label_column: str | None = None
    labels: dict[str, str] = field(default_factory=dict)  # of the examples, by path
    rows: list[FoundRow] = field(default_factory=list)
    has_next: bool = False
    use_index: bool | None = None

    def sql(self, limit: int | None = None) -> SearchSql:
        """Return the SQL of this search, for a page of rows or for `limit` rows."""
        return search_sql.build_sql(
            self.embedded, self.request,
            column=self.column, model=self.model, keys=self.keys, where=self.where, limit=limit,
            use_index=self.use_index,
        )  # fmt: skip

    def query_path(self, datasette: Datasette) -> str:
        """Return the address of Datasette's query page with the SQL of this search."""
        sql = self.sql()
        return query_path(datasette, self.database.name) + "?" + urlencode({"sql": sql.sql, **sql.parameters})


async def table_of(datasette: Datasette, request: Request) -> tuple[Database, str]:
    """Return the database and the table in an address, if the actor may see them.

    Raises Datasette's NotFound and Forbidden, like its table page.
    """
    from datasette.utils import tilde_decode

    table = tilde_decode(request.url_vars["table"])
    route = tilde_decode(request.url_vars["database"])
    return await permissions.viewable_table(datasette, request.actor, route, table), table


async def read_embedded(database: Database, table: str) -> EmbeddedTable | None:
    """Describe a table with its embeddings, or return None if it has none."""
    return await database.execute_fn(lambda connection: embedded_tables.read_embedded_table(connection, table))


def arguments_of(request: Request) -> list[tuple[str, str]]:
    """Return the arguments of an address in order."""
    return parse_qsl(request.query_string, keep_blank_values=True)


async def resolve_search(datasette: Datasette, http: Request, search: Search, *, or_first: bool = False) -> None:
    """Resolve a search against its table: model and column (`or_first`: see choose_embeddings()), filters, examples.

    Raises VisionError, or the errors of Datasette's filters.
    """
    asked, default = search.request, state_of(datasette).config.default_model
    search.model, search.column = choose_embeddings(
        search.table, search.embedded.pairs, default, asked.model, asked.column, or_first=or_first
    )
    search.label_column = await _label_column(search.database, search.embedded)
    clauses, parameters, search.human_filters = await filter_arguments(
        datasette, http, search.database.name, search.table, search.request.filters, search.embedded.columns
    )
    search.where = Where(tuple(clauses), tuple(parameters.items()))
    search.keys = tuple(_key(search.embedded, example.row, example.weight) for example in search.request.examples)


async def run(datasette: Datasette, http: Request, search: Search) -> None:
    """Find the rows. Raises VisionError or RequestError."""
    from datasette.utils import path_from_row_pks

    await _warm(datasette, http, search)
    await _check_examples(search)
    sql = search.sql(search.request.size + 1)
    try:
        results = await _execute(datasette, search.database, sql)
    except InvalidInput as error:
        if not sql.uses_index:
            raise
        # The first search of a large table starts reading its index. Until it is ready, compare every row.
        search.use_index = False
        sql = search.sql(search.request.size + 1)
        try:
            results = await _execute(datasette, search.database, sql)
        except InvalidInput:
            raise Busy(str(error)) from None
    search.has_next = len(results.rows) > search.request.size
    for row in results.rows[: search.request.size]:
        values = dict(zip(results.columns, tuple(row), strict=True))
        path = path_from_row_pks(values, list(search.embedded.path_key), False)
        similarity = values.pop(sql.similarity) if sql.similarity else None
        if sql.similarity and similarity is None and search.request.examples and not search.rows:
            # Not even the nearest row has a similarity: an example was deleted between the check and the search.
            raise Busy("a row that this search is like, or less like, has just changed: try again")
        label = values.get(search.label_column) if search.label_column else None
        search.rows.append(FoundRow(path, _text(label) or path, similarity, values))


async def _execute(datasette: Datasette, database: Database, sql: SearchSql) -> Any:
    """Run the SQL of a search. Raises InvalidInput with the reason if it fails."""
    from datasette.database import QueryInterrupted
    from datasette.utils.sqlite import sqlite3 as datasette_sqlite3

    try:
        return await database.execute(sql.sql, sql.parameters, log_sql_errors=False)
    except QueryInterrupted:
        limit = datasette.setting("sql_time_limit_ms")
        raise InvalidInput(
            f"the search took longer than {limit} ms (sql_time_limit_ms): use filters that select fewer rows"
        ) from None
    except (sqlite3.Error, datasette_sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
        # The last two are about parameters that SQLite cannot bind.
        raise InvalidInput(str(error)) from None


def _key(embedded: EmbeddedTable, row: str, weight: float) -> RowKey:
    from datasette.utils import urlsafe_components

    values = tuple(urlsafe_components(row))
    if len(values) != len(embedded.path_key):
        key = ", ".join(embedded.path_key)
        raise InvalidArgument(f"{embedded.table} has no row {row!r}: its key is {key}")
    return RowKey(values, weight)


async def _warm(datasette: Datasette, http: Request, search: Search) -> None:
    """Embed the words before the query runs, which then finds them in the cache. Raises NotPermitted.

    Loading a model may take longer than a query is allowed to. The words also count against the rate and wait their
    turn, like the inputs of the API.
    """
    texts = [text for text in (search.request.q, search.request.but_not) if text]
    if not texts:
        return
    context = context_of(datasette)
    await context.ready()
    if not await permissions.may(datasette, http.actor, permissions.INFER):
        if await context.call(context.vision.has_texts, texts, search.model):
            return
        raise NotPermitted(
            f"searching for these words runs a model, which needs the permission {permissions.INFER}; searching"
            " for rows like a row (_like) does not"
        )
    with context.limits.share(context.clients.name(http)) as share:
        share.take_inputs(texts=len(texts))
        for outcome in await outcomes(context.inference.embed_texts(texts, search.model)):
            if isinstance(outcome, VisionError):
                raise outcome


async def _check_examples(search: Search) -> None:
    """Raise InvalidArgument for an example without an embedding, which would leave the whole search without results."""
    for example, key in zip(search.request.examples, search.keys, strict=True):
        sql, parameters = search_sql.example(search.embedded, search.column, search.model, key, search.label_column)
        row = (await search.database.execute(sql, parameters)).first()
        if row is None or row[0] is None:
            raise InvalidArgument(
                f"{search.table} {example.row!r} "
                + ("has no embedding: its image could not be read" if row else "is not embedded, or does not exist")
            )
        search.labels[example.row] = _text(row[1]) or example.row


async def _label_column(database: Database, embedded: EmbeddedTable) -> str | None:
    """Return the column that describes a row: Datasette's label column, or one with a telling name."""
    fitting = [name for name in embedded.columns if name not in (*embedded.blob_columns, *embedded.path_key)]
    # Datasette 1.0 does not support label columns of views, and fails on them.
    column = None if embedded.is_view else await database.label_column_for_table(embedded.table)
    if column in fitting:
        return str(column)
    by_name = {name.lower(): name for name in fitting}
    return next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, bytes) else str(value)
