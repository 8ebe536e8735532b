"""Which embeddings of a table to search: one rule for SQL, Python, the command line, the page and the API."""

from __future__ import annotations

from collections.abc import Sequence

from datasette_vision.errors import InvalidArgument, NotEmbedded
from datasette_vision.util.excerpt import excerpt


def choose_embeddings(
    table: str,
    pairs: Sequence[tuple[str, str]],
    default_model: str,
    model: str | None = None,
    column: str | None = None,
    *,
    or_first: bool = False,
) -> tuple[str, str]:
    """Return the (model, column) to search, from the pairs that a table has embeddings of (side_tables.pairs()).

    Given names are used. If several pairs match, those of the default model are preferred. If more than one is left, it
    is an error, except with `or_first`, for a page that shows the alternatives: then it is the first by name. Raises
    NotEmbedded if nothing matches, InvalidArgument for more than one; both list the alternatives.
    """
    if not pairs:
        raise NotEmbedded(f"{table} has no embeddings yet: its side table is empty")
    columns: dict[str, list[str]] = {}
    for its_model, its_column in pairs:
        columns.setdefault(its_model, []).append(its_column)
    there = ", ".join(f"{name} ({', '.join(own)})" for name, own in columns.items())
    fitting = [pair for pair in pairs if (model or pair[0], column or pair[1]) == pair]
    if not fitting:
        of = f" of {excerpt(column)}" if column and (not model or model in columns) else ""
        by = f" by {excerpt(model)}" if model else ""
        raise NotEmbedded(f"{table} has no embeddings{of}{by}; embedded by: {there}")
    fitting = [pair for pair in fitting if pair[0] == default_model] or fitting
    if len(fitting) > 1 and not or_first:
        raise InvalidArgument(
            f"{table} has embeddings by more than one model or of more than one column, name which to search: {there}"
        )
    return fitting[0]
