"""Simplifies the exported graph without changing its results: fewer and larger nodes, and constants computed in
advance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper

from datasette_vision.bake.graph import OnnxGraph
from datasette_vision.errors import InstallFailed

LEVELS = onnxruntime.GraphOptimizationLevel
# Extended, not all: the level above arranges weights for the current CPU, and this file is used on others.
FUSED = LEVELS.ORT_ENABLE_EXTENDED
# Constants and batch normalisations folded, in standard operators: the basis for quantising convolutional graphs.
FOLDED = LEVELS.ORT_ENABLE_BASIC


def optimise(source: Path, target: Path, level: Any = FUSED) -> None:
    """Let ONNX Runtime fold constants and fuse nodes (GELU, QuickGELU, batch normalisation …), and save the result.

    Raises InstallFailed if it cannot load the graph.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InstallFailed(
            f"ONNX Runtime cannot load the exported graph: {' '.join(str(error).split())[:300]}"
        ) from error


def fuse(source: Path, target: Path, *, lean: bool = True) -> None:
    """Optimise the graph at `source` without changing its results. `lean` adds our own fusions to ONNX Runtime's."""
    optimise(source, target, FOLDED)
    graph = OnnxGraph(target)
    if not graph.nodes("MatMul"):
        graph.save(target)  # convolutions: ONNX Runtime fuses them with the following nodes when it loads them
        return
    optimise(source, target)
    graph = OnnxGraph(target)
    if lean:
        bypass_reshapes(graph)
        fuse_biases(graph)
        join_projections(graph)
        patches_to_products(graph)
        graph.save(target)
        optimise(target, target)  # nodes that can be fused only now
        graph = OnnxGraph(target)
    graph.save(target)


def bypass_reshapes(graph: OnnxGraph) -> None:
    """Connect each MultiHeadAttention directly to the projections around it.

    transformers splits projections into heads before its attention interface, and the export joins them again: these
    reshapes cancel each other.
    """
    for node in graph.nodes("MultiHeadAttention"):
        for position in range(3):
            name = node.input[position]
            while (maker := graph.maker.get(name)) is not None and maker.op_type in ("Reshape", "Transpose"):
                name = maker.input[0]
            node.input[position] = name
        waiting = [node.output[0]]
        while waiting:
            name = waiting.pop()
            for reader in graph.readers[name]:
                if reader.op_type == "Reshape":
                    waiting.append(reader.output[0])
            if name != node.output[0]:
                graph.reread(name, node.output[0])
    graph.index()


def fuse_biases(graph: OnnxGraph) -> None:
    """Move the biases of the projections before each MultiHeadAttention into it, instead of three additions."""
    for node in graph.nodes("MultiHeadAttention"):
        if len(node.input) != 3:
            continue
        additions = [graph.maker.get(name) for name in node.input]
        biases, products = [], []
        for addition in additions:
            if addition is None or addition.op_type != "Add":
                break
            constant = [name for name in addition.input if name in graph.weights]
            computed = [name for name in addition.input if name not in graph.weights]
            bias = graph.weight(constant[0]) if len(constant) == 1 else None
            if bias is None or bias.ndim != 1:
                break
            biases.append(bias)
            products += computed
        if len(products) == 3:
            joint = graph.add_weight(f"{node.output[0]}_bias", np.concatenate(biases))
            del node.input[:]
            node.input.extend([*products, joint])
    graph.index()


def join_projections(graph: OnnxGraph) -> None:
    """Compute queries, keys and values with one matrix product instead of three: fewer starts and waits."""
    for node in graph.nodes("MultiHeadAttention"):
        names = list(node.input[:3])
        makers = [graph.maker.get(name) for name in names]
        products = [maker for maker in makers if maker is not None and maker.op_type == "MatMul"]
        matrices = [graph.weight(product.input[1]) for product in products]
        found = [matrix for matrix in matrices if matrix is not None and matrix.ndim == 2]
        alone = all(len(graph.readers[name]) == 1 for name in names)
        if len(found) != 3 or not alone or len({product.input[0] for product in products}) != 1:
            continue
        x, y = products[0].input[0], node.output[0]
        matrix = graph.add_weight(f"{y}_projections", np.concatenate(found, axis=1))
        sizes = graph.add_weight(f"{y}_sizes", np.array([each.shape[1] for each in found]))
        for product in products:
            graph.remove(product)
        graph.add("MatMul", [x, matrix], [f"{y}_projected"])
        graph.add("Split", [f"{y}_projected", sizes], names, axis=-1)
    graph.index()


def patches_to_products(graph: OnnxGraph) -> None:
    """Replace the convolution that extracts patches, whose kernels do not overlap, with one matrix product.

    (n, c, h, w) -> Conv -> (n, d, rows, columns) -> Reshape, Transpose -> (n, patches, d). ONNX Runtime's convolution
    takes twice the time for such large kernels.
    """
    height_width = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in graph.graph.input
    }
    for node in graph.nodes("Conv"):
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight, shape = graph.weight(node.input[1]), height_width.get(node.input[0], [])
        if weight is None or len(shape) != 4 or settings.get("group", 1) != 1 or any(settings.get("pads", [0])):
            continue
        width, channels, *kernel = weight.shape
        if list(settings["strides"]) != kernel or shape[2] % kernel[0] or shape[3] % kernel[1]:
            continue
        reshapes = [reader for reader in graph.readers[node.output[0]] if reader.op_type == "Reshape"]
        turns = [reader for reshape in reshapes for reader in graph.readers[reshape.output[0]]]
        if len(turns) != 1 or turns[0].op_type != "Transpose" or list(turns[0].attribute[0].ints) != [0, 2, 1]:
            continue
        x, y = node.input[0], turns[0].output[0]
        rows, columns = shape[2] // kernel[0], shape[3] // kernel[1]
        cut = graph.add_weight(f"{y}_cut", np.array([0, channels, rows, kernel[0], columns, kernel[1]]))
        flat = graph.add_weight(f"{y}_flat", np.array([0, rows * columns, channels * kernel[0] * kernel[1]]))
        matrix = graph.add_weight(f"{y}_patch", weight.reshape(width, -1).T)
        graph.remove(turns[0])
        graph.add("Reshape", [x, cut], [f"{y}_parts"])
        graph.add("Transpose", [f"{y}_parts"], [f"{y}_turned"], perm=[0, 2, 4, 1, 3, 5])
        graph.add("Reshape", [f"{y}_turned", flat], [f"{y}_patches"])
        if len(node.input) > 2:
            graph.add("MatMul", [f"{y}_patches", matrix], [f"{y}_product"])
            graph.add("Add", [f"{y}_product", node.input[2]], [y])
        else:
            graph.add("MatMul", [f"{y}_patches", matrix], [y])
    graph.index()
