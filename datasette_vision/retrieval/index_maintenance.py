"""Work that makes an index faster: building a graph for large tables, and saving what took long to make."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import numpy as np

from datasette_vision.retrieval.index_entry import CHANGED_PART, IndexEntry
from datasette_vision.tables.embedding_reader import Embeddings
from datasette_vision.util.progress import OnProgress, Progress, no_progress
from datasette_vision.vectors import hnsw
from datasette_vision.vectors.eight_bit import Flat, joined
from datasette_vision.vectors.hnsw import HnswGraph
from datasette_vision.vectors.index import alive_parts

logger = logging.getLogger(__name__)

# Numbers that can all be compared with a query in about 10 ms: 500,000 embeddings of 512.
FLAT_NUMBERS = 256_000_000
# Above this, reading the table takes so long that a file is worth it: 50,000 embeddings of 512.
SAVED_NUMBERS = 25_600_000
# A graph keeps deleted rows: if more than this part of it is deleted, it is rebuilt.
DEAD_PART = 3

# The size that the rows beside a graph may have, as a part of it, before they are added to it.
TAIL_PART = 4


class Step(Enum):
    """The next work on an index."""

    GRAPH = "build a graph of all"
    EXTEND = "add new rows to the graph"
    SAVE = "save"
    REBUILD = "rebuild: too many deleted rows"


def next_step(entry: IndexEntry, *, always_save: bool = False) -> Step | None:
    """Return the next useful step for an index.

    With `always_save` any index is saved, and the file must hold every change.
    """
    if entry.index is None:
        return None
    view, dimensions, unsaved = entry.index.view, entry.index.dimensions, entry.unsaved
    if isinstance(view.base, HnswGraph):
        gone = 0 if view.base_alive is None else len(view.base) - int(np.count_nonzero(view.base_alive))
        if gone * DEAD_PART > len(view.base):
            return Step.REBUILD
        if len(view.tail) * dimensions * TAIL_PART > FLAT_NUMBERS or (always_save and len(view.tail)):
            return Step.EXTEND
        return Step.SAVE if always_save and unsaved != 0 else None
    if len(view) * dimensions > FLAT_NUMBERS:
        return Step.GRAPH
    if not entry.can_save or not (always_save or len(view) * dimensions > SAVED_NUMBERS):
        return None
    if unsaved is None or (always_save and unsaved) or unsaved * CHANGED_PART * 2 > len(view):
        return Step.SAVE
    return None


def carry_out(
    entry: IndexEntry,
    step: Step,
    path: Path | None,
    wanted: Embeddings,
    on_progress: OnProgress[Progress] = no_progress,
    stop: Callable[[], bool] = lambda: False,
    threads: int = 0,
) -> bool:
    """Do a step, while searches continue. Returns False if `stop()` ended it.

    Raises OSError if the index cannot be saved; the index in memory is updated in any case.
    """
    then = entry.moment()
    view, dimensions = then.view, then.index.dimensions
    base, alive = view.base, view.base_alive
    path = path if entry.can_save and then.state is not None else None
    if step is Step.SAVE:
        if isinstance(base, Flat):
            base, alive = joined(alive_parts(view)), None
        assert isinstance(base, Flat) or not len(view.tail), "a graph is extended before it is saved"
        entry.settle(then, base, alive, path, wanted)
        return True
    onto = base if isinstance(base, HnswGraph) else None
    added = view.tail if view.tail_alive is None else view.tail.take(view.tail_alive)
    parts = alive_parts(view) if onto is None else [added]
    graph = hnsw.build_graph(
        parts,
        dimensions,
        onto=onto,
        threads=threads,
        on_progress=on_progress,
        stop=stop,
    )
    if graph is None:
        return False
    if onto is None:
        recall = hnsw.tune(graph, joined(parts))
        logger.info("%s: recall@10 %.3f with %d candidates", wanted.source.table, recall, graph.expansion)
    elif alive is not None:
        alive = np.concatenate([alive, np.ones(len(added), np.bool_)])
    entry.settle(then, graph, None if onto is None else alive, path, wanted)
    return True


def prepare_index(
    path: Path,
    connection: sqlite3.Connection,
    wanted: Embeddings,
    dimensions: int,
    on_progress: OnProgress[Progress] = no_progress,
) -> IndexEntry:
    """Save an index that holds the table as it is now, for `datasette vision index`. Raises OSError."""
    entry = IndexEntry()
    if not entry.open(path, connection, wanted, dimensions) or next_step(entry) is Step.REBUILD:
        entry = IndexEntry()
        entry.read(connection, wanted, dimensions, on_progress)
    while step := next_step(entry, always_save=True):
        carry_out(entry, step, path, wanted, on_progress)
    return entry
