"""What is done for an index while others search it: it is saved, since reading a large table takes long."""

from __future__ import annotations

import sqlite3
from enum import Enum
from pathlib import Path

from datasette_vision.retrieval import index_entry
from datasette_vision.retrieval.index_entry import CHANGED_PART, IndexEntry
from datasette_vision.tables.embedding_reader import Embeddings
from datasette_vision.util.progress import OnProgress, Progress, no_progress
from datasette_vision.vectors.codes import joined
from datasette_vision.vectors.index import alive_parts


class Step(Enum):
    """The next work on an index."""

    SAVE = "save"
    REBUILD = "rebuild: most of the table was added after the index was built"


def next_step(entry: IndexEntry, *, always_save: bool = False) -> Step | None:
    """Return the next useful step for an index.

    With `always_save` any index is saved, and the file must hold every change.
    """
    if entry.index is None or entry.state is None or not entry.can_save:
        return None
    view, unsaved = entry.index.view, entry.unsaved
    if not always_save and len(view) * entry.index.dimensions <= index_entry.SAVED_NUMBERS:
        return None
    if unsaved is None or (always_save and unsaved) or unsaved * CHANGED_PART * 2 > len(view):
        # Its space was chosen for what is in the base.
        return Step.REBUILD if len(view.tail) > len(view.base) else Step.SAVE
    return None


def save(entry: IndexEntry, path: Path, wanted: Embeddings) -> None:
    """Save an index, while others search. Raises OSError where it cannot be saved."""
    then = entry.moment()
    entry.settle(then, joined(alive_parts(then.view)), path, wanted)


def prepare_index(
    path: Path,
    connection: sqlite3.Connection,
    wanted: Embeddings,
    dimensions: int,
    on_progress: OnProgress[Progress] = no_progress,
) -> IndexEntry:
    """Save an index that holds the table as it is now, for `datasette vision index`. Raises OSError."""
    entry = IndexEntry()
    if not entry.open(path, connection, wanted, dimensions) or next_step(entry, always_save=True) is Step.REBUILD:
        entry = IndexEntry()
        entry.read(connection, wanted, dimensions, on_progress, path.parent)
    if next_step(entry, always_save=True):
        save(entry, path, wanted)
    return entry
