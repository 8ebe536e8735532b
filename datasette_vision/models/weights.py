"""Which files belong to a graph: one above 2 GB cannot contain its own weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def weights_beside(graph: str, names: Iterable[str]) -> list[str]:
    """Return those of `names` that hold weights of a graph, by their names."""
    if not graph.endswith(".onnx"):
        return []
    stem = graph.removesuffix(".onnx")
    return sorted(
        name
        for name in names
        if name.startswith((f"{graph}_data", f"{graph}.data")) or name in {f"{stem}.data", f"{stem}.bin"}
    )


def files_of_graph(graph: str, names: Sequence[str]) -> list[str]:
    """Return those of `names` that loading a graph may read: the graph, weights_beside() it, and everything else in its
    folder.

    This does not apply to the model's own folder, which holds the other tower and the tokenizer.
    """
    folder = graph.rpartition("/")[0]
    together = [name for name in names if folder and name.rpartition("/")[0] == folder]
    return sorted({graph, *weights_beside(graph, names), *together})
