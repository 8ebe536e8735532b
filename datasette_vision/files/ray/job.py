"""Embeds files into Parquet on a Ray cluster, with Ray Data: the same pipeline as in one process, on many.

Images flow in blocks to a pool of actors that grows and shrinks with the work. Each actor holds the model: from the
models folder of its machine, or sent by Ray if it is missing there. Tasks write the results, a shard each, under a name
derived from its paths: a shard that is written again, because a machine died, replaces itself. Ray and Ray Data retry
failed work and schedule it.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Datasink

from datasette_vision.bulk.pipeline import config_for_bulk
from datasette_vision.bulk.tally import SHOWN_FAILURES, Summary
from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import VisionError
from datasette_vision.files.digest_set import DigestSet
from datasette_vision.files.embed_files import BY_PATH, EmbedFilesSummary, Job, Prepared, embed_images, prepare, row_of
from datasette_vision.files.inputs import Image, Unit
from datasette_vision.files.model_transfer import has, pack, unpack
from datasette_vision.files.parquet import Output, OutputForm
from datasette_vision.files.ray.cluster import cluster, own_errors
from datasette_vision.models.store import ModelStore

logger = logging.getLogger(__name__)

# The work that is lost and repeated when a worker dies: a few seconds of one core.
IMAGES_PER_BLOCK = 128
IMAGES_PER_GPU_BLOCK = 2048
# Files written at a time. Each has a process, which takes longer to start than the file to be written.
WRITERS = 4
CUDA = "CUDAExecutionProvider"
GPU_BATCH_SIZE = 64

IMAGES = pa.schema(
    [("path", pa.string()), ("uri", pa.string()), ("content", pa.large_binary()), ("error", pa.string())]
)
UNITS = pa.schema([("uri", pa.string()), ("row_group", pa.int64()), ("first", pa.int64()), ("rows", pa.int64())])


@dataclass(frozen=True)
class Workers:
    """How to distribute the work: `minimum` to `maximum` actors (None: as many as fit), and the resources of each."""

    minimum: int = 1
    maximum: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    batch_size: int | None = None
    images_per_block: int | None = None

    @property
    def block(self) -> int:
        """Images that are handed out together: many more for a GPU, which is as quick with them."""
        return self.images_per_block or (IMAGES_PER_GPU_BLOCK if self.gpus else IMAGES_PER_BLOCK)

    def config(self, config: Config) -> Config:
        """Return the configuration of one actor."""
        if not self.gpus:
            return config_for_bulk(config, workers=self.cpus, batch_size=self.batch_size)
        chosen = config_for_bulk(config, workers=2, batch_size=self.batch_size or GPU_BATCH_SIZE)
        return dataclasses.replace(chosen, providers=(CUDA,))


def embed_files_on_ray(
    job: Job, config: Config, *, address: str | None = None, workers: Workers | None = None, quiet: bool = False
) -> EmbedFilesSummary:
    """Embed on the cluster at `address`; without one on that of RAY_ADDRESS, otherwise on this machine alone.

    Raises the errors of embed_files.embed_files(), and VisionError if Ray itself fails. Results written before an
    error, or before Ctrl-C, stay.
    """
    began = time.monotonic()
    workers = workers or Workers()
    model = Vision(config).store.find(job.model)
    prepared = prepare(job, model)
    sink = Shards(prepared.output, job.rows_per_file)
    total = 0
    with cluster(address, quiet) as spare, own_errors():
        # A reference inside a list is not fetched with the actor: only a machine without the model requests it.
        package, known = [ray.put(pack(model))], [ray.put(prepared.known)]
        to_embedders = [] if job.skip == BY_PATH else known
        data, total = _listed(prepared, known, workers)
        if data is not None:
            data.map_batches(
                Embedder,
                batch_size=workers.block,
                batch_format="pyarrow",
                compute=_pool(workers, spare),
                num_cpus=workers.cpus,
                num_gpus=workers.gpus or None,
                fn_constructor_args=(job, prepared.output.form, workers, config, package, to_embedders),
            ).write_datasink(sink, ray_remote_args={"num_cpus": 0}, concurrency=WRITERS)
    summary = sink.summary
    summary.total = total
    summary.unchanged = total - summary.done
    summary.seconds = time.monotonic() - began
    return EmbedFilesSummary(summary, prepared.inputs.ignored)


class Embedder:
    """An actor: holds the model and embeds its input, as a process without Ray does."""

    def __init__(
        self, job: Job, form: OutputForm, workers: Workers, config: Config, package: list[Any], known: list[Any]
    ) -> None:
        self._job = job
        self._form = form
        self._cpus = workers.cpus
        self._failed: VisionError | None = None
        # An error raised here would reach the user as a text within a text.
        try:
            store = ModelStore(Path(config.models_dir) if config.models_dir else None)
            if not has(store, form.model, form.fingerprint):
                store = unpack(ray.get(package[0]))
            self._vision = Vision(workers.config(config), store=store)
            self._vision.image_tower(form.model)
        except VisionError as error:
            self._failed = error
        self._known: DigestSet | None = ray.get(known[0]) if known else None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embed a table of images (IMAGES): returns a table of the output's form."""
        if self._failed is not None:
            raise self._failed
        images = [Image(**row) for row in batch.to_pylist()]
        # Two more that wait for files and the network.
        outcomes = embed_images(self._vision, self._job, images, self._known, self._cpus + 2)
        rows = [row for outcome in outcomes if (row := row_of(outcome)) is not None]
        return self._form.table(rows)


class Shards(Datasink[Summary]):
    """Writes blocks as shards of an output, and adds up their counts."""

    def __init__(self, output: Output, rows_per_file: int) -> None:
        self._output = output
        self._rows_per_file = rows_per_file
        self.summary = Summary()

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_file

    def get_name(self) -> str:
        return "Parquet"

    def write(self, blocks: Iterable[Any], ctx: Any) -> Summary:
        tables = [table for table in blocks if len(table)]
        summary = Summary()
        if tables:
            whole = pa.concat_tables([table.cast(self._output.form.schema()) for table in tables])
            self._output.write(whole)
            errors = whole.select(["path", "error"]).filter(whole.column("error").is_valid())
            summary.embedded = len(whole) - len(errors)
            summary.failed = len(errors)
            summary.failures = [(row["path"], row["error"]) for row in errors.slice(0, SHOWN_FAILURES).to_pylist()]
        return summary

    def on_write_complete(self, write_result: Any) -> None:
        for part in write_result.write_returns:
            self.summary.embedded += part.embedded
            self.summary.computed += part.embedded
            self.summary.failed += part.failed
            self.summary.failures += part.failures
        self.summary.failures = sorted(self.summary.failures)[:SHOWN_FAILURES]


def expand(batch: pa.Table, job: Job, known: list[Any], images_per_block: int) -> Iterator[pa.Table]:
    """Turn row groups of Parquet files (UNITS) into their images (IMAGES), without those that are known."""
    for row in batch.to_pylist():
        images = Unit(**row).images(job.column)
        while chosen := list(itertools.islice(images, images_per_block)):
            yield _images(_new(chosen, ray.get(known[0]), job))


def _listed(prepared: Prepared, known: list[Any], workers: Workers) -> tuple[ray.data.Dataset | None, int]:
    """List the inputs: (the new images as a data set, None for none; how many there are, new or not)."""
    seen = DigestSet()
    files: list[Image] = []
    tables: list[Unit] = []
    blocks: list[pa.Table] = []
    total, images_per_block = 0, workers.block

    def cut(at_least: int) -> None:
        while len(files) >= at_least:
            if new := _new(files[:images_per_block], prepared.known, prepared.job):
                blocks.append(_images(new))
            del files[:images_per_block]

    for unit in prepared.inputs.units():
        if unit.row_group is not None:
            tables.append(unit)
            total += unit.rows
            continue
        image = next(unit.images())
        if seen.add(image.path):
            files.append(image)
            total += 1
            cut(images_per_block)
    cut(1)
    data = ray.data.from_arrow(blocks) if blocks else None
    if tables:
        if ray.cluster_resources().get("CPU", 0) <= workers.minimum * workers.cpus:
            logger.warning("the workers hold every CPU: nothing reads the Parquet files unless the cluster grows")
        units = [pa.Table.from_pylist([vars(unit)], schema=UNITS) for unit in tables]
        rows = ray.data.from_arrow(units).map_batches(
            expand,
            batch_size=1,
            batch_format="pyarrow",
            fn_args=(prepared.job, known, images_per_block),
        )
        # A block of very many paths would be one task, and keep one actor busy when all others have finished.
        rows = rows.repartition(target_num_rows_per_block=images_per_block)
        data = rows if data is None else data.union(rows)
    return data, total


def _new(images: list[Image], known: DigestSet, job: Job) -> list[Image]:
    if job.skip != BY_PATH:
        return images
    there = known.contains([image.path for image in images])
    return [image for image, found in zip(images, there, strict=True) if not found]


def _images(images: list[Image]) -> pa.Table:
    return pa.Table.from_pylist([vars(image) for image in images], schema=IMAGES)


def _pool(workers: Workers, spare: int) -> ActorPoolStrategy:
    maximum = workers.maximum
    if maximum is None:
        there = ray.cluster_resources()
        maximum = int((there.get("CPU", 0) - spare) // workers.cpus)
        if workers.gpus:
            maximum = min(maximum, int(there.get("GPU", 0) / workers.gpus))
        maximum = max(maximum, workers.minimum)
    return ActorPoolStrategy(min_size=workers.minimum, max_size=maximum)
