"""How messages quote what somebody sent."""

from __future__ import annotations

import pytest

from datasette_vision.util.excerpt import excerpt


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "''"),
        ("it's", '"it\'s"'),
        ("a" * 10, "'aaaaaaaaaa'"),
        ("a" * 11, "'aaaaaaaaaa'… (11 characters)"),
        ("\n" * 9, "'\\n\\n\\n\\n\\n\\n\\n\\n\\n'"),
        ("\n" * 10, "'\\n\\n\\n\\n\\n\\n\\n\\n\\n\\…'"),
        ("\U00018cd6" * 3, "'\\U00018cd6\\U00018cd…'"),
    ],
)
def test_the_beginning_of_a_text(text: str, expected: str) -> None:
    assert excerpt(text, 10) == expected
