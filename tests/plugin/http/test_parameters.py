"""plugin/http/parameters.py: what a message quotes of the value that it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from datasette_vision.plugin.http.parameters import SHOWN_CHARS, quoted_value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", '"a"'),
        ("a" * 58, f'"{"a" * 58}"'),
        ("a" * 59, f'"{"a" * 59}…'),
        ("a" * 1_000_000, f'"{"a" * 59}…'),
        (10**59, str(10**59)),
        (1 << 239, str(1 << 239)[:60] + "…"),
        (1 << 240, "a number of 241 bits"),
        (b"abc", "a file of 3 bytes"),
        (list(range(10)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"),
        (list(range(11)), "11 values"),
        ([list(range(11)), 1], '["11 values", 1]'),
        ({str(number): 1 for number in range(11)}, "11 values"),
        ([[[[1, 2]]]], '[[["2 values"]]]'),
        ({"a": {"b": {"c": {"d": 1}}}}, '{"a": {"b": {"c": "1 values"}}}'),
        ({"a" * 1_000_000: 1}, f'{{"{"a" * 58}…'),
        (None, "null"),
    ],
)
def test_a_value_is_quoted_by_its_beginning(value: Any, shown: str) -> None:
    assert quoted_value(value) == shown
    assert len(shown) <= SHOWN_CHARS + 1


def test_what_is_quoted_of_a_large_value_is_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value, **options: written.append(value) or dumps(value, **options))
    quoted_value([["a" * 1_000_000] * 10] * 10)
    assert len(str(written)) < 10_000
