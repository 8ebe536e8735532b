"""retrieval/choice.py: which embeddings a search is about."""

from __future__ import annotations

import pytest

from datasette_vision.errors import InvalidArgument, NotEmbedded
from datasette_vision.retrieval.choice import choose_embeddings

ONE = (("clip", "image"),)
TWO_COLUMNS = (("clip", "image"), ("clip", "name"))
MANY = (("a", "back"), ("clip", "image"), ("clip", "name"), ("z", "image"))


@pytest.mark.parametrize(
    ("pairs", "default", "model", "column", "expected"),
    [
        (ONE, "tiny", None, None, ("clip", "image")),  # the only one there is
        (ONE, "clip", "", "", ("clip", "image")),
        (MANY, "z", None, None, ("z", "image")),  # that of the default model
        (MANY, "z", "clip", "name", ("clip", "name")),  # what is named, though the default model has some
        (MANY, "z", "a", None, ("a", "back")),
        (MANY, "z", None, "name", ("clip", "name")),  # a column that only another model has embedded
        (MANY, "clip", None, "image", ("clip", "image")),
        (MANY, "tiny", None, "back", ("a", "back")),
    ],
)
def test_what_is_clear_is_taken(
    pairs: tuple[tuple[str, str], ...],
    default: str,
    model: str | None,
    column: str | None,
    expected: tuple[str, str],
) -> None:
    assert choose_embeddings("photos", pairs, default, model, column) == expected
    assert choose_embeddings("photos", pairs, default, model, column, or_first=True) == expected


@pytest.mark.parametrize(
    ("pairs", "default", "model", "column", "first"),
    [
        (TWO_COLUMNS, "clip", None, None, ("clip", "image")),
        (MANY, "tiny", None, None, ("a", "back")),
        (MANY, "clip", None, None, ("clip", "image")),  # the default model's, but which column
        (MANY, "z", "clip", None, ("clip", "image")),
        (MANY, "tiny", None, "image", ("clip", "image")),
    ],
)
def test_of_several_the_first_is_taken_only_where_that_is_wanted(
    pairs: tuple[tuple[str, str], ...], default: str, model: str | None, column: str | None, first: tuple[str, str]
) -> None:
    assert choose_embeddings("photos", pairs, default, model, column, or_first=True) == first
    with pytest.raises(InvalidArgument, match=r"name which to search: .*clip \(image, name\)"):
        choose_embeddings("photos", pairs, default, model, column)


@pytest.mark.parametrize(
    ("model", "column", "message"),
    [
        ("b", None, "photos has no embeddings by 'b'; embedded by: clip (image)"),
        ("b", "image", "photos has no embeddings by 'b'; embedded by: clip (image)"),
        (None, "name", "photos has no embeddings of 'name'; embedded by: clip (image)"),
        ("clip", "name", "photos has no embeddings of 'name' by 'clip'; embedded by: clip (image)"),
    ],
)
@pytest.mark.parametrize("or_first", [False, True])
def test_what_is_not_there_is_never_replaced_by_something_else(
    model: str | None, column: str | None, message: str, or_first: bool
) -> None:
    with pytest.raises(NotEmbedded) as caught:
        choose_embeddings("photos", ONE, "clip", model, column, or_first=or_first)
    assert str(caught.value) == message


@pytest.mark.parametrize("or_first", [False, True])
def test_a_side_table_without_rows(or_first: bool) -> None:
    with pytest.raises(NotEmbedded, match="photos has no embeddings yet: its side table is empty"):
        choose_embeddings("photos", (), "clip", or_first=or_first)
