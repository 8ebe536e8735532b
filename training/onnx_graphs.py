"""The two towers as ONNX graphs, written node by node: small, readable, and free of what an exporter leaves behind.

Weights are stored in fp16 and the token embeddings in int8 with one scale per token; both are turned into fp32 where
they are used. ONNX Runtime folds the former when it loads the model; of the latter only the tokens of the text are
looked up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from model import ImageTower, Layer, Residual, TextTower

OPSET = 17
IR_VERSION = 8  # what ONNX Runtime 1.17 reads


class Graph:
    """Collects nodes and weights; every method returns the name of the value it makes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []

    def node(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output."""
        output = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, values: np.ndarray, name: str | None = None) -> str:
        """A weight stored as it is."""
        name = name or f"constant_{len(self.initialisers)}"
        self.initialisers.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def weight(self, tensor: torch.Tensor) -> str:
        """A weight stored in fp16 and used in fp32. Vectors are few and stay in fp32."""
        values = tensor.detach().numpy()
        if values.ndim < 2:
            return self.constant(values.astype(np.float32))
        return self.node("Cast", self.constant(values.astype(np.float16)), to=TensorProto.FLOAT)

    def integers(self, *values: int) -> str:
        """A small int64 vector: axes, shapes."""
        return self.constant(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """One float."""
        return self.constant(np.array(value, np.float32))

    def linear(self, x: str, layer: nn.Linear) -> str:
        """x @ weight.T + bias."""
        product = self.node("MatMul", x, self.weight(layer.weight.T))
        return product if layer.bias is None else self.node("Add", product, self.weight(layer.bias))

    def normalise(self, x: str, layer: nn.LayerNorm) -> str:
        """Layer normalisation over the last axis."""
        scale, bias = self.weight(layer.weight), self.weight(layer.bias)
        return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=layer.eps)

    def model(self, inputs: list[onnx.ValueInfoProto], dimensions: int) -> onnx.ModelProto:
        """The finished, checked model; its output is "embedding", (n, dimensions)."""
        output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dimensions])
        graph = helper.make_graph(self.nodes, "tiny-emoji", inputs, [output], self.initialisers)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="datasette-vision",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _convolution(graph: Graph, x: str, block: nn.Sequential) -> str:
    """Convolution with its batch normalisation folded in, and the ReLU if the block has one."""
    convolution, batch_norm = block[0], block[1]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(batch_norm, nn.BatchNorm2d)
    scale = batch_norm.weight / (batch_norm.running_var + batch_norm.eps).sqrt()
    weight = convolution.weight * scale.view(-1, 1, 1, 1)
    bias = batch_norm.bias - batch_norm.running_mean * scale
    stride = list(convolution.stride)
    made = graph.node(
        "Conv", x, graph.weight(weight), graph.weight(bias), kernel_shape=[3, 3], strides=stride, pads=[1, 1, 1, 1]
    )
    return graph.node("Relu", made) if len(block) > 2 else made


def image_graph(tower: ImageTower, dimensions: int) -> onnx.ModelProto:
    """pixel_values (n, 3, h, w) float32 -> embedding (n, d) float32."""
    graph = Graph()
    x = "pixel_values"
    for block in tower.trunk:
        if isinstance(block, Residual):
            inner = _convolution(graph, _convolution(graph, x, block.first), block.second)
            x = graph.node("Relu", graph.node("Add", x, inner))
        else:
            x = _convolution(graph, x, block)
    pooled = graph.node("Concat", graph.node("GlobalAveragePool", x), graph.node("GlobalMaxPool", x), axis=1)
    graph.node("MatMul", graph.node("Flatten", pooled), graph.weight(tower.project.weight.T), name="embedding")
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, "height", "width"])
    return graph.model([pixels], dimensions)


def _transformer_layer(graph: Graph, x: str, layer: Layer, hidden: str) -> str:
    width = layer.out.in_features
    size = width // layer.heads
    joint = graph.linear(graph.normalise(x, layer.before_attention), layer.query_key_value)
    split = graph.node("Reshape", joint, graph.integers(0, 0, 3, layer.heads, size))
    ordered = graph.node("Transpose", split, perm=[2, 0, 3, 1, 4])
    query, key, value = (graph.node("Gather", ordered, graph.constant(np.array(part)), axis=0) for part in range(3))
    products = graph.node("MatMul", query, graph.node("Transpose", key, perm=[0, 1, 3, 2]))
    scores = graph.node("Add", graph.node("Mul", products, graph.scalar(size**-0.5)), hidden)
    mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
    merged = graph.node("Reshape", graph.node("Transpose", mixed, perm=[0, 2, 1, 3]), graph.integers(0, 0, width))
    x = graph.node("Add", x, graph.linear(merged, layer.out))
    first, _, second = layer.mlp
    inner = graph.linear(graph.normalise(x, layer.before_mlp), first)
    # The exact GELU: x / 2 * (1 + erf(x / sqrt 2)); ONNX Runtime fuses it.
    erf = graph.node("Erf", graph.node("Div", inner, graph.scalar(2**0.5)))
    gelu = graph.node("Mul", graph.node("Mul", inner, graph.node("Add", erf, graph.scalar(1.0))), graph.scalar(0.5))
    return graph.node("Add", x, graph.linear(gelu, second))


def text_graph(tower: TextTower, dimensions: int) -> onnx.ModelProto:
    """input_ids, attention_mask (n, length) int64 -> embedding (n, d) float32."""
    graph = Graph()
    table = tower.tokens.weight.detach().numpy()
    scale = np.abs(table).max(1, keepdims=True) / 127 + 1e-12
    rows = graph.node("Gather", graph.constant(np.round(table / scale).astype(np.int8)), "input_ids", axis=0)
    scales = graph.node("Gather", graph.constant(scale.astype(np.float32)), "input_ids", axis=0)
    x = graph.node("Mul", graph.node("Cast", rows, to=TensorProto.FLOAT), scales)

    mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    penalty = graph.node("Mul", graph.node("Sub", mask, graph.scalar(1.0)), graph.scalar(1e4))
    hidden = graph.node("Unsqueeze", penalty, graph.integers(1, 2))
    length = graph.node("Slice", graph.node("Shape", "input_ids"), graph.integers(1), graph.integers(2))
    positions = graph.node("Slice", graph.weight(tower.positions), graph.integers(0), length, graph.integers(0))
    x = graph.node("Add", x, positions)
    for layer in tower.layers:
        assert isinstance(layer, Layer)
        x = _transformer_layer(graph, x, layer, hidden)
    kept = graph.node("Unsqueeze", mask, graph.integers(2))
    total = graph.node(
        "ReduceSum", graph.node("Mul", graph.normalise(x, tower.norm), kept), graph.integers(1), keepdims=0
    )
    count = graph.node("ReduceSum", mask, graph.integers(1), keepdims=1)
    mean = graph.node("Div", total, graph.node("Max", count, graph.scalar(1.0)))
    graph.node("MatMul", mean, graph.weight(tower.project.weight.T), name="embedding")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    return graph.model(inputs, dimensions)
