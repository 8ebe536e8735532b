"""Outlier channels made tame before a graph is quantised, without changing what it computes.

A few channels of a trained transformer's activations are a hundred times larger than the rest. Where a row of
activations has one scale, nothing is left for the others. What normalises the row multiplies each channel by a weight
of its own: dividing that weight by a factor, and multiplying by it the row of each matrix that reads the channel, moves
the difficulty into the matrices, which have a scale for each column. That is SmoothQuant's equivalent transform with a
migration strength of a half, https://arxiv.org/abs/2211.10438 (equation 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from datasette_vision.bake.graph import OnnxGraph
from datasette_vision.engine.runtime import OnnxSession
from datasette_vision.install.prove import ModelInputs

RANGES = "ranges"

# Products of activations with constant matrices, and these matrices.
Products = list[tuple[NodeProto, NDArray[np.float32]]]
FindProducts = Callable[[OnnxGraph], Products]


def smooth_products(source: Path, target: Path, products: FindProducts, inputs: Iterator[ModelInputs]) -> int:
    """Write the graph at `source` to `target` with the outliers moved out of what `products` read.

    The largest activations are found over `inputs`. Returns how many values were smoothed; nothing is written for none.
    """
    largest = _largest(source, target, products, inputs)
    if not largest:
        return 0
    graph = OnnxGraph(source)
    for name, found in _smoothable(graph, products).items():
        weights = np.max([np.abs(matrix).max(axis=1) for _, matrix in found], axis=0)
        used = (largest[name] > 0) & (weights > 0)
        factors = np.ones_like(weights)
        factors[used] = np.sqrt(largest[name][used] / weights[used])
        norm = graph.maker[name]
        for position in range(1, len(norm.input)):
            constant = numpy_helper.to_array(graph.weights[norm.input[position]])
            norm.input[position] = graph.add_weight(f"{name}_smooth_{position}", constant / factors)
        for node, matrix in found:
            node.input[1] = graph.add_weight(f"{node.output[0]}_smooth", matrix * factors[:, None])
    graph.save(target)
    return len(largest)


def _smoothable(graph: OnnxGraph, products: FindProducts) -> dict[str, Products]:
    """Return the values that come from a normalisation and that nothing but products reads, with those products."""
    readers: dict[str, Products] = {}
    for node, matrix in products(graph):
        readers.setdefault(node.input[0], []).append((node, matrix))
    return {name: found for name, found in readers.items() if _is_normalised(graph, name, len(found))}


def _is_normalised(graph: OnnxGraph, name: str, products: int) -> bool:
    maker = graph.maker.get(name)
    return (
        maker is not None
        and maker.op_type == "LayerNormalization"
        and all(constant in graph.weights for constant in maker.input[1:])
        and len(graph.readers[name]) == products
    )


def _largest(
    source: Path, work: Path, products: FindProducts, inputs: Iterator[ModelInputs]
) -> dict[str, NDArray[np.float32]]:
    """Return the largest absolute value over the inputs of each channel of what can be smoothed: name -> (width,).

    Empty where nothing can be, or there are no inputs. `work` is the path of a graph that exists meanwhile.
    """
    graph = OnnxGraph(source)
    widths = {name: len(found[0][1]) for name, found in _smoothable(graph, products).items()}
    if not widths:
        return {}
    for name, width in widths.items():
        rows = graph.add_weight(f"{name}_rows", np.array([-1, width]))
        graph.add("Reshape", [name, rows], [f"{name}_flat"])
        graph.add("Abs", [f"{name}_flat"], [f"{name}_sizes"])
        graph.add("ReduceMax", [f"{name}_sizes"], [f"{name}_largest"], axes=[0], keepdims=0)
    graph.add("Concat", [f"{name}_largest" for name in widths], [RANGES], axis=0)
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info(RANGES, TensorProto.FLOAT, [sum(widths.values())]))
    graph.save(work)
    session = OnnxSession(work, inputs=tuple(value.name for value in graph.graph.input), output=RANGES)
    work.unlink()
    runs = [session.run(sample) for sample in inputs]
    if not runs:
        return {}
    parts = np.split(np.max(runs, axis=0), np.cumsum(list(widths.values()))[:-1])
    return dict(zip(widths, parts, strict=True))
