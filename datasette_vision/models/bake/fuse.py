"""The exported graph made lean, with the same answers: fewer and larger nodes, nothing computed that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from datasette_vision.errors import InstallFailed
from datasette_vision.models.bake.graph import MICROSOFT, Graph

LEVELS = onnxruntime.GraphOptimizationLevel
# Extended, not all: the level above lays weights out for the processor it runs on, and this file travels.
FUSED = LEVELS.ORT_ENABLE_EXTENDED
# Constants and batch normalisations folded, in standard operators: what convolutional graphs are quantised from.
FOLDED = LEVELS.ORT_ENABLE_BASIC


def optimise(source: Path, target: Path, level: Any = FUSED) -> None:
    """Have ONNX Runtime fold constants and fuse (GELU, QuickGELU, batch normalisation …), and save what it made.

    Raises InstallFailed when it cannot load the graph.
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
    """Optimise the graph at `source` by what changes no answer; `lean` adds our own fusions to ONNX Runtime's."""
    optimise(source, target, FOLDED)
    graph = Graph(target)
    if not graph.nodes("MatMul"):
        graph.save(target)  # convolutions: ONNX Runtime joins them with what follows as it loads them
        return
    optimise(source, target)
    graph = Graph(target)
    if lean:
        bypass_reshapes(graph)
        if graph.nodes("MultiHeadAttention"):  # else activations may be images, which SkipLayerNormalization refuses
            fuse_skips(graph)
        graph.save(target)
        optimise(target, target)  # what those laid bare
        graph = Graph(target)
    graph.save(target)


def bypass_reshapes(graph: Graph) -> None:
    """Join each MultiHeadAttention to the projections around it.

    transformers cuts projections into heads before its attention interface, and the export puts them together again:
    reshapes that end where they began.
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


def fuse_skips(graph: Graph) -> None:
    """Turn "add to the residual, then layer normalisation" into one SkipLayerNormalization, which gives both."""
    fused: set[str] = set()
    for node in graph.nodes("LayerNormalization"):
        addition = graph.maker.get(node.input[0])
        if (
            addition is None
            or addition.op_type != "Add"
            or addition.name in fused
            or any(name in graph.weights for name in addition.input)
        ):
            continue
        fused.add(addition.name)
        epsilon = next(attribute.f for attribute in node.attribute if attribute.name == "epsilon")
        graph.remove(node)
        graph.remove(addition)
        graph.add(
            "SkipLayerNormalization",
            [*addition.input, *node.input[1:]],
            [node.output[0], "", "", addition.output[0]],
            domain=MICROSOFT,
            epsilon=epsilon,
        )
    graph.index()
