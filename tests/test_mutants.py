"""mutants.py: which changes it makes, and that none is listed as equivalent that is no more."""

from __future__ import annotations

import pytest

from tests import mutants

MODULE = "vectors/embedding.py"


def changes(source: str) -> set[str]:
    return {f"{mutant.before} -> {mutant.after}" for mutant in mutants.Finder("x.py", source).found}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", {"a < b -> (a <= b)", "a < b -> (a >= b)"}),
        ("x = a is not None", {"a is not None -> (a is None)"}),
        ("x = a and b", {"a and b -> (a or b)"}),
        ("x = not a", {"not a -> a"}),
        ("x = -a", {"-a -> a"}),
        ("x = a + b", {"a + b -> (a - b)"}),
        ("x = 'a' + b", set()),
        ("x = 5", set()),  # measured
        ("def f(): g(x, strict=True)", set()),
        ("def f(): g(x, strict=not y)", {"not y -> y"}),
        ("def f(): click.IntRange(1, x + 1)", set()),
        ("def f(): x = 5", {"5 -> 6", "5 -> 4"}),
        ("def f(): x = 0", {"0 -> 1"}),
        ("x = True", {"True -> False"}),
        ("x: int = None", set()),
        ("if a: pass", {"a -> (not a)"}),
        ("if TYPE_CHECKING: x = 1", set()),
        ("def f(): return a", {"a -> None"}),
        ("def f(): return None", set()),
        ("def f(x: Literal[1] = 2) -> Literal[3]: ...", set()),
        ("def __repr__(self): return 1", set()),
        ("class X(Protocol):\n    a = 1", set()),
        ("'documentation 1'", set()),
        ("x = f'{1 + 1}'", set()),
        ("logger.error('%d', 1)", set()),
        ("raise X(1)", set()),
    ],
)
def test_what_is_changed(source: str, expected: set[str]) -> None:
    assert changes(source) == expected


def test_a_mutant_changes_one_place_behind_letters_of_several_bytes() -> None:
    source = "x = 'äöü', (a ==\n  b)"
    (mutant,) = mutants.Finder("x.py", source).found
    assert mutant.applied(source) == "x = 'äöü', ((a != b))"
    assert (mutant.line, mutant.statement, mutant.function) == (1, (1, 2), "")


def test_only_the_code_that_differs_is_swapped() -> None:
    source = "def f(a):\n    return a < 1\ndef g(a):\n    return a\n"
    before, after = (compile(text, "x.py", "exec") for text in (source, source.replace("<", "<=")))
    assert [old.co_name for old, _ in mutants.new_code(before, after)] == ["<module>", "f"]


@pytest.mark.skipif(not (mutants.ROOT / mutants.PACKAGE).exists(), reason="the package is not in this checkout")
def test_all_mutants_are_python() -> None:
    source = (mutants.ROOT / mutants.PACKAGE / MODULE).read_text("utf-8")
    for mutant in mutants.mutants(MODULE):
        compile(mutant.applied(source), "x.py", "exec")


@pytest.mark.skipif(not (mutants.ROOT / mutants.PACKAGE).exists(), reason="the package is not in this checkout")
def test_those_listed_as_equivalent_are_there_and_have_reasons() -> None:
    listed = mutants.equivalents()
    assert mutants.unused(listed) == []
    assert all(set(entry) == {"module", "code", "before", "after", "reason"} and entry["reason"] for entry in listed)


def test_one_that_is_no_more_is_found_out() -> None:
    entry = {"module": MODULE, "code": "gone < 1", "before": "gone < 1", "after": "(gone <= 1)", "reason": "x"}
    assert mutants.unused([entry]) == [entry]
    assert mutants.unused([{**entry, "module": "gone.py"}]) != []
