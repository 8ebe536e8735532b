"""Weights as 8-bit integers.

Matrix products: weights with one scale a column (symmetric, 8 bits, LLM.int8()'s "vector-wise" scheme,
https://arxiv.org/abs/2208.07339), activations with one scale a row, found as the graph runs. A row is one token of one
input: so an answer does not depend on what else is in the batch, as it does where one scale serves the whole tensor
(ONNX Runtime's own dynamic quantisation), and one token with outliers does not spoil the others.

Token embeddings: one scale a token, only the tokens of the text being turned into floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasette_vision.models.bake.graph import MICROSOFT, Graph
from datasette_vision.models.bake.prove import Inputs
from datasette_vision.models.bake.static import quantise_convolutions

HIGHEST = 127
# Tables with fewer rows are positions, not tokens: small, and every text uses them.
MIN_TOKENS = 256


def candidates(source: Path, samples: Sequence[Inputs], work: Path) -> dict[str, Path]:
    """Write quantised versions of the fp32 graph at `source` into `work`: name -> path. None where nothing can be."""
    found = {}
    path = work / f"{source.stem}-int8.onnx"
    if quantise(source, path):
        found["int8"] = path
    path = work / f"{source.stem}-int8-static.onnx"
    if quantise_convolutions(source, path, samples):
        found["int8-static"] = path
    return found


def quantise(source: Path, target: Path) -> int:
    """Write the graph at `source` to `target` with 8-bit matrix products and token embeddings; return how many."""
    graph = Graph(source)
    count = quantise_products(graph) + quantise_tables(graph)
    graph.save(target)
    return count


def by_scale(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values and their scales: values ~ integers * scales, the largest along `axis` becoming 127."""
    scales = np.abs(values).max(axis=axis, keepdims=True) / HIGHEST
    scales[scales == 0] = 1
    return np.rint(values / scales).astype(np.int8), scales.astype(np.float32)


def quantise_products(graph: Graph) -> int:
    """Replace products of activations and constant matrices; return how many."""
    one = graph.add_weight("row_scale", np.array(1 / HIGHEST, np.float32))
    middle = graph.add_weight("row_zero", np.array(HIGHEST + 1, np.uint8))
    smallest = graph.add_weight("row_smallest", np.array(1e-12, np.float32))
    rows: set[str] = set()
    count = 0
    outputs = {output.name for output in graph.graph.output}
    for node in graph.nodes("MatMul"):
        name, weight = node.input[1], graph.weight(node.input[1])
        # The last projection is small, and its errors would be the answer's.
        if weight is None or weight.ndim != 2 or node.output[0] in outputs:
            continue
        count += 1
        x, y = node.input[0], node.output[0]
        if x not in rows:
            rows.add(x)
            graph.add("Abs", [x], [f"{x}_absolute"])
            graph.add("ReduceMax", [f"{x}_absolute"], [f"{x}_highest"], axes=[-1], keepdims=1)
            graph.add("Max", [f"{x}_highest", smallest], [f"{x}_row"])  # a row of zeros stays one
            graph.add("Div", [x, f"{x}_row"], [f"{x}_unit"])
            graph.add("QuantizeLinear", [f"{x}_unit", one, middle], [f"{x}_integer"])
        integers, scales = by_scale(weight, 0)
        graph.add(
            "MatMulIntegerToFloat",
            [
                f"{x}_integer",
                graph.add_weight(f"{name}_integer", integers),
                one,
                graph.add_weight(f"{name}_scale", scales[0]),
                middle,
                graph.add_weight(f"{name}_zero", np.zeros(weight.shape[1], np.int8)),
            ],
            [f"{y}_unit"],
            domain=MICROSOFT,
        )
        graph.remove(node)
        graph.add("Mul", [f"{y}_unit", f"{x}_row"], [y])
    graph.index()
    return count


def quantise_tables(graph: Graph) -> int:
    """Replace tables of token embeddings; return how many."""
    count = 0
    for node in graph.nodes("Gather"):
        name, table = node.input[0], graph.weight(node.input[0])
        if table is None or table.ndim != 2 or len(table) < MIN_TOKENS or table.dtype != np.float32:
            continue
        if any(attribute.name == "axis" and attribute.i != 0 for attribute in node.attribute):
            continue
        count += 1
        integers, scales = by_scale(table, 1)
        y, ids = node.output[0], node.input[1]
        graph.remove(node)
        graph.add("Gather", [graph.add_weight(f"{name}_integer", integers), ids], [f"{y}_integer"])
        graph.add("Gather", [graph.add_weight(f"{name}_scale", scales), ids], [f"{y}_scale"])
        graph.add("Cast", [f"{y}_integer"], [f"{y}_float"], to=1)
        graph.add("Mul", [f"{y}_float", f"{y}_scale"], [y])
    graph.index()
    return count
