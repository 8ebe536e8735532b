"""steady.py: an image's embedding is the same in any batch, whoever quantised the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from datasette_vision.encoder import load_on
from datasette_vision.models.store import ModelStore
from datasette_vision.steady import SteadySession, load_steady
from datasette_vision.vision import Vision
from tests import fakes, pictures


def dynamic_graph(path: Path) -> None:
    """A linear map of the pixels with the activations quantised as a whole: what quantize_dynamic() makes."""
    side = fakes.SIDE
    weights = np.random.default_rng(1).integers(-100, 100, (3 * side * side, 8), dtype=np.int8)
    fakes.save_graph(
        path,
        [
            helper.make_node("Flatten", ["pixel_values"], ["flat"]),
            helper.make_node("DynamicQuantizeLinear", ["flat"], ["quantised", "scale", "zero"]),
            helper.make_node("MatMulInteger", ["quantised", "weights", "zero"], ["product"]),
            helper.make_node("Cast", ["product"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["wide", "scale"], ["embedding"]),
        ],
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, side, side])],
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 8]),
        {"weights": weights},
    )


@pytest.fixture
def pixels() -> np.ndarray:
    generator = np.random.default_rng(0)
    scales = np.array([0.1, 1, 5, 0, 0.5], dtype=np.float32)[:, None, None, None]
    return generator.standard_normal((5, 3, fakes.SIDE, fakes.SIDE)).astype(np.float32) * scales


ARGUMENTS = (("pixel_values",), "embedding")


def test_a_graph_that_quantises_the_batch(tmp_path: Path, pixels: np.ndarray) -> None:
    dynamic_graph(tmp_path / "image.onnx")
    plain = load_on(1)(tmp_path / "image.onnx", *ARGUMENTS)
    steady = load_steady(1)(tmp_path / "image.onnx", *ARGUMENTS)
    alone = np.concatenate([plain.run({"pixel_values": pixels[row : row + 1]}) for row in range(5)])
    assert np.abs(plain.run({"pixel_values": pixels})[0] - alone[0]).max() > 0.1 * np.abs(alone[0]).max()
    for rows in (slice(0, 5), slice(0, 2), slice(3, 5), slice(2, 3)):
        assert (steady.run({"pixel_values": pixels[rows]}) == alone[rows]).all()


def test_other_graphs_keep_their_batches(tmp_path: Path, pixels: np.ndarray) -> None:
    fakes.image_graph(tmp_path / "image.onnx", 8, "embedding")
    sizes = []

    class Counting:
        def __init__(self) -> None:
            self.session = load_on(1)(tmp_path / "image.onnx", *ARGUMENTS)

        def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
            sizes.append(len(inputs["pixel_values"]))
            return self.session.run(inputs)

    session = SteadySession(Counting())
    for _ in range(3):
        session.run({"pixel_values": pixels})
    assert sizes == [2, 1, 5, 5, 5]


def test_token_numbers_are_not_tried(tmp_path: Path) -> None:
    fakes.text_graph(tmp_path / "text.onnx", 8)
    session = load_steady(1)(tmp_path / "text.onnx", ("input_ids", "attention_mask"), "embedding")
    tokens = np.array([[1, 2], [3, 4]], dtype=np.int64)
    assert session.run({"input_ids": tokens, "attention_mask": np.ones_like(tokens)}).shape == (2, 8)


def test_the_bundled_model_does_not_need_it() -> None:
    """Bit for bit alike in batches of every size, so that nothing is split."""
    encoder = Vision().services.dual_encoder("tiny-emoji").encoder
    spec = ModelStore().find("tiny-emoji").manifest.preprocess
    batch = np.stack([spec(pictures.scene(seed=seed)) * np.float32(1 + seed) for seed in range(6)])
    alone = np.concatenate([encoder.encode_pixels(batch[row : row + 1]) for row in range(6)])
    for size in (2, 3, 6):
        together = [encoder.encode_pixels(batch[first : first + size]) for first in range(0, 6, size)]
        assert (np.concatenate(together) == alone).all()
