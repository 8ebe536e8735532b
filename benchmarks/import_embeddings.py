"""Importing embeddings from Parquet into SQLite: seconds, and the memory it takes, which must not grow with them.

python benchmarks/import_embeddings.py [--rows 1000000] [--dimensions 512] [--folder DIR]

Each import is a process of its own, whose peak of resident memory is read; the first is of a tenth of the rows. Fails
when ten times the rows take more than 15 % more memory, or passing over them more than writing them, or when a row is
not there afterwards.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from datasette_vision.files.parquet import ImageRow, Output, OutputForm
from datasette_vision.vectors import embedding as vectors

ROWS_PER_FILE = 10_000


def write_parquet(folder: Path, rows: int, dimensions: int) -> None:
    """Write shards as `datasette vision embed-files` writes them."""
    output = Output(str(folder), OutputForm("synthetic", "0" * 64, dimensions))
    output.prepare()
    generator = np.random.default_rng(0)
    for first in range(0, rows, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, rows - first)
        matrix = vectors.normalise(generator.standard_normal((count, dimensions), dtype=np.float32))
        output.write(
            output.form.table(
                [
                    ImageRow(f"/photos/{number // 1000:05}/{number:09}.jpg", f"{number:064x}", 640, 480, vector)
                    for number, vector in enumerate(matrix, first)
                ]
            )
        )


def measured(database: Path, shards: list[Path]) -> tuple[float, float]:
    """Import in a process of its own: (seconds, MiB at the peak)."""
    began = time.perf_counter()
    command = [
        "vision",
        "import-embeddings",
        str(database),
        "photos",
        *map(str, shards),
        "--create",
        "--quiet",
        "--no-index",
    ]
    process = os.posix_spawn(sys.executable, [sys.executable, "-m", "datasette", *command], os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit("the import failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        # A process remembers the peak of the one that started it: this one has to stay small.
        arguments = (folder / "shards", options.rows, options.dimensions)
        writer = multiprocessing.get_context("spawn").Process(target=write_parquet, args=arguments)
        writer.start()
        writer.join()
        shards = sorted((folder / "shards").iterdir())
        tenth = shards[: max(1, len(shards) // 10)]
        few, few_mib = measured(folder / "tenth.db", tenth)
        (folder / "tenth.db").unlink()
        many, many_mib = measured(folder / "photos.db", shards)
        again, again_mib = measured(folder / "photos.db", shards)
        size = (folder / "photos.db").stat().st_size
        connection = sqlite3.connect(folder / "photos.db")
        count = connection.execute("select count(*) from photos join _vision_photos using (id)").fetchone()[0]
        connection.close()
    print(f"{options.rows // 10:>9,} rows: {few:6.1f} s, {few_mib:5.0f} MiB at the peak")
    print(f"{options.rows:>9,} rows: {many:6.1f} s, {many_mib:5.0f} MiB at the peak; a database of {size / 1e9:.2f} GB")
    print(f"the same again: {again:6.1f} s, {again_mib:5.0f} MiB at the peak")
    if count != options.rows:
        sys.exit(f"expected {options.rows:,} rows, found {count:,}")
    if many_mib > 1.15 * few_mib or again_mib > 1.15 * many_mib:
        sys.exit("memory grows with the number of rows")


if __name__ == "__main__":
    main()
