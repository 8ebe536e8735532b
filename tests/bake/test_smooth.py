"""bake/smooth.py: outliers are moved into the matrices, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from datasette_vision.bake.graph import OnnxGraph
from datasette_vision.bake.smooth import Products, smooth_products
from datasette_vision.engine.runtime import OnnxSession
from tests import fakes

WIDTH = 8
OUTLIERS = np.array([1, 1, 100, 1, 1, 1, 1, 0], np.float32)  # and a channel that is always zero
ROWS = np.random.default_rng(0).standard_normal((5, 3, WIDTH)).astype(np.float32)


def save(path: Path, residual: str = "x", bias: bool = True) -> Path:
    """embedding = LayerNormalization(x) times two matrices, added up, plus `residual`."""
    draw = np.random.default_rng(1)
    weights = {
        "scale": OUTLIERS,
        "bias": OUTLIERS * draw.standard_normal(WIDTH).astype(np.float32),
        "first": (draw.standard_normal((WIDTH, WIDTH)) / np.maximum(OUTLIERS, 1)[:, None]).astype(np.float32),
        "second": (draw.standard_normal((WIDTH, WIDTH)) / np.maximum(OUTLIERS, 1)[:, None]).astype(np.float32),
        "none": np.zeros(WIDTH, np.float32),
    }
    norm = ["x", "scale", "bias"] if bias else ["x", "scale"]
    fakes.save_graph(
        path,
        [
            helper.make_node("LayerNormalization", norm, ["norm"], axis=-1),
            helper.make_node("MatMul", ["norm", "first"], ["a"]),
            helper.make_node("MatMul", ["norm", "second"], ["b"]),
            helper.make_node("Sum", ["a", "b", residual, "none"], ["embedding"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, WIDTH])],
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 3, WIDTH]),
        weights,
    )
    return path


def products(graph: OnnxGraph) -> Products:
    return [(node, weight) for node in graph.nodes("MatMul") if (weight := graph.weight(node.input[1])) is not None]


def run(path: Path) -> np.ndarray:
    return OnnxSession(path, inputs=("x",), output="embedding", threads=1).run({"x": ROWS})


def largest(path: Path) -> np.ndarray:
    """The largest activation of each channel that the products read."""
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("norm", TensorProto.FLOAT, ["n", 3, WIDTH]))
    onnx.save(model, path.with_suffix(".norm"))
    session = OnnxSession(path.with_suffix(".norm"), inputs=("x",), output="norm", threads=1)
    return np.abs(session.run({"x": ROWS})).max(axis=(0, 1))


@pytest.mark.parametrize("bias", [True, False])
def test_outliers_are_moved_and_the_answers_stay(tmp_path: Path, bias: bool) -> None:
    source, target = save(tmp_path / "source", bias=bias), tmp_path / "target"
    assert smooth_products(source, target, products, ({"x": row[None]} for row in ROWS)) == 1
    np.testing.assert_allclose(run(target), run(source), atol=1e-4)
    before, after = largest(source), largest(target)
    assert before[2] > 50 * np.median(before)
    assert after[2] < 3 * np.median(after)
    # As large as what multiplies it, over all matrices that read the channel.
    matrices = [matrix for _, matrix in products(OnnxGraph(target))]
    weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    np.testing.assert_allclose(after[:-1], weights[:-1], rtol=1e-4)


def test_what_somebody_else_reads_stays_as_it_is(tmp_path: Path) -> None:
    source, target = save(tmp_path / "source", residual="norm"), tmp_path / "target"
    assert smooth_products(source, target, products, iter([{"x": ROWS}])) == 0
    assert not target.exists()


def test_without_inputs_nothing_is_smoothed(tmp_path: Path) -> None:
    assert smooth_products(save(tmp_path / "source"), tmp_path / "target", products, iter([])) == 0
    assert not (tmp_path / "target").exists()
