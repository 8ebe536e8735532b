"""Embeddings in Parquet: a folder of shards, with a row for each image, whether it could be read or not.

====================  ============================================================================== path
the address of the image, which identifies a row digest                SHA-256 of the file in hexadecimal; null if it
could not be read width, height         pixels of the upright image; null if it is not an image embedding
unit length, a fixed-size list of float32; null if there is none error                 why there is none, else null
====================  ==============================================================================

A shard is written completely or not at all, and its name is derived from its paths: repeated work, by a replacement for
a worker that died, overwrites the first result. pyarrow is imported on use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from datasette_vision.errors import InvalidArgument, StorageFailed
from datasette_vision.files.digest_set import DigestSet
from datasette_vision.files.storage import Place, place, storage_errors
from datasette_vision.vectors.embedding import Matrix, Vector

SUFFIX = ".parquet"
# Our keys in the metadata of a shard.
MODEL_METADATA = b"datasette_vision.model"
FINGERPRINT = b"datasette_vision.fingerprint"

# The first pyarrow that writes and reads fixed-size lists with nulls. With earlier versions, the only ones for Python
# 3.10, embeddings are in lists of variable size.
FIXED_SIZE_LISTS = 26
READ_BYTES = 4 << 20
READERS = 8  # shards read at a time: in an object store each waits for the network

T = TypeVar("T")


@dataclass(frozen=True)
class ImageRow:
    """A row of the output: an image with its embedding, or with the reason why there is none."""

    path: str
    digest: str | None = None
    width: int | None = None
    height: int | None = None
    embedding: Vector | None = None
    error: str | None = None


@dataclass(frozen=True)
class OutputForm:
    """The common properties of an output's shards. `fingerprint` changes if the model's embeddings may."""

    model: str
    fingerprint: str
    dimensions: int

    def schema(self) -> Any:
        """Return the pyarrow.Schema."""
        import pyarrow as pa

        return pa.schema(
            [
                pa.field("path", pa.string(), nullable=False),
                pa.field("digest", pa.string()),
                pa.field("width", pa.int32()),
                pa.field("height", pa.int32()),
                pa.field("embedding", pa.list_(pa.float32(), self.dimensions if _fixed_size() else -1)),
                pa.field("error", pa.string()),
            ],
            metadata={MODEL_METADATA: self.model.encode(), FINGERPRINT: self.fingerprint.encode()},
        )

    def table(self, rows: Sequence[ImageRow]) -> Any:
        """Return rows as a pyarrow.Table."""
        import pyarrow as pa

        schema = self.schema()
        columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in schema.names[:4]]
        columns.append(self._embeddings(rows))
        columns.append(pa.array([row.error for row in rows], pa.string()))
        return pa.Table.from_arrays(columns, schema=schema)

    def _embeddings(self, rows: Sequence[ImageRow]) -> Any:
        import pyarrow as pa

        if not _fixed_size():
            return pa.array([row.embedding for row in rows], pa.list_(pa.float32()))
        vectors = np.zeros((len(rows), self.dimensions), dtype=np.float32)
        for number, row in enumerate(rows):
            if row.embedding is not None:
                vectors[number] = row.embedding
        missing = pa.array([row.embedding is None for row in rows], pa.bool_())
        return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.dimensions, mask=missing)


class Output:
    """A folder of shards of one form."""

    def __init__(self, address: str, form: OutputForm) -> None:
        self.address = address
        self.form = form

    @property
    def folder(self) -> Place:
        """The folder, which need not exist yet."""
        return place(self.address)

    def prepare(self) -> None:
        """Create the folder. Raises InvalidArgument if it holds embeddings of another model, StorageFailed."""
        self.folder.make_folder()
        self.folder.clear_up()
        for shard, file in self._opened():
            found = file.schema_arrow
            if found.equals(self.form.schema()):
                marks = found.metadata or {}
                model, fingerprint = (
                    marks.get(mark, b"").decode("utf-8", "replace") for mark in (MODEL_METADATA, FINGERPRINT)
                )
                if (model, fingerprint) == (self.form.model, self.form.fingerprint):
                    continue
                what = f"of another {model}" if model == self.form.model else f"of {model or 'an unknown model'}"
            else:
                what = "in other columns"
            raise InvalidArgument(
                f"{shard.address} holds embeddings {what}, not of {self.form.model}: choose another --output"
            )

    def known(self, column: str = "path") -> DigestSet:
        """Return the values in a column of the existing shards. Raises StorageFailed."""
        known = DigestSet()
        for _, values in _parallel(lambda shard: _column(shard, column), self.shards()):
            for value in values:
                known.add(value)
        return known

    def write(self, table: Any) -> int:
        """Write a table as a shard, and return its number of rows. Raises StorageFailed."""
        if len(table):
            paths = sorted(table.column("path").to_pylist())
            name = hashlib.sha256("\0".join(paths).encode()).hexdigest()[:32]
            self._write(table, self.folder.child(f"part-{name}{SUFFIX}"))
        return len(table)

    def _write(self, table: Any, shard: Place) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = pa.BufferOutputStream()
        # Compressing random-looking numbers saves no space, and takes time.
        compression = dict.fromkeys(["path", "digest", "width", "height", "error"], "zstd")
        compression[EMBEDDING_VALUES] = "none"
        pq.write_table(table.cast(self.form.schema()), buffer, compression=compression, use_dictionary=["error"])
        shard.write(buffer.getvalue())

    def forget_errors(self) -> int:
        """Remove the rows with an error, so that they are new again; return how many. Raises StorageFailed."""
        import pyarrow.compute as pc

        forgotten = 0
        for shard, file in list(self._opened()):
            with storage_errors(shard.address):
                table = file.read()
            good = table.filter(pc.is_null(table.column("error")))
            if len(good) == 0 < len(table):
                shard.remove()
            elif len(good) < len(table):
                self._write(good, shard)
            forgotten += len(table) - len(good)
        return forgotten

    def shards(self) -> Iterator[Place]:
        """Yield the existing shards."""
        yield from shards(self.folder)

    def _opened(self) -> Iterator[tuple[Place, Any]]:
        yield from _parallel(open_shard, self.shards())


# Parquet's default name for a list's values.
EMBEDDING_VALUES = "embedding.list.element"


def shards(folder: Place) -> Iterator[Place]:
    """Yield the Parquet files of a folder, or the file itself. Names that begin with . or _ belong to other
    programs.
    """
    if folder.kind() == "file":
        yield folder
    elif folder.kind() == "folder":
        yield from (file for file in folder.files(hidden=(".", "_")) if file.path.endswith(SUFFIX))


def open_shard(shard: Place) -> Any:
    """Return a shard as a pyarrow.parquet.ParquetFile. Raises StorageFailed, naming it, if it is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with storage_errors(shard.address):
        try:
            # The columns of a row group are read in parts: other programs write row groups of gigabytes.
            return pq.ParquetFile(shard.path, filesystem=shard.filesystem, buffer_size=READ_BYTES, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise StorageFailed(f"{shard.address}: not a Parquet file: {error}") from None


def batches(shard: Place, file: Any, rows: int, **options: Any) -> Iterator[Any]:
    """Yield the pyarrow.RecordBatches of an opened shard. Raises StorageFailed, naming it, if it is damaged."""
    with storage_errors(shard.address):
        found = file.iter_batches(rows, **options)
    while True:
        with storage_errors(shard.address):
            batch = next(found, None)
        if batch is None:
            return
        yield batch


def vectors_of(column: Any) -> tuple[Matrix, Any]:
    """Read a column of embeddings: pyarrow lists of any floats, n rows -> ((n, d) float32, (n,) bool: missing).

    Raises InvalidArgument for a column of another type, or of lists with different lengths.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = array.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise InvalidArgument(f"expected lists of floats, found {kind}")
    missing = np.asarray(pc.is_null(array))
    there = array.filter(pc.is_valid(array))
    lengths = np.unique(np.asarray(pc.list_value_length(there)))
    if len(lengths) > 1:
        raise InvalidArgument(f"expected embeddings of one length, found {', '.join(map(str, lengths))}")
    size = int(lengths[0]) if len(lengths) else 0
    matrix = np.zeros((len(array), size), dtype=np.float32)
    if len(there):
        values = there.flatten()
        with np.errstate(over="ignore"):  # numbers too large for a float32 become infinite, and so are not an embedding
            numbers = np.asarray(values).astype(np.float32)  # and a null a NaN
        matrix[~missing] = numbers.reshape(len(there), size)
    return matrix, missing


def _fixed_size() -> bool:
    import pyarrow as pa

    return int(pa.__version__.partition(".")[0]) >= FIXED_SIZE_LISTS


def _column(shard: Place, column: str) -> list[str]:
    with storage_errors(shard.address):
        return [value for value in open_shard(shard).read([column]).column(column).to_pylist() if value is not None]


def _parallel(work: Callable[[Place], T], places: Iterable[Place]) -> Iterator[tuple[Place, T]]:
    """Yield (place, result of `work`) in order, several at a time and only a limited number ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: list[tuple[Place, Any]] = []
        for found in places:
            waiting.append((found, pool.submit(work, found)))
            if len(waiting) > 2 * READERS:
                first, future = waiting.pop(0)
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
