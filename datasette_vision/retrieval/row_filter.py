"""The rows that a search is limited to: from a JSON array of their row numbers, or keys, to the rows of an index."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasette_vision.errors import InvalidArgument
from datasette_vision.tables.embedding_reader import Embeddings
from datasette_vision.util.sql_names import quote
from datasette_vision.vectors.codes import Codes, Mask, RowLabels

# So many characters of an array of numbers are parsed at a time: each number takes ten times as much while it is.
PIECE_CHARS = 1 << 16


@dataclass(frozen=True)
class RowFilter:
    """Numbers of rows (n,): row numbers of the source where those are its key, else labels of the side table."""

    numbers: RowLabels
    by_key: bool

    def allows(self, labels: RowLabels, keys: RowLabels) -> Mask:
        """Say which rows of these labels and keys (n,) pass."""
        return np.isin(keys if self.by_key else labels, self.numbers)

    def allows_codes(self, codes: Codes) -> Mask:
        """Say which rows of some codes pass."""
        return self.allows(codes.labels, codes.keys)


def row_filter(connection: sqlite3.Connection, wanted: Embeddings, rows: str) -> RowFilter:
    """Return the filter that a JSON array makes: of row numbers, or of keys where the source has no row numbers.

    A key of several columns is an array of their values. Raises InvalidArgument.
    """
    source = wanted.source
    if source.rowid:
        numbers = _whole_numbers(rows)
        if wanted.key_is_rowid:
            return RowFilter(numbers, by_key=True)
        found = (
            f"cross join {quote(source.schema)}.{quote(source.table)} source on source.{source.rowid} = chosen.value"
        )
        values = [f"+source.{quote(column)}" for column in source.key]
    else:
        _check_keys(rows, len(source.key))
        found, several = "", len(source.key) > 1
        values = (
            [f"json_extract(chosen.value, '$[{n}]')" for n in range(len(source.key))] if several else ["chosen.value"]
        )
    same = " and ".join(
        f"side.{quote(column)} = {value}" for column, value in zip(source.side.key_columns, values, strict=True)
    )
    cursor = connection.cursor()
    cursor.row_factory = None
    labels = cursor.execute(
        f"select side.{wanted.label} from json_each(?) chosen {found} cross join {wanted.table} side on {same}"
        " where side.model = ? and side.source_column = ?",
        (rows, wanted.model, wanted.column),
    )
    return RowFilter(np.fromiter((label for (label,) in labels), np.int64), by_key=False)


def _whole_numbers(text: str) -> RowLabels:
    parts = [_few_whole_numbers(piece) for piece in _pieces(text)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pieces(text: str) -> Iterator[str]:
    """Cut a long JSON array of numbers into short ones, so that neither memory nor Python's lock is held for long."""
    inner = text.strip(" \t\r\n")
    if len(inner) <= PIECE_CHARS or not (inner.startswith("[") and inner.endswith("]")):
        yield text
        return
    start, last = 1, len(inner) - 1
    while start <= last:
        end = inner.find(",", start + PIECE_CHARS, last)
        end = last if end < 0 else end
        piece = inner[start:end]
        yield f"[{piece}]" if piece.strip() else "[,]"  # nothing between two commas is a mistake
        start = end + 1


def _few_whole_numbers(text: str) -> RowLabels:
    values = _array(text)
    if set(map(type, values)) <= {int}:
        with contextlib.suppress(OverflowError):
            return np.array(values, np.int64)
    wrong = next(value for value in values if type(value) is not int or not -(2**63) <= value < 2**63)
    raise InvalidArgument(f"expected rows to be a JSON array of row numbers, found {_shown(wrong)} in it")


def _check_keys(text: str, columns: int) -> None:
    of_one = (str, int, float)
    for value in _array(text):
        parts = value if columns > 1 and isinstance(value, list) else [value]
        if len(parts) != columns or not all(isinstance(part, of_one) for part in parts):
            expected = "of keys" if columns == 1 else f"of keys, each an array of {columns} values"
            raise InvalidArgument(f"expected rows to be a JSON array {expected}, found {_shown(value)} in it")


def _array(text: str) -> list[Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument(f"expected rows to be a JSON array, found {_shown(text)}") from None
    if not isinstance(values, list):
        raise InvalidArgument(f"expected rows to be a JSON array, found {_shown(values)}")
    return values


def _shown(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    return shown if len(shown) <= 64 else shown[:64] + "…"
