"""errors.py: the tree at the head of the module is the tree that exists."""

from __future__ import annotations

import re

import pytest

from datasette_vision import errors
from datasette_vision.errors import VisionError

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, BaseException)]
LINE = re.compile(r"    (?P<tree>[│├└─ ]*)(?P<name>[A-Z]\w+) +(?P<status>\d{3}) +(?P<code>\d+)(?: .*)?")


def drawn() -> dict[str, tuple[str | None, int, int]]:
    """name -> (name of its base, HTTP status, exit code), as the docstring draws it."""
    found: dict[str, tuple[str | None, int, int]] = {}
    path: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        if match := LINE.fullmatch(line):
            depth = len(match["tree"]) // 4
            path[depth:] = [match["name"]]
            base = path[depth - 1] if depth else None
            assert match["name"] not in found
            found[match["name"]] = base, int(match["status"]), int(match["code"])
    return found


def test_the_tree_is_drawn_as_it_is() -> None:
    existing = {
        error.__name__: (
            None if error is VisionError else error.__base__.__name__,
            error.http_status,
            error.exit_code,
        )
        for error in CLASSES
    }
    assert drawn() == existing
    assert len(existing) > 10


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_has_a_status_an_exit_code_and_a_docstring(error: type[VisionError]) -> None:
    assert issubclass(error, VisionError)
    assert error.http_status in {400, 403, 404, 500, 503}
    assert 1 <= error.exit_code <= 125
    assert error.__doc__
    assert error.__doc__.rstrip().endswith(".")
    assert str(error("what was wrong")) == "what was wrong"


def test_one_exit_code_means_one_kind_of_thing() -> None:
    """2 is everybody's for a mistake of the caller; the others are one class each."""
    codes = [error.exit_code for error in CLASSES if error.exit_code != 2]
    assert len(codes) == len(set(codes))


def test_the_callers_mistakes_are_400() -> None:
    assert {error.http_status for error in CLASSES if issubclass(error, errors.InvalidInput)} == {400}
