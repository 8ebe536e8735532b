"""A search request as an address holds it: reads and writes query strings.

`q` holds the words. Our other arguments begin with an underscore, like Datasette's special arguments. Everything else
is a column filter of Datasette (`name__contains=cat`). To filter a column named q, use `q__exact`.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlencode

from datasette_vision.errors import InvalidArgument, InvalidVector
from datasette_vision.util.excerpt import excerpt

DEFAULT_SIZE = 24
MAX_EXAMPLES = 32
# "Less like this" adjusts the search, and must not reverse it.
LESS = -0.5
OWN_ARGUMENTS = (
    "q", "_q_weight", "_not", "_like", "_unlike", "_embedding", "_model", "_column", "_threshold", "_page", "_size",
)  # fmt: skip

Arguments = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class LikeRow:
    """A row to be more like (a weight above 0) or less like (below 0). `row` is its path in Datasette's addresses."""

    row: str
    weight: float


@dataclass(frozen=True)
class SearchRequest:
    """A search in an embedded table.

    `embedding` is base64 of float32 values, from an uploaded image that was not stored. `filters` are the other
    arguments, Datasette's own: ("name__contains", "cat"), ("_where", "price < 5"). `threshold` is the lowest
    similarity, None for any. `page` counts from 1.
    """

    q: str = ""
    q_weight: float = 1.0
    but_not: str = ""
    examples: tuple[LikeRow, ...] = ()
    embedding: str = ""
    embedding_weight: float = 1.0
    model: str | None = None
    column: str | None = None
    threshold: float | None = None
    page: int = 1
    size: int = DEFAULT_SIZE
    filters: tuple[tuple[str, str], ...] = ()

    @property
    def asks(self) -> bool:
        """Whether the search has anything to compare rows with."""
        return bool(self.q or self.but_not or self.examples or self.embedding)

    @classmethod
    def read(cls, arguments: Arguments, max_size: int = 1000) -> SearchRequest:
        """Read the arguments of an address, in order. Raises InvalidArgument for an invalid one."""
        values: dict[str, str] = {}
        examples: dict[str, LikeRow] = {}
        filters = []
        for name, value in arguments:
            if name in ("_like", "_unlike"):
                if value:
                    example = _example(name, value)
                    # The last argument about a row counts.
                    examples.pop(example.row, None)
                    examples[example.row] = example
            elif name in OWN_ARGUMENTS:
                values[name] = value.strip()
            else:
                filters.append((name, value))
        if len(examples) > MAX_EXAMPLES:
            raise InvalidArgument(f"expected at most {MAX_EXAMPLES} examples, found {len(examples)}")
        embedding, _, weight = values.get("_embedding", "").partition(":")
        threshold = _number("_threshold", values.get("_threshold") or "0")
        return cls(
            q=values.get("q", ""),
            q_weight=_number("_q_weight", values.get("_q_weight") or "1"),
            but_not=values.get("_not", ""),
            examples=tuple(example for example in examples.values() if example.weight),
            embedding=embedding and _plain(embedding),
            embedding_weight=_number("_embedding", weight or "1"),
            model=values.get("_model") or None,
            column=values.get("_column") or None,
            threshold=threshold if threshold > 0 else None,
            page=_whole("_page", values.get("_page") or "1", 1_000_000),
            size=max_size
            if values.get("_size") == "max"
            else _whole("_size", values.get("_size") or str(min(DEFAULT_SIZE, max_size)), max_size),
            filters=tuple(filters),
        )

    def arguments(self) -> list[tuple[str, str]]:
        """Return the arguments of this search: only those that differ from the defaults, in a fixed order."""
        result = [("q", self.q)] if self.q else []
        if self.q and self.q_weight != 1:
            result.append(("_q_weight", _shown(self.q_weight)))
        if self.but_not:
            result.append(("_not", self.but_not))
        for example in self.examples:
            name, usual = ("_like", 1.0) if example.weight > 0 else ("_unlike", LESS)
            weight = abs(example.weight) if name == "_unlike" else example.weight
            # A row whose key is an empty text needs its weight: an empty argument is no example.
            is_plain = example.row and weight == abs(usual)
            result.append((name, example.row if is_plain else f"{example.row}:{_shown(weight)}"))
        if self.embedding:
            suffix = "" if self.embedding_weight == 1 else f":{_shown(self.embedding_weight)}"
            result.append(("_embedding", self.embedding + suffix))
        if self.model:
            result.append(("_model", self.model))
        if self.column:
            result.append(("_column", self.column))
        if self.threshold is not None:
            result.append(("_threshold", _shown(self.threshold)))
        result += self.filters
        if self.size != DEFAULT_SIZE:
            result.append(("_size", str(self.size)))
        if self.page > 1:
            result.append(("_page", str(self.page)))
        return result

    def query_string(self, **changes: object) -> str:
        """Return this search, with changed fields, as a query string."""
        if changes and "page" not in changes:
            changes["page"] = 1  # a changed search starts at page 1
        return urlencode(dataclasses.replace(self, **changes).arguments())  # type: ignore[arg-type]

    def with_example(self, row: str, weight: float) -> str:
        """Return the query string of this search with one more example, or with another weight for an existing one."""
        others = tuple(example for example in self.examples if example.row != row)
        return self.query_string(examples=(*others, *([LikeRow(row, weight)] if weight else [])))


def encode_embedding(blob: bytes) -> str:
    """Write an embedding BLOB for an address: base64 of its bytes, with the URL-safe alphabet."""
    return base64.urlsafe_b64encode(blob).decode().rstrip("=")


def _plain(text: str) -> str:
    """Return base64 of either alphabet in the form of encode_embedding(). Raises InvalidArgument."""
    from datasette_vision.vectors import embedding as vectors  # heavy: NumPy

    try:
        # A + in an address may arrive as a space.
        blob = vectors.to_blob(vectors.from_base64(text.replace(" ", "+")))
    except InvalidVector as error:
        raise InvalidArgument(f"_embedding: {error}") from None
    return encode_embedding(blob)


def _example(name: str, value: str) -> LikeRow:
    """Read `row` or `row:weight`. A row's path is escaped, so it contains no colon."""
    row, _, weight = value.partition(":")
    sign = -1 if name == "_unlike" else 1
    return LikeRow(row, sign * _number(name, weight) if weight else (LESS if sign < 0 else 1.0))


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > 1000:
        raise InvalidArgument(f"{name}: expected a number from -1000 to 1000, found {excerpt(text)}")
    return value


def _whole(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= most):
        raise InvalidArgument(f"{name}: expected a whole number from 1 to {most}, found {excerpt(text)}")
    return int(text)


def _shown(number: float) -> str:
    return f"{number:g}"
