"""vision_search() over embeddings made up in clusters: milliseconds, recall, memory, and what it takes to begin.

python benchmarks/search.py [--rows 100000 1000000] [--dimensions 512]

Each step is a process of its own, so that each begins with empty memory. The files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine.vision import Vision
from datasette_vision.retrieval import index_maintenance
from datasette_vision.retrieval.index_entry import file_of
from datasette_vision.retrieval.search import Searcher
from datasette_vision.sql import registration as sql
from datasette_vision.tables.embedding_reader import Embeddings
from datasette_vision.tables.schema import SideTable, SideTableRow
from datasette_vision.util import memory
from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors import index_file

QUERIES = 200
MODEL = "made-up"
SIDE = SideTable("photos", ("id",))


def clustered(rows: int, dimensions: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Unit-length vectors around centres, a thousand or so to each, some at a time."""
    centres = np.random.default_rng(0).standard_normal((max(10, rows // 1000), dimensions)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    for start in range(0, rows, 10_000):
        count = min(10_000, rows - start)
        noise = random.standard_normal((count, dimensions)).astype(np.float32) / np.float32(np.sqrt(dimensions))
        yield vectors.normalise(centres[random.integers(0, len(centres), count)] + np.float32(0.7) * noise)


def queries(rows: int, dimensions: int) -> NDArray[np.float32]:
    """Vectors of the same clusters that are not in the table."""
    return next(clustered(rows, dimensions, seed=2))[:QUERIES]


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    vision = Vision()
    sql.register(connection, lambda: vision)
    return connection


def make(path: Path, rows: int, dimensions: int) -> dict[str, float]:
    """Write the database."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode = off")
    connection.execute("pragma synchronous = off")
    connection.execute("create table photos (id integer primary key)")
    SIDE.create(connection)
    began = time.perf_counter()
    connection.execute("begin")
    key = 0
    for batch in clustered(rows, dimensions, seed=1):
        keys = range(key, key + len(batch))
        connection.executemany("insert into photos values (?)", ((key,) for key in keys))
        rows_of_batch = zip(keys, batch, strict=True)
        SIDE.write(
            connection, (SideTableRow((k,), "image", MODEL, "hash", vector.tobytes()) for k, vector in rows_of_batch)
        )
        key += len(batch)
    connection.execute("commit")
    connection.close()
    return {"seconds": time.perf_counter() - began, "MB": path.stat().st_size / 1e6}


def search(path: Path, rows: int, dimensions: int) -> dict[str, float]:
    """Search in a fresh process: the first query, then warm ones, and the recall of those."""
    connection = connect(path)
    asked = [vector.tobytes() for vector in queries(rows, dimensions)]
    connection.execute("select vision_similarity(?1, ?1)", asked[:1]).fetchone()  # NumPy and the rest are loaded
    before = memory.resident_mib() or 0
    found, seconds = [], []
    for query in (asked[0], *asked):
        began = time.perf_counter()
        (answer,) = connection.execute("select vision_search('photos', ?)", (query,)).fetchone()
        seconds.append(time.perf_counter() - began)
        found.append({hit["rowid"] for hit in json.loads(answer)})
    after = memory.resident_mib() or 0
    expected = nearest(rows, dimensions)
    recall = sum(len(one & other) for one, other in zip(found[1:], expected, strict=True)) / (10 * len(expected))
    ordered = np.sort(seconds[1:]) * 1000
    return {
        "first query s": seconds[0],
        "p10 ms": float(ordered[len(ordered) // 10]),
        "p50 ms": float(median(ordered)),
        "p95 ms": float(ordered[int(0.95 * len(ordered))]),
        "recall@10": recall,
        "memory MiB": after - before,
    }


def nearest(rows: int, dimensions: int) -> list[set[int]]:
    """The ten nearest to each query, by NumPy."""
    asked = queries(rows, dimensions)
    best: list[list[tuple[float, int]]] = [[] for _ in asked]
    start = 0
    for batch in clustered(rows, dimensions, seed=1):
        similarities = asked @ batch.T
        places = np.argpartition(-similarities, min(10, len(batch) - 1), axis=1)[:, :10]
        for row, own in enumerate(places):
            best[row] += [(float(similarities[row, place]), start + int(place)) for place in own]
        start += len(batch)
    return [{place for _, place in sorted(each, reverse=True)[:10]} for each in best]


def index(path: Path, rows: int, dimensions: int) -> dict[str, float]:
    """Make and save the index, as `datasette vision index` does; then add 1 % and bring it up to date."""
    connection = connect(path)
    wanted, file = index_of(path, connection)
    began = time.perf_counter()
    index_maintenance.prepare_index(file, connection, wanted, dimensions)
    result = {"seconds": time.perf_counter() - began, "MB": file.stat().st_size / 1e6}
    result["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def extend(path: Path, rows: int, dimensions: int) -> dict[str, float]:
    """Write a hundredth of the rows anew, and bring the saved index up to date."""
    connection = connect(path)
    wanted, file = index_of(path, connection)
    again = next(clustered(max(10_000, rows // 100), dimensions, seed=3))[: rows // 100]
    connection.execute("begin")
    SIDE.write(
        connection, (SideTableRow((k,), "image", MODEL, "hash", vector.tobytes()) for k, vector in enumerate(again))
    )
    connection.execute("commit")
    began = time.perf_counter()
    index_maintenance.prepare_index(file, connection, wanted, dimensions)
    return {"seconds": time.perf_counter() - began}


def opening(path: Path, rows: int, dimensions: int) -> dict[str, float]:
    """Open the saved index."""
    _, file = index_of(path, connect(path))
    began = time.perf_counter()
    saved = index_file.open_index(file)
    return {"seconds": time.perf_counter() - began, "rows": len(saved.base)}


def index_of(path: Path, connection: sqlite3.Connection) -> tuple[Embeddings, Path]:
    source = Searcher(Vision()).source(connection, "photos")
    wanted = Embeddings.of(connection, source, MODEL, "image")
    return wanted, file_of(str(path), wanted)


def scan(path: Path, rows: int, dimensions: int) -> dict[str, float]:
    """Order the rows by vision_similarity(), without an index."""
    connection = connect(path)
    query = (
        "select id from photos join _vision_photos using (id) order by vision_similarity(embedding, ?) desc limit 10"
    )
    seconds = []
    for vector in queries(rows, dimensions)[:7]:
        began = time.perf_counter()
        connection.execute(query, (vector.tobytes(),)).fetchall()
        seconds.append(time.perf_counter() - began)
    return {"median s": median(seconds)}


PHASES = {function.__name__: function for function in (make, search, index, opening, extend, scan)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        print(json.dumps(PHASES[options.phase](options.path, options.rows[0], options.dimensions)))
        return
    for rows in options.rows:
        print(f"\n{rows:,} embeddings of {options.dimensions}")
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["--path", f"{folder}/photos.db", "--rows", str(rows), "--dimensions", str(options.dimensions)]
            plan = ["make", "search", "index", "opening", "search", "extend"]
            for phase in [*plan, *(["scan"] if rows <= 100_000 else [])]:
                command = [sys.executable, __file__, "--phase", phase, *arguments]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                shown = ", ".join(f"{name} {value:,.4g}" for name, value in json.loads(done.stdout).items())
                print(f"  {phase:8} {shown}", flush=True)


if __name__ == "__main__":
    main()
