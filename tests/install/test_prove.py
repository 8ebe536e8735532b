"""install/prove.py: how candidates are measured, and which of them is chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasette_vision.errors import EngineFailure, InstallFailed, ModelCorrupt
from datasette_vision.install.prove import (
    Measured,
    ModelInputs,
    Rows,
    choose,
    compare,
    exact,
    measure,
    nearest,
    prove,
    shared,
)


def measured(
    name: str, cosine: float, milliseconds: float, size: int = 100, rank_agreement: float | None = None
) -> Measured:
    return Measured(name, Path(name), cosine, cosine, 0.0, milliseconds, size, rank_agreement)


FP32 = measured("fp32", 1.0, 10.0, 400)


@pytest.mark.parametrize(
    ("precision", "candidates", "expected"),
    [
        ("auto", [FP32], "fp32"),
        ("auto", [FP32, measured("int8", 0.99, 5)], "int8"),
        ("auto", [FP32, measured("int8", 0.9899, 5)], "fp32"),
        ("auto", [FP32, measured("int8", 0.99, 16)], "int8"),  # slower, and a quarter of the memory
        ("auto", [FP32, measured("int8", 0.99, 16.1)], "fp32"),
        ("auto", [FP32, measured("int8", 0.99, 5), measured("blocks", 0.995, 5.2, 90)], "blocks"),  # as fast, smaller
        ("auto", [FP32, measured("int8", 0.99, 5), measured("blocks", 0.995, 5.3, 90)], "int8"),
        ("auto", [FP32, measured("int8", 0.98, 5), measured("blocks", 0.99, 6)], "blocks"),
        ("auto", [FP32, measured("int8", 0.99, 5, rank_agreement=0.95)], "int8"),
        ("auto", [FP32, measured("int8", 0.99, 5, rank_agreement=0.9499)], "fp32"),
        ("auto", [FP32, measured("int8", 1, 5, 100, 0.94), measured("blocks", 0.99, 6, 100, 0.95)], "blocks"),
        ("int8", [FP32, measured("int8", 0.99, 100)], "int8"),
        ("int8", [FP32, measured("int8", 0.95, 5), measured("blocks", 0.96, 6)], "blocks"),
        ("int8", [FP32, measured("int8", 0.9, 5)], "int8"),
        ("fp32", [FP32, measured("int8", 1.0, 1)], "fp32"),
    ],
)
def test_which_is_chosen(precision: str, candidates: list[Measured], expected: str) -> None:
    assert choose(candidates, precision, 0.99).name == expected


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([FP32], "there is nothing to quantise in this model"),
        ([FP32, measured("int8", 0.8999, 5)], "worst cosine 0.900 to the original, at least 0.9 is needed"),
    ],
)
def test_int8_that_cannot_be(candidates: list[Measured], message: str) -> None:
    with pytest.raises(InstallFailed, match=message):
        choose(candidates, "int8", 0.99)


SAMPLES: list[ModelInputs] = [{"x": np.array([[1.0, number]], np.float32)} for number in range(3)]


def loader(**answers: Callable[[Rows], Rows] | Exception) -> Callable[[Path], Callable[[ModelInputs], Rows]]:
    def load(path: Path) -> Callable[[ModelInputs], Rows]:
        answer = answers[path.name]
        if isinstance(answer, Exception):
            raise answer
        return lambda inputs: answer(inputs["x"])

    return load


@pytest.fixture
def candidates(tmp_path: Path) -> dict[str, Path]:
    for name in ("fp32", "int8"):
        (tmp_path / name).write_bytes(bytes(len(name)))
    return {name: tmp_path / name for name in ("fp32", "int8")}


def test_without_the_original_fp32_is_the_reference(candidates: dict[str, Path]) -> None:
    load = loader(fp32=lambda x: 2 * x, int8=lambda x: x * np.array([[1, 1.1]], np.float32))
    plain, quantised = measure(candidates, load, SAMPLES, SAMPLES[0])
    assert (plain.worst_cosine, plain.mean_cosine, plain.norm_difference) == (pytest.approx(1), pytest.approx(1), 0)
    assert 0.99 < quantised.worst_cosine < quantised.mean_cosine < 1
    assert quantised.norm_difference == pytest.approx(0.5)  # half as long for the first, which has no second number
    assert (plain.size, quantised.size) == (4, 4)
    original = np.concatenate([2.001 * sample["x"] for sample in SAMPLES])
    plain, _ = measure(candidates, load, SAMPLES, SAMPLES[0], original, rounds=1)
    assert plain.norm_difference == pytest.approx(0.0005, rel=0.01)
    assert exact(plain)
    kept, report = prove(candidates, load, SAMPLES, SAMPLES[0], threshold=0.999)
    assert (kept.name, report["kept"], report["samples"]) == ("fp32", "fp32", 3)
    assert [each["name"] for each in report["candidates"]] == ["fp32", "int8"]


@pytest.mark.parametrize("error", [EngineFailure("no"), ModelCorrupt("no"), InstallFailed("no")])
def test_a_quantised_candidate_that_cannot_be_run_is_left_out(candidates: dict[str, Path], error: Exception) -> None:
    found = measure(candidates, loader(fp32=lambda x: x, int8=error), SAMPLES, SAMPLES[0])
    assert [each.name for each in found] == ["fp32"]
    with pytest.raises(type(error)):
        measure(candidates, loader(fp32=error, int8=lambda x: x), SAMPLES, SAMPLES[0])


def test_neighbours_are_compared_with_those_of_fp32(candidates: dict[str, Path]) -> None:
    draw = np.random.default_rng(0)
    ranked = [{"x": draw.standard_normal((1, 8)).astype(np.float32)} for _ in range(40)]
    noise = draw.standard_normal((8, 8)).astype(np.float32)
    found = {}
    for amount in (0.0, 0.01, 1.0):
        load = loader(fp32=lambda x: x, int8=lambda x, amount=amount: 3 * x + amount * x @ noise)  # type: ignore[misc]
        plain, quantised = measure(candidates, load, ranked[:1], ranked[0], None, lambda: ranked, rounds=1)
        assert plain.rank_agreement == 1
        found[amount] = quantised.rank_agreement
    assert found[0.0] == 1
    assert 0.95 < found[0.01] <= 1
    assert 0.2 < found[1.0] < 0.95
    kept, report = prove(candidates, load, ranked[:1], ranked[0], ranked=lambda: ranked, threshold=-1)
    assert (kept.name, report["rank_agreement"]) == ("fp32", 1)
    assert [each["rank_agreement"] for each in report["candidates"]] == [1, round(found[1.0], 4)]
    assert "rank_agreement" not in prove(candidates, load, ranked[:1], ranked[0])[1]


def test_nearest() -> None:
    circle = np.linspace(0, np.pi, 30)
    rows = np.stack([np.cos(circle), np.sin(circle)], axis=1).astype(np.float32)
    found = nearest(rows)
    assert found.shape == (30, 10)
    assert found[0].tolist() == list(range(1, 11))
    assert set(found[15]) == {*range(10, 15), *range(16, 21)}
    assert (nearest(4 * rows) == found).all()
    assert nearest(np.zeros((3, 2), np.float32)).shape == (3, 3)


def test_shared() -> None:
    first, second = np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 5]])
    assert shared(first, first) == shared(first, first[:, ::-1]) == 1
    assert shared(first, second) == 0.75
    assert shared(first, second + 10) == 0


def test_compare() -> None:
    first = np.array([[1, 0], [3, 4], [1, 1]], np.float32)
    second = np.array([[0, 2], [6, 8], [-1, -1]], np.float32)
    cosines, norms = compare(first, second)
    np.testing.assert_allclose(cosines, [0, 1, -1], atol=1e-12)
    np.testing.assert_allclose(norms, [0.5, 0.5, 1])
