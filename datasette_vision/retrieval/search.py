"""Searches the embeddings of a table: finds the rows closest to a text, an image or an embedding."""

from __future__ import annotations

import sqlite3

from datasette_vision.engine.vision import Vision
from datasette_vision.errors import (
    Busy,
    DimensionMismatch,
    InvalidArgument,
    NotEmbedded,
    VisionError,
)
from datasette_vision.retrieval import choice
from datasette_vision.retrieval.hits import Hit, IndexMismatch, from_index, from_table
from datasette_vision.retrieval.indexes import Indexes, KeepAwake
from datasette_vision.retrieval.row_filter import row_filter
from datasette_vision.tables import change_log, side_tables
from datasette_vision.tables.embedding_reader import Embeddings
from datasette_vision.tables.side_tables import EmbeddedSource
from datasette_vision.util.connections import database_path, snapshot
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors.embedding import Vector

MAX_K = 100_000


def search(
    connection: sqlite3.Connection,
    table: str,
    query: str | bytes,
    k: int = 10,
    *,
    vision: Vision,
    model: str | None = None,
    column: str | None = None,
    rows: str | None = None,
) -> list[Hit]:
    """Return the k rows of a table closest to a text, an image or an embedding, best first.

    For occasional searches: each reads the embeddings, or the index that `datasette vision index` made. A Searcher
    keeps them between searches. See Searcher.search() for the arguments and errors.
    """
    return Searcher(vision, improve=False).search(connection, table, query, k, model, column, rows)


class Searcher:
    """Searches tables on any connection, with indexes that the connections share. Thread-safe.

    `wait_s`, `keep_awake` and `improve` are those of Indexes.
    """

    def __init__(
        self,
        vision: Vision,
        wait_s: float | None = None,
        keep_awake: KeepAwake | None = None,
        *,
        improve: bool = True,
    ) -> None:
        self._vision = vision
        self.indexes = Indexes(wait_s, keep_awake, improve=improve)

    def search(
        self,
        connection: sqlite3.Connection,
        table: str,
        query: str | bytes,
        k: int = 10,
        model: str | None = None,
        column: str | None = None,
        rows: str | None = None,
    ) -> list[Hit]:
        """Return the k rows of a table closest to a text, an image or an embedding, best first.

        It searches what the connection sees. `table` may be prefixed with the name of an attached database and a dot.
        Without `model` or `column`, choice.choose() decides. `rows` is a JSON array of the rowids to search among, or
        of keys if the table has none. Raises NotEmbedded if there is nothing to search, InvalidArgument if the choice
        is ambiguous or `rows` is something else, DimensionMismatch for an embedding of another size, InvalidImage and
        InvalidVector, Busy while the table is being read for the first time, and the errors of embedding.
        """
        if not 1 <= k <= MAX_K:
            raise InvalidArgument(f"expected k to be a whole number from 1 to {MAX_K:,}, found {k:,}")
        source = self.source(connection, table)
        try:
            with snapshot(connection, source.schema):
                return self._search(connection, source, query, k, model, column, rows)
        except Exception as error:
            if isinstance(error, VisionError) or "interrupted" not in str(
                error
            ):  # SQLite modules have their own classes
                raise
            raise Busy(f"searching {source.table} takes longer than a query may take here") from None

    def source(self, connection: sqlite3.Connection, table: str) -> EmbeddedSource:
        """Return the table or view of a name, if it has embeddings. Raises NotEmbedded, listing the alternatives."""
        schemas = [row[1] for row in connection.execute("pragma database_list")]
        places = [(schema, table) for schema in schemas]
        before, dot, after = table.partition(".")
        if dot:
            places += [(schema, after) for schema in schemas if schema.lower() == before.lower()]
        for schema, name in places:
            found = side_tables.find_source(connection, name, schema)
            if found is not None:
                return found
        for schema, name in places:
            if side_tables.columns(connection, name, schema):
                file = database_path(connection, schema).rpartition("/")[2] or "DATABASE"
                raise NotEmbedded(
                    f"{name} has no embeddings yet: make them with `datasette vision embed {file} {name}`"
                )
        there = [found.table for schema in schemas for found in side_tables.sources(connection, schema)]
        shown = table if len(table) <= 64 else table[:64] + "…"
        raise NotEmbedded(f"there is no table or view {shown!r}; embedded are: {', '.join(there) or 'none'}")

    def _search(
        self,
        connection: sqlite3.Connection,
        source: EmbeddedSource,
        query: str | bytes,
        k: int,
        model: str | None,
        column: str | None,
        rows: str | None,
    ) -> list[Hit]:
        state = change_log.state(connection, source.schema, source.side.name)
        wanted = self.choose(connection, source, model, column)
        dimensions = self.dimensions(connection, wanted)
        if dimensions is None:
            return []
        vector = self._vector(query, wanted, dimensions)
        only = None if rows is None else row_filter(connection, wanted, rows)
        found = None if state is None else self.indexes.view(connection, wanted, dimensions, state)
        if found is not None:
            view, others = found
            try:
                hits = from_index(connection, wanted, vector, k, view, others, only)
            except IndexMismatch:
                self.indexes.forget(connection, wanted)
            else:
                return hits or self._nothing(connection, wanted, dimensions)
        return from_table(connection, wanted, vector, k, only) or self._nothing(connection, wanted, dimensions)

    def _nothing(self, connection: sqlite3.Connection, wanted: Embeddings, dimensions: int) -> list[Hit]:
        """Return why there may be nothing to find."""
        stored = wanted.dimensions(connection)
        if stored is not None and stored != dimensions:
            raise DimensionMismatch(
                f"the embeddings of {wanted.source.table} by {wanted.model!r} have {stored} floats, and that model"
                f" makes {dimensions} now: embed the table again with --force"
            )
        return []

    def choose(
        self,
        connection: sqlite3.Connection,
        source: EmbeddedSource,
        model: str | None = None,
        column: str | None = None,
    ) -> Embeddings:
        """Return the embeddings to search for this model and column. Raises as search() does."""
        pairs = side_tables.pairs(connection, source)
        chosen = choice.choose_embeddings(source.table, pairs, self._vision.config.default_model, model, column)
        return Embeddings.of(connection, source, *chosen)

    def dimensions(self, connection: sqlite3.Connection, wanted: Embeddings) -> int | None:
        """Return the size of these embeddings: the model's, or that of the stored ones if the model is not
        installed.
        """
        if (known := self.indexes.dimensions(connection, wanted)) is not None:
            return known
        try:
            return self._vision.services.dual_encoder(wanted.model).manifest.dimensions
        except VisionError:  # embeddings made elsewhere can be searched by embedding
            return wanted.dimensions(connection)

    def _vector(self, query: str | bytes, wanted: Embeddings, dimensions: int) -> Vector:
        """Return the unit-length embedding of a query."""
        if isinstance(query, str):
            return self._vision.embed_text(query, wanted.model)
        embedding = vectors.unless_image(query, dimensions)
        return self._vision.embed_image(query, wanted.model) if embedding is None else embedding
