"""engine/overflow.py: processors whose 8-bit products overflow are told from those where they are exact."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from datasette_vision.engine import overflow, runtime

WEIGHTS = np.full((overflow.DEPTH, overflow.WIDTH), 127, np.int8)


def exact(rows: NDArray[np.uint8]) -> NDArray[np.int32]:
    return rows.astype(np.int32) @ WEIGHTS.astype(np.int32)


def saturating(rows: NDArray[np.uint8]) -> NDArray[np.int32]:
    """As AVX2's vpmaddubsw does it: pairs of products are added in 16 bits, and held at their limits."""
    products = rows[:, :, None].astype(np.int32) * WEIGHTS[None].astype(np.int32)
    pairs = products[:, 0::2] + products[:, 1::2]
    return np.clip(pairs, -(1 << 15), (1 << 15) - 1).sum(axis=1, dtype=np.int32)


def test_overflows() -> None:
    assert not overflow.overflows(exact)
    assert overflow.overflows(saturating)


@pytest.mark.parametrize("rows", overflow.PROBED_ROWS)
def test_one_kernel_of_several_is_enough(rows: int) -> None:
    """A single row takes another kernel than several."""
    assert overflow.overflows(lambda given: (saturating if len(given) == rows else exact)(given))


def test_the_graph_is_what_the_onnx_package_would_write() -> None:
    found = onnx.load_from_string(overflow.product_graph())
    checker.check_model(found, full_check=True)
    expected = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", overflow.DEPTH])],
            [helper.make_tensor_value_info("y", TensorProto.INT32, ["n", overflow.WIDTH])],
            [numpy_helper.from_array(WEIGHTS, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    assert found == expected


def test_the_option_makes_products_exact() -> None:
    """On every processor, this one included."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(runtime.WIDEN, "1")
    session = onnxruntime.InferenceSession(overflow.product_graph(), options, providers=[runtime.CPU])
    assert not overflow.overflows(lambda rows: session.run(["y"], {"x": rows})[0])


def test_it_is_found_out_once_a_process() -> None:
    runtime.products_overflow.cache_clear()
    assert runtime.known_overflow() is None
    found = runtime.products_overflow()
    assert runtime.products_overflow() is runtime.known_overflow() is found
    assert runtime.products_overflow.cache_info().misses == 1
