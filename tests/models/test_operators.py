"""models/operators.py, and what it is for: a row's answer is the same in any batch, whoever quantised the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from datasette_vision.engine.encoder import DualEncoder, load_on
from datasette_vision.engine.runtime import SCALE_THE_BATCH
from datasette_vision.engine.vision import Vision
from datasette_vision.models.operators import uses
from datasette_vision.models.store import ModelStore
from tests import fakes, pictures

DYNAMIC = "DynamicQuantizeLinear"


def quantised_product(source: str, target: str) -> list[onnx.NodeProto]:
    """target = source x "weights", the activations quantised as a whole: what quantize_dynamic() makes of a MatMul."""
    return [
        helper.make_node(DYNAMIC, [source], ["quantised", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["quantised", "weights", "zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], [target]),
    ]


def weights(rows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-100, 100, (rows, 8), dtype=np.int8)


def image_graph(path: Path) -> None:
    side = fakes.SIDE
    fakes.save_graph(
        path,
        [helper.make_node("Flatten", ["pixel_values"], ["flat"]), *quantised_product("flat", "embedding")],
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, side, side])],
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 8]),
        {"weights": weights(3 * side * side)},
    )


def text_graph(path: Path) -> None:
    """The sum of what is made of each token, padding too: of a large one, which makes the others' steps coarse."""
    table = np.random.default_rng(2).standard_normal((fakes.VOCABULARY, 8)).astype(np.float32)
    table[fakes.PAD] *= 50
    fakes.save_graph(
        path,
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            *quantised_product("rows", "made"),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
            helper.make_node("Mul", ["made", "mask3"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "middle"], ["embedding"], keepdims=0),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "s"])
            for name in ("input_ids", "attention_mask")
        ],
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 8]),
        {"table": table, "weights": weights(8), "last": np.array([2]), "middle": np.array([1])},
    )


@pytest.fixture
def encoder(tmp_path: Path) -> DualEncoder:
    """A model of others, quantised with dynamic ranges."""
    folder = fakes.make_dual_encoder(tmp_path)
    image_graph(folder / "image.onnx")
    text_graph(folder / "text.onnx")
    fakes.write_manifest(folder, {})  # their digests
    return DualEncoder(ModelStore(tmp_path).find("fake"), load_on(1))


# Which operators there are


def model(path: Path, nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto] | None = None) -> Path:
    graph = helper.make_graph(nodes, "graph", [], [], [helper.make_tensor("DynamicQuantizeLinear", 1, [1], [0.0])])
    path.write_bytes(helper.make_model(graph, functions=functions or []).SerializeToString())
    return path


def test_operators_of_a_graph(tmp_path: Path) -> None:
    path = model(tmp_path / "a", [helper.make_node("Relu", ["a"], [DYNAMIC], name=DYNAMIC, doc=DYNAMIC)])
    assert uses(path, ["Relu"])
    assert uses(path, ["Add", "Relu"])
    assert not uses(path, [DYNAMIC])  # a name of something else
    assert not uses(path, ["Rel"])
    assert not uses(path, [])


def test_operators_within_a_node(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node(DYNAMIC, ["a"], ["b", "c", "d"])], "inner", [], [])
    outer = helper.make_graph(
        [helper.make_node("If", ["a"], ["b"], then_branch=inner, else_branch=inner)], "outer", [], []
    )
    assert uses(model(tmp_path / "a", [helper.make_node("If", ["a"], ["b"], then_branch=outer)]), SCALE_THE_BATCH)
    assert uses(model(tmp_path / "b", [helper.make_node("Of", ["a"], ["b"], graphs=[inner])]), SCALE_THE_BATCH)


def test_operators_of_a_function(tmp_path: Path) -> None:
    function = helper.make_function(
        "ours", "Quantise", ["a"], ["b"], [helper.make_node(DYNAMIC, ["a"], ["b", "c", "d"])], []
    )
    assert uses(model(tmp_path / "a", [helper.make_node("Quantise", ["a"], ["b"], "ours")], [function]), [DYNAMIC])


def test_fields_that_nobody_knows(tmp_path: Path) -> None:
    """ONNX Runtime passes them by, of each wire type, and so does this."""
    path = model(tmp_path / "a", [helper.make_node(DYNAMIC, ["a"], ["b", "c", "d"])])
    unknown = {0: b"\x81\x01", 1: bytes(8), 2: b"\x02ab", 3: b"\x08\x01\xa4\x06", 5: bytes(4)}
    fields = b"".join(bytes([0xA0 | kind, 0x06]) + rest for kind, rest in unknown.items())  # the number of each: 100
    path.write_bytes(fields + path.read_bytes())
    onnx.load(path)
    assert uses(path, [DYNAMIC])


def test_no_weights_are_mistaken_for_operators(tmp_path: Path) -> None:
    """A constant whose bytes are those of a node."""
    node = helper.make_node(DYNAMIC, ["a"], ["b", "c", "d"]).SerializeToString()
    constant = helper.make_tensor("t", TensorProto.UINT8, [len(node)], node, raw=True)
    assert not uses(model(tmp_path / "a", [helper.make_node("Constant", [], ["a"], value=constant)]), [DYNAMIC])


@pytest.mark.parametrize("content", [b"", b"ORTM", b"\xff" * 40, b"# A README", b"\x3a\xff\xff\x03short", b"\x3a"])
def test_other_files_have_no_operators(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert not uses(tmp_path / "a", [DYNAMIC])


def test_a_file_that_is_cut_anywhere(tmp_path: Path) -> None:
    whole = model(tmp_path / "a", [helper.make_node("Relu", ["a"], ["b"])]).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:end])
        assert not uses(tmp_path / "cut", [DYNAMIC])


# What is done about them


def test_images_of_a_graph_that_quantises_the_batch(encoder: DualEncoder) -> None:
    generator = np.random.default_rng(0)
    scales = np.array([0.1, 1, 5, 0, 0.5], dtype=np.float32)[:, None, None, None]
    pixels = generator.standard_normal((5, 3, fakes.SIDE, fakes.SIDE)).astype(np.float32) * scales
    alone = np.concatenate([encoder.encode_pixels(pixels[row : row + 1]) for row in range(5)])
    together = encoder.image_tower.get()._session.run(None, {"pixel_values": pixels})[0]  # type: ignore[attr-defined]
    assert np.abs(together[0] - alone[0]).max() > 0.1 * np.abs(alone[0]).max()
    for rows in (slice(0, 5), slice(0, 2), slice(3, 5), slice(2, 3)):
        assert (encoder.encode_pixels(pixels[rows]) == alone[rows]).all()


def test_texts_of_a_graph_that_quantises_the_batch(encoder: DualEncoder) -> None:
    tokens = [[fakes.START, *b"cat", fakes.END], [fakes.START, *b"a very long text", fakes.END], [fakes.START]]
    alone = np.concatenate([encoder.encode_tokens([sequence]) for sequence in tokens])
    padded = encoder.tokenizer.get().pad(tokens)
    together = encoder.text_tower.get()._session.run(None, dict(padded))[0]  # type: ignore[attr-defined]
    assert np.abs(together[0] - alone[0]).max() > 0.01 * np.abs(alone[0]).max()
    assert (encoder.encode_tokens(tokens) == alone).all()
    assert (encoder.encode_tokens(tokens[::-1]) == alone[::-1]).all()


def test_other_graphs_keep_their_batches(tmp_path: Path) -> None:
    fakes.image_graph(tmp_path / "image.onnx", 8, "embedding")
    assert not load_on(1)(tmp_path / "image.onnx", ("pixel_values",), "embedding").one_by_one


def test_the_bundled_model_does_not_need_it() -> None:
    """Bit for bit alike in batches of every size, so that nothing is split."""
    encoder = Vision().services.dual_encoder("tiny-emoji").encoder
    assert not encoder.image_tower.get().one_by_one
    assert not encoder.text_tower.get().one_by_one
    spec = ModelStore().find("tiny-emoji").manifest.preprocess
    batch = np.stack([spec(pictures.scene(seed=seed)) * np.float32(1 + seed) for seed in range(6)])
    alone = np.concatenate([encoder.encode_pixels(batch[row : row + 1]) for row in range(6)])
    for size in (2, 3, 6):
        together = [encoder.encode_pixels(batch[first : first + size]) for first in range(0, 6, size)]
        assert (np.concatenate(together) == alone).all()
