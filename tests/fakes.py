"""Tiny deterministic models, made on the fly: real ONNX files that real ONNX Runtime loads."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from datasette_vision.engine.encoder import LoadSession, load_on

SIDE = 16
VOCABULARY = 256 + 3
PAD, START, END = 256, 257, 258


def save_graph(path: Path, nodes: list[Any], inputs: list[Any], output: Any, weights: dict[str, np.ndarray]) -> None:
    initialisers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "fake", inputs, [output], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def image_graph(path: Path, size: int, output: str) -> None:
    """A linear map of the mean colour of four quarters of the picture."""
    weights = np.random.default_rng(1).standard_normal((12, size)).astype(np.float32)
    save_graph(
        path,
        [
            helper.make_node(
                "AveragePool", ["pixel_values"], ["pooled"], kernel_shape=[SIDE // 2] * 2, strides=[SIDE // 2] * 2
            ),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], [output]),
        ],
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", size]),
        {"weights": weights},
    )


def token_table(size: int) -> np.ndarray:
    """A row for each token, of numbers whose sums are exact, in whichever order a batch of any size has them added."""
    table = np.random.default_rng(2).standard_normal((VOCABULARY, size)).astype(np.float32)
    return np.round(table * 1024) / 1024


def text_graph(path: Path, size: int) -> None:
    """The mean of a table's rows over the tokens that the mask keeps."""
    table = token_table(size)
    save_graph(
        path,
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
            helper.make_node("Mul", ["rows", "mask3"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "middle"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "middle"], ["count"], keepdims=1),
            helper.make_node("Div", ["total", "count"], ["embedding"]),
        ],
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "length"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["n", "length"]),
        ],
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", size]),
        {"table": table, "last": np.array([2]), "middle": np.array([1])},
    )


def byte_letters() -> list[str]:
    """The letters that a byte-level tokenizer has for bytes: printable ones are themselves, others begin at U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


def save_tokenizer(path: Path) -> None:
    """One token a byte, between a start and an end token."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(byte_letters()))}
    vocabulary |= {"<pad>": PAD, "<start>": START, "<end>": END}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<start>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<end>", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                token: {"id": token, "ids": [number], "tokens": [token]}
                for token, number in (("<start>", START), ("<end>", END))
            },
        },
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    path.write_text(json.dumps(content), "utf-8")


def write_manifest(folder: Path, changes: Mapping[str, Any]) -> None:
    """Write a manifest that fits the files in the folder; `changes` replace keys of it, or drop those set to ...."""
    files = [
        {"path": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    ]
    manifest = {
        "format": 1,
        "name": folder.name,
        "task": "dual-encoder",
        "description": "A fake, for tests.",
        "source": {"location": "tests/fakes.py", "revision": None, "licence": "Apache-2.0"},
        "precision": "fp32",
        "dimensions": 8,
        "logit_scale": 10.0,
        "logit_bias": 0.0,
        "activation": "softmax",
        "image": {"file": "image.onnx"},
        "text": {
            "file": "text.onnx",
            "tokenizer": "tokenizer.json",
            "context_length": 16,
            "padding": "longest",
            "pad_token_id": PAD,
        },
        "preprocess": {
            "resize": {"shortest_edge": SIDE},
            "resample": "bilinear",
            "crop": {"height": SIDE, "width": SIDE},
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "labels": [],
        "canonical": {},
        "files": files,
        "parity": {},
        "made_with": {},
        **changes,
    }
    folder.joinpath("manifest.json").write_text(
        json.dumps({key: value for key, value in manifest.items() if value is not ...})
    )


def make_dual_encoder(root: Path, name: str = "fake", dimensions: int = 8, **changes: Any) -> Path:
    """Write a dual encoder into root/name."""
    folder = root / name
    folder.mkdir(parents=True)
    image_graph(folder / "image.onnx", dimensions, "embedding")
    text_graph(folder / "text.onnx", dimensions)
    save_tokenizer(folder / "tokenizer.json")
    write_manifest(folder, {"dimensions": dimensions, **changes})
    return folder


def make_classifier(root: Path, name: str = "fake-classifier", **changes: Any) -> Path:
    """Write a classifier of three labels into root/name."""
    folder = root / name
    folder.mkdir(parents=True)
    image_graph(folder / "image.onnx", 3, "logits")
    labels = [{"label": label} for label in ("ant", "bee", "cat")]
    write_manifest(
        folder,
        {"task": "image-classification", "dimensions": 3, "labels": labels, "text": ..., "logit_scale": ..., **changes},
    )
    return folder


class CountingLoads:
    """A loader of graphs that counts loads and batches, and can be told to fail or wait."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.batches: list[int] = []
        self.before_run: Callable[[Mapping[str, np.ndarray]], None] = lambda inputs: None
        self._lock = threading.Lock()

    def __call__(self, threads: int | None, providers: Sequence[str]) -> LoadSession:
        real = load_on(1)

        def load(path: Path, inputs: tuple[str, ...], output: str) -> Any:
            session = real(path, inputs, output)
            with self._lock:
                self.loads.append(path.name)
            counter = self

            class Counting:
                one_by_one = session.one_by_one

                def run(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
                    counter.before_run(values)
                    counter.batches.append(len(next(iter(values.values()))))
                    return session.run(values)

            return Counting()

        return load
