"""Weights as 8-bit integers.

Matrix products: weights with one scale per column (symmetric, 8 bits, the "vector-wise" scheme of LLM.int8(),
https://arxiv.org/abs/2208.07339), activations with one scale per row, computed at run time. A row is one token of one
input, so a result does not depend on the rest of the batch, as it would with one scale for the whole tensor (ONNX
Runtime's own dynamic quantisation), and one token with outliers does not affect the others.

Token embeddings: one scale per token, and only the tokens of the text are converted to floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from datasette_vision.bake.graph import MICROSOFT, OnnxGraph
from datasette_vision.bake.smooth import smooth_products
from datasette_vision.bake.static import quantise_convolutions
from datasette_vision.install.prove import ModelInputs

HIGHEST = 127
BLOCK = 32
# Tables with fewer rows are positions, not tokens: small, and used by every text.
MIN_TOKENS = 256


def candidates(source: Path, ranges: Callable[[], Iterator[ModelInputs]], work: Path) -> dict[str, Path]:
    """Write quantised versions of the fp32 graph at `source` into `work`: name -> path. Empty if nothing can be
    quantised.

    `ranges` gives inputs that determine the ranges of activations.
    """
    found = {}
    smoothed = work / f"{source.stem}-smooth.onnx"
    plain = smoothed if smooth_products(source, smoothed, products, ranges()) else source
    for name, method in (("int8", quantise_products), ("int8-blocks", quantise_blocks)):
        path = work / f"{source.stem}-{name}.onnx"
        graph = OnnxGraph(plain)
        if method(graph):
            quantise_tables(graph)
            graph.save(path)
            found[name] = path
    smoothed.unlink(missing_ok=True)
    path = work / f"{source.stem}-int8-static.onnx"
    if quantise_convolutions(source, path, ranges):
        found["int8-static"] = path
    return found


def by_scale(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values and their scales: values ~ integers * scales, with the largest along `axis` becoming 127."""
    scales = np.abs(values).max(axis=axis, keepdims=True) / HIGHEST
    scales[scales == 0] = 1
    return np.rint(values / scales).astype(np.int8), scales.astype(np.float32)


def products(graph: OnnxGraph) -> list[tuple[NodeProto, NDArray[np.float32]]]:
    """Return the products of activations with constant matrices, and these matrices.

    Without the last projection: it is small, and its errors would directly affect the result.
    """
    outputs = {output.name for output in graph.graph.output}
    found = []
    for node in graph.nodes("MatMul"):
        weight = graph.weight(node.input[1])
        if weight is not None and weight.ndim == 2 and node.output[0] not in outputs:
            found.append((node, weight))
    return found


def quantise_products(graph: OnnxGraph) -> int:
    """Replace products with 8-bit ones, with a scale per column and a scale per row; return how many."""
    one = graph.add_weight("row_scale", np.array(1 / HIGHEST, np.float32))
    middle = graph.add_weight("row_zero", np.array(HIGHEST + 1, np.uint8))
    smallest = graph.add_weight("row_smallest", np.array(1e-12, np.float32))
    rows: set[str] = set()
    replaced = products(graph)
    for node, weight in replaced:
        name = node.input[1]
        x, y = node.input[0], node.output[0]
        if x not in rows:
            rows.add(x)
            graph.add("Abs", [x], [f"{x}_absolute"])
            graph.add("ReduceMax", [f"{x}_absolute"], [f"{x}_highest"], axes=[-1], keepdims=1)
            graph.add("Max", [f"{x}_highest", smallest], [f"{x}_row"])  # a row of zeros stays zero
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
    return len(replaced)


def quantise_blocks(graph: OnnxGraph) -> int:
    """Replace products with MatMulNBits: 8 bits, a scale for every 32 weights and every 32 activations; return how
    many.

    Twice the time of a scale per column, but more accurate: for models whose outliers affect whole columns or rows.
    """
    replaced = [(node, weight) for node, weight in products(graph) if len(weight) % BLOCK == 0]
    for node, weight in replaced:
        depth, width = weight.shape
        integers, scales = by_scale(weight.T.reshape(width, depth // BLOCK, BLOCK), 2)
        name = node.input[1]
        blocks = graph.add_weight(f"{name}_blocks", (integers.astype(np.int16) + HIGHEST + 1).astype(np.uint8))
        graph.remove(node)
        graph.add(
            "MatMulNBits",
            [node.input[0], blocks, graph.add_weight(f"{name}_scales", scales.reshape(-1))],
            [node.output[0]],
            domain=MICROSOFT,
            K=depth,
            N=width,
            bits=8,
            block_size=BLOCK,
            accuracy_level=4,  # activations as 8-bit integers too
        )
    graph.index()
    return len(replaced)


def quantise_tables(graph: OnnxGraph) -> int:
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
