"""Which files of a model belong to a graph: one above 2 GB cannot hold its own weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def weights_beside(graph: str, names: Iterable[str]) -> list[str]:
    """Return those of `names` that hold weights of a graph, by what they are called."""
    if not graph.endswith(".onnx"):
        return []
    stem = graph.removesuffix(".onnx")
    return sorted(
        name
        for name in names
        if name.startswith((f"{graph}_data", f"{graph}.data")) or name in {f"{stem}.data", f"{stem}.bin"}
    )


def files_of_graph(graph: str, names: Sequence[str]) -> list[str]:
    """Return those of `names` that loading a graph may read: itself, weights_beside() it, and all else in its folder.

    The model's own folder is not such a folder: it holds the other tower, and the tokenizer.
    """
    folder = graph.rpartition("/")[0]
    together = [name for name in names if folder and name.rpartition("/")[0] == folder]
    return sorted({graph, *weights_beside(graph, names), *together})
