"""Bulk work: reading, decoding and inference overlap, memory stays bounded, and every item gets an outcome.

::

    vision = Vision(config_for_bulk())
    for outcome in embed_all(vision.image_tower("clip"), paths, Path.read_bytes):
        if outcome.error is None:
            save(outcome.item, outcome.content_hash, outcome.vector)

Threads read, digest and decode; the queue of the model's tower, which a server may share, computes. Identical content
is computed once. A bad item has an `error` and does not stop the others. Neither the pixels (`ahead` of the queue) nor
the waiting outcomes (`WINDOW`) grow with the number of items, and an item is released when it is yielded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable
from typing import Any

from numpy.typing import NDArray

from datasette_vision.bulk.pipeline_stages import Inspected, Item, Outcome, Pipeline
from datasette_vision.config.settings import Config
from datasette_vision.engine.runtime import default_threads
from datasette_vision.engine.services import BulkTower

__all__ = ["BATCH_SIZE", "Inspected", "Outcome", "config_for_bulk", "embed_all"]

# Larger batches gain nothing on a CPU (CLIP int8: 29 ms per image for 1, 27 for 8, 30 for 32) and cost memory.
BATCH_SIZE = 8


def config_for_bulk(
    config: Config | None = None, *, workers: int | None = None, batch_size: int | None = None
) -> Config:
    """Return a configuration for a process that does only bulk work, on `workers` cores (all by default).

    Each core computes its own batches on one thread, so no core waits for another's half of a product. Decoding runs on
    the same cores in the remaining time.
    """
    config = config or Config()
    return dataclasses.replace(
        config,
        threads=1,
        replicas=workers or default_threads(),
        max_batch_size=batch_size or BATCH_SIZE,
        cache_mb=0,
        models={
            name: dataclasses.replace(own, threads=None, replicas=None, max_batch_size=None)
            for name, own in config.models.items()
        },
    )


def embed_all(
    tower: BulkTower,
    items: Iterable[Item],
    read: Callable[[Item], bytes],
    *,
    workers: int | None = None,
    in_order: bool = True,
    max_queued: int | None = None,
    unchanged: Callable[[Item, str], bool] | None = None,
    known: Callable[[str], NDArray[Any] | None] | None = None,
    inspect: Callable[[Item, bytes], Any] | None = None,
) -> Generator[Outcome[Item], None, None]:
    """Yield the outcome of each item, in order or as they come. Closing the iterator stops the work.

    `items` is iterated on the worker threads, one at a time, slightly ahead. All functions run on these threads too,
    several at a time:

    - `read(item)` returns the content: an image file, or a text in UTF-8. OSError, InvalidInput and
      StorageFailed become the item's error.
    - `unchanged(item, content_hash)`: whether there is nothing to do for it.
    - `known(content_hash)`: the vector, if it was computed before.
    - `inspect(item, content)`: computes something else from the content, for each item that is not unchanged.
      InvalidInput becomes the item's error. If it returns Inspected, the tower's `prepare` is not called.

    `workers` threads (one per core, and two that wait for the disk) read and decode. At most `max_queued` items (or
    `ahead` of the queue) are decoded or in the queue at a time, so that other users of the model are served in between.

    Raises errors that are not an item's fault: ModelCorrupt, Busy if the model's queue is closed, and other exceptions
    of `items` and the functions.
    """
    run = Pipeline(tower, iter(items), read, in_order, unchanged, known, inspect)
    yield from run.outcomes(workers or default_threads() + 2, max_queued)
