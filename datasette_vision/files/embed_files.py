"""Embeds files into Parquet, in this process. ray/job.py does it on a Ray cluster, in the same way for each image.

Images whose path is already in the output, with an embedding or an error, are skipped: run a stopped job again to
continue.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasette_vision.bulk.pipeline import Outcome, embed_all
from datasette_vision.bulk.tally import Summary, Tally
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import InvalidImage, Unreadable, VisionError, WrongTask
from datasette_vision.files.digest_set import DigestSet
from datasette_vision.files.inputs import Image, Inputs
from datasette_vision.files.model_transfer import fingerprint
from datasette_vision.files.parquet import ImageRow, Output, OutputForm
from datasette_vision.files.storage import place
from datasette_vision.images import decode as images
from datasette_vision.models.store import InstalledModel
from datasette_vision.tables.file_content import read_image
from datasette_vision.util.progress import OnProgress, no_progress

ROWS_PER_FILE = 10_000
# A shard is written at least this often, so that a kill loses no more work than this.
SECONDS_PER_FILE = 60.0

BY_PATH = "path"
BY_DIGEST = "digest"


@dataclass(frozen=True)
class Job:
    """What to embed, and the output.

    `column` is for Parquet inputs. `skip` says which images to skip: those whose path is in the output, or whose
    content is in the output under any path (digest). With `retry_errors` failed images are tried again.
    """

    inputs: tuple[str, ...]
    output: str
    model: str
    column: str | None = None
    skip: str = BY_PATH
    retry_errors: bool = False
    rows_per_file: int = ROWS_PER_FILE


@dataclass
class EmbedFilesSummary:
    """The result of a job. `ignored` counts the files in folders that are not images."""

    summary: Summary
    ignored: int = 0


@dataclass
class Prepared:
    """A job with its model and output."""

    job: Job
    output: Output
    inputs: Inputs
    known: DigestSet = field(default_factory=DigestSet)


def prepare(job: Job, model: InstalledModel) -> Prepared:
    """Create the output and read what it holds.

    Raises InvalidArgument if it holds other embeddings, StorageFailed, WrongTask for a classifier.
    """
    manifest = model.manifest
    if not manifest.form.embeds:
        raise WrongTask(f"{manifest.name!r} is for {manifest.task}: it makes no embeddings")
    output = Output(place(job.output).uri, OutputForm(manifest.name, fingerprint(manifest), manifest.dimensions))
    output.prepare()
    if job.retry_errors:
        output.forget_errors()
    inputs = Inputs(job.inputs, column=job.column, output=output.folder)
    return Prepared(job, output, inputs, output.known(job.skip))


def embed_files(
    job: Job, vision: Vision, *, workers: int | None = None, on_progress: OnProgress[Summary] = no_progress
) -> EmbedFilesSummary:
    """Embed in this process, calling `on_progress` after each image. Finished rows are written, whatever exception
    passes.

    Raises the errors of prepare() and Inputs.units(), and ModelCorrupt or Busy.
    """
    summary = Summary()
    tally = Tally(summary, on_progress)
    prepared = prepare(job, vision.store.find(job.model))
    writer = _Writer(prepared.output, job.rows_per_file)
    wanted = (image for unit in prepared.inputs.units() for image in unit.images(job.column))
    outcomes = embed_images(vision, job, _unseen(wanted, prepared.known, job.skip, tally), prepared.known, workers)
    threading.Thread(target=_count, args=(job, prepared.output, summary), daemon=True).start()
    try:
        tally.count(outcomes, lambda image: image.path, writer.take)
    finally:
        writer.flush()
    summary.total = summary.done
    tally.report()
    return EmbedFilesSummary(summary, prepared.inputs.ignored)


def _count(job: Job, output: Output, summary: Summary) -> None:
    """Count the images while the first ones are embedded: listing a store takes time."""
    with contextlib.suppress(VisionError):  # the embedding will raise it too
        total = 0
        for unit in Inputs(job.inputs, column=job.column, output=output.folder).units():
            total += unit.rows
            summary.total = max(total, summary.done)


def embed_images(
    vision: Vision, job: Job, wanted: Iterable[Image], known: DigestSet | None, workers: int | None
) -> Any:  # Generator[Outcome[Image], None, None]
    """Embed images in this process: yields an Outcome for each, in order; images in `known` are unchanged."""
    limit = vision.limits.max_bytes
    by_digest = known if job.skip == BY_DIGEST else None
    return embed_all(
        vision.image_tower(job.model),
        wanted,
        lambda image: read_image_file(image, limit),
        workers=workers,
        unchanged=None if by_digest is None else lambda _, digest: digest in by_digest,
        inspect=lambda _, content: images.info(content),
    )


def read_image_file(image: Image, max_bytes: int) -> bytes:
    """Return the content of an image file. Raises Unreadable, InvalidImage, StorageFailed, OSError."""
    if image.error is not None:
        raise Unreadable(image.error)
    if image.uri is None:
        assert image.content is not None
        return image.content
    where = place(image.uri)
    if not where.root:
        return read_image(Path(where.path), max_bytes)
    content = where.read(max_bytes)
    if len(content) > max_bytes:
        raise InvalidImage(f"an image of more than the {max_bytes / 1e6:g} MB allowed (max_image_mb)")
    return content


def row_of(outcome: Outcome[Image]) -> ImageRow | None:
    """Return the row of an image, None for a skipped one."""
    if outcome.unchanged:
        return None
    seen = outcome.inspected or {}
    return ImageRow(
        outcome.item.path,
        outcome.content_hash,
        seen.get("width"),
        seen.get("height"),
        outcome.vector,
        None if outcome.error is None else str(outcome.error),
    )


def _unseen(wanted: Iterable[Image], known: DigestSet, skip: str, tally: Tally) -> Iterator[Image]:
    """Yield the images whose path is new, each path once, even if two inputs contain it."""
    seen = DigestSet()
    for image in wanted:
        if skip == BY_PATH and image.path in known:
            tally.skip()
        elif seen.add(image.path):
            yield image


class _Writer:
    """Collects rows and writes them as shards."""

    def __init__(self, output: Output, rows_per_file: int) -> None:
        self._output = output
        self._rows_per_file = rows_per_file
        self._rows: list[ImageRow] = []
        self._since = time.monotonic()

    def take(self, outcome: Outcome[Image]) -> None:
        row = row_of(outcome)
        if row is None:
            return
        self._rows.append(row)
        if len(self._rows) >= self._rows_per_file or time.monotonic() - self._since >= SECONDS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        rows, self._rows = self._rows, []
        self._output.write(self._output.form.table(rows))
        self._since = time.monotonic()
