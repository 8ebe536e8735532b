"""The SQL that answers a search: readable text that runs unchanged on Datasette's query page.

Of a large table, vision_search() finds the rows in its index, among those that pass filters, and they are looked up.
Small tables, and those without row numbers, are answered exactly: the similarity of every row that passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from datasette_vision.plugin.search.embedded_table import EmbeddedTable
from datasette_vision.plugin.search.request import LESS, SearchRequest
from datasette_vision.util.sql_names import literal, quote

# vision_search() returns at most this many rows.
MOST_FROM_INDEX = 100_000


@dataclass(frozen=True)
class RowKey:
    """The key of an example row: its values as TEXT, as in an address, and the weight of the example."""

    values: tuple[str, ...]
    weight: float


@dataclass(frozen=True)
class Where:
    """Datasette's filters on the table, as SQL with parameters."""

    clauses: tuple[str, ...] = ()
    parameters: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class SearchSql:
    """The SQL and its parameters. `similarity` is the name of the similarity column, None if rows are merely listed."""

    sql: str
    parameters: dict[str, object]
    similarity: str | None
    uses_index: bool = False


def build_sql(
    embedded: EmbeddedTable,
    request: SearchRequest,
    *,
    column: str,
    model: str,
    keys: tuple[RowKey, ...] = (),
    where: Where = Where(),
    limit: int | None = None,
    use_index: bool | None = None,
) -> SearchSql:
    """Return the SQL for a page of a search. `column` and `model` say which embeddings to search.

    `keys` are request.examples, decoded. `limit` is the number of rows, by default a page. `use_index` says whether
    vision_search() may be used, by default if the table is large.
    """
    builder = _Builder(embedded, request, column, model, keys, where)
    limit = request.size if limit is None else limit
    offset = request.size * (request.page - 1)
    if not request.asks:
        return builder.listed(limit, offset)
    if use_index is None:
        use_index = embedded.is_large
    if use_index and embedded.rowid and limit + offset <= MOST_FROM_INDEX:
        return builder.indexed(limit, offset)
    return builder.exact(limit, offset)


def example(
    embedded: EmbeddedTable, column: str, model: str, key: RowKey, label_column: str | None
) -> tuple[str, dict[str, object]]:
    """Return SQL, with its parameters, for (embedding, label) of an example row."""
    builder = _Builder(embedded, SearchRequest(), column, model, (), Where())
    label = f"{builder.table}.{quote_plain(label_column)}" if label_column else "null"
    where = f"{builder.key_is('like', key)} and {builder.rows_of}"
    sql = f"select {builder.own('embedding')}, {label} from {builder.joined_from_rows()} where {where}"
    return sql, builder.parameters


class _Builder:
    """Builds the parts of the SQL of one search."""

    def __init__(
        self,
        embedded: EmbeddedTable,
        request: SearchRequest,
        column: str,
        model: str,
        keys: tuple[RowKey, ...],
        where: Where,
    ) -> None:
        self.embedded, self.request, self.keys, self.where = embedded, request, keys, where
        self.table, self.side = quote_plain(embedded.table), quote_plain(embedded.side_table)
        self.name, self.model, self.column = literal(embedded.table), literal(model), literal(column)
        self.rows_of = f"{self.own('source_column')} = {self.column} and {self.own('model')} = {self.model}"
        self.parameters: dict[str, object] = dict(where.parameters)
        taken = {name.lower() for name in embedded.columns}
        self.similarity = next(
            name for name in ("similarity", "vision_similarity", *(f"similarity_{n}" for n in range(2, 3000)))
            if name not in taken
        )  # fmt: skip

    def listed(self, limit: int, offset: int) -> SearchSql:
        """Rows in the order of the table, for a search without words or examples."""
        sql = (
            f"select {self._columns()}\nfrom {self.joined_from_rows()}\nwhere {self._conditions()}\n"
            f"order by {self._key_columns()}\n{_page(limit, offset)}"
        )
        return SearchSql(sql, self.parameters, None)

    def exact(self, limit: int, offset: int) -> SearchSql:
        """The similarity of every row that passes the filters."""
        query, embedding = self._query()
        joined = self.joined_from_rows() if self.where.clauses else self.joined()
        select = (
            f"select {self._columns()},\n"
            f"  vision_similarity({self.own('embedding')}, {embedding}) as {self.similarity}\n"
            f"from {joined}\nwhere {self._conditions()}\n"
            f"order by {self.similarity} desc, {self._key_columns()}\n{_page(limit, offset)}"
        )
        return SearchSql(query + self._above_threshold(select), self.parameters, self.similarity)

    def indexed(self, limit: int, offset: int) -> SearchSql:
        """The rows that vision_search() finds."""
        query, embedding = self._query()
        if embedding.startswith("vision_embed(:q"):
            embedding = ":q"  # vision_search() embeds it itself
        arguments = f"{self.name}, {embedding}, {limit + offset}, {self.model}, {self.column}"
        if self.where.clauses:
            passing = f"select json_group_array({self.embedded.rowid}) from {self.table}"
            arguments += f", (\n    {passing}\n    where {' and '.join(self.where.clauses)}\n  )"
        found = f"vision_search({arguments})"
        select = (
            f"select {self._columns()},\n"
            f"  json_extract(found.value, '$.similarity') as {self.similarity}\n"
            f"from json_each({found}) as found\n"
            f"join {self.table} on {self.table}.{self.embedded.rowid} = json_extract(found.value, '$.rowid')\n"
            f"order by {self.similarity} desc, {self._key_columns()}\n{_page(limit, offset)}"
        )
        return SearchSql(query + self._above_threshold(select), self.parameters, self.similarity, uses_index=True)

    def _above_threshold(self, select: str) -> str:
        """Keep rows above the threshold, out of a page of rows, so that no similarity is computed twice."""
        if self.request.threshold is None:
            return select
        self.parameters["threshold"] = self.request.threshold
        inner = "\n".join(f"  {line}" for line in select.splitlines())
        order = ", ".join([f"{self.similarity} desc", *map(quote_plain, self.embedded.path_key)])
        # A threshold from an address is TEXT.
        return f"select * from (\n{inner}\n)\nwhere {self.similarity} >= cast(:threshold as real)\norder by {order}"

    # Parts

    def _query(self) -> tuple[str, str]:
        """(a WITH clause, the expression of the query's embedding). The clause may be empty."""
        terms = self._terms()
        if len(terms) == 1 and terms[0][1] > 0:
            expression = terms[0][0]
        else:
            pairs = ",\n".join(f"    {expression}, {weight:g}" for expression, weight in terms)
            expression = f"vision_combine(\n{pairs}\n  )"
        if expression.startswith(("vision_embed(", "vision_from_base64(")):
            return "", expression  # SQLite itself detects that this is the same for every row
        return f"with query as (\n  select {expression} as embedding\n)\n", "(select embedding from query)"

    def _terms(self) -> list[tuple[str, float]]:
        """(expression of an embedding, weight) for each part of the search."""
        request, terms = self.request, []
        if request.q:
            self.parameters["q"] = request.q
            terms.append((f"vision_embed(:q, {self.model})", request.q_weight))
        if request.but_not:
            self.parameters["but_not"] = request.but_not
            terms.append((f"vision_embed(:but_not, {self.model})", LESS))
        if request.embedding:
            self.parameters["picture"] = request.embedding
            terms.append(("vision_from_base64(:picture)", request.embedding_weight))
        for number, key in enumerate(self.keys, start=1):
            found = (
                f"(select {self.own('embedding')} from {self.joined_from_rows()}\n"
                f"      where {self.key_is(f'like_{number}', key)} and {self.rows_of})"
            )
            terms.append((found, key.weight))
        return terms

    def key_is(self, parameter: str, key: RowKey) -> str:
        """The condition that a row of the table has this key."""
        conditions = []
        for place, (name, value) in enumerate(zip(self.embedded.path_key, key.values, strict=True), start=1):
            numbered = parameter if len(key.values) == 1 else f"{parameter}_{place}"
            self.parameters[numbered] = value
            # Of the table's column, whose type turns the text 5 of an address into a number.
            conditions.append(f"{self.table}.{quote_plain(name)} = :{numbered}")
        return " and ".join(conditions)

    def _columns(self) -> str:
        """The columns to show. Large images are left out: they would be read in full for each row."""
        key = [f"{self.table}.{name}" for name in self.embedded.path_key if name not in self.embedded.columns]
        if self.embedded.small_images:
            return ", ".join([*key, f"{self.table}.*"])
        names = [name for name in self.embedded.columns if name not in self.embedded.blob_columns]
        return ", ".join([*key, *(f"{self.table}.{quote_plain(name)}" for name in names)])

    def _key_columns(self) -> str:
        return ", ".join(f"{self.table}.{quote_plain(name)}" for name in self.embedded.path_key)

    def joined(self) -> str:
        """The table joined with its side table: every embedding, then its row."""
        if self.embedded.key == self.embedded.side_key and set(self.embedded.key) <= set(self.embedded.columns):
            return f"{self.table} join {self.side} using ({', '.join(map(quote_plain, self.embedded.key))})"
        return self._joined_on("join", "")

    def joined_from_rows(self) -> str:
        """The same in the other direction, for a large table: selected rows, in order, then their embeddings.

        The key columns of a side table have no type. SQLite uses their index only for values without a type: hence the
        +.
        """
        return self._joined_on("cross join", "+") if self.embedded.is_large else self.joined()

    def _joined_on(self, join: str, plus: str) -> str:
        pairs = zip(self.embedded.key, self.embedded.side_key, strict=True)
        return f"{self.table} {join} {self.side} on " + " and ".join(
            f"{self.side}.{quote_plain(side)} = {plus}{self.table}.{quote_plain(name)}" for name, side in pairs
        )

    def own(self, name: str) -> str:
        """A column of the side table, unqualified if the table has no column of that name."""
        return f"{self.side}.{name}" if name in {column.lower() for column in self.embedded.columns} else name

    def _conditions(self) -> str:
        conditions = f"{self.rows_of} and {self.own('embedding')} is not null"
        if self.where.clauses:
            key = self._key_columns()
            inner = f"select {key} from {self.table}\n    where {' and '.join(self.where.clauses)}"
            # In a subquery, so that their columns cannot be mistaken for those of the side table.
            conditions += f"\n  and {f'({key})' if len(self.embedded.path_key) > 1 else key} in (\n    {inner}\n  )"
        return conditions


def quote_plain(name: str) -> str:
    """Quote a name for SQL if necessary."""
    from datasette.utils import escape_sqlite

    plain = name.isascii() and name.isidentifier() and escape_sqlite(name) == name
    return name if plain else quote(name)


def _page(limit: int, offset: int) -> str:
    return f"limit {limit}" + (f" offset {offset}" if offset else "")
