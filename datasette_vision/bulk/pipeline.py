"""Bulk work: reading, decoding and inference overlap, memory stays bounded, and every item gets its outcome.

::

    vision = Vision(config_for_bulk())
    for outcome in embed(vision.image_tower("clip"), paths, Path.read_bytes):
        if outcome.error is None:
            save(outcome.item, outcome.content_hash, outcome.vector)

One thread each reads, digests and decodes; the queue of the model's tower, which a server may share, computes. What
several items have in common, byte for byte, is computed once. A bad item has an `error` and stops nobody. Neither the
pixels (`ahead` of the queue) nor the outcomes that wait (`WINDOW`) grow with the number of items, and an item is let go
of when it is handed out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable
from typing import Any

from numpy.typing import NDArray

from datasette_vision.bulk.pipeline_stages import Item, Outcome, Pipeline
from datasette_vision.config.settings import Config
from datasette_vision.engine.runtime import default_threads
from datasette_vision.engine.services import BulkTower

__all__ = ["BATCH_SIZE", "Outcome", "config_for_bulk", "embed_all"]

# Larger batches gain nothing on a processor (CLIP int8: 29 ms an image for 1, 27 for 8, 30 for 32) and cost memory.
BATCH_SIZE = 8


def config_for_bulk(
    config: Config | None = None, *, workers: int | None = None, batch_size: int | None = None
) -> Config:
    """Return a configuration for a process that does nothing but bulk work on `workers` cores (all of them).

    Each core computes batches of its own, on one thread: no core ever waits for another half of a product, and what
    decodes beside it takes the turns that are left.
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

    `items` is iterated on the worker threads, one at a time, a little ahead. All functions run on them too, several at
    once:

    - `read(item)` returns the content: an image file, or a text in UTF-8. What it raises of OSError, InvalidInput or
      StorageFailed is the item's error.
    - `unchanged(item, content_hash)`: whether nothing is to be done for it.
    - `known(content_hash)`: the vector, if it is there from before.
    - `inspect(item, content)`: something else to be found out of the content, for each item that is not unchanged. What
      it raises of InvalidInput is the item's error.

    `workers` (one a core, and two that wait for the disk) read and decode; at most `max_queued` of the items (`ahead`
    of the queue) are decoded or in the queue at a time, so that others who use the model are served in between.

    Raises what is not an item's fault: ModelCorrupt, Busy when the model's queue is closed, and whatever `items` and
    the functions raise of other kinds.
    """
    run = Pipeline(tower, iter(items), read, in_order, unchanged, known, inspect)
    yield from run.outcomes(workers or default_threads() + 2, max_queued)
