"""How long the search page takes over a large table, from the request to the last byte, in one process.

python benchmarks/search_page.py --rows 100000

It makes a database of that many random unit-length embeddings of 512 floats with their rows, and asks for the page and
for the JSON: by embedding without filters (vision_search()), with a filter that lets a tenth of the rows through, with
one that lets nine tenths through, and for the rows as they are. Prints medians in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from datasette.app import Datasette

from datasette_vision.plugin.search.request import encode_embedding
from datasette_vision.tables import schema
from datasette_vision.vectors import embedding as vectors

DIMENSIONS = 512
GROUPS = "abcdefghij"
QUERIES = {
    "no filter": "_embedding={}",
    "a tenth of the rows": "_embedding={}&kind=a",
    "nine tenths": "_embedding={}&kind__not=a",
    "the rows as they are": "",
}


def make(path: Path, rows: int) -> None:
    """Write the database."""
    random = np.random.default_rng(0)
    side = schema.SideTable("photos", ("id",))
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("create table photos (id integer primary key, name text, kind text, image blob)")
        connection.executemany(
            "insert into photos values (?, ?, ?, zeroblob(20000))",
            ((number, f"photo {number}", GROUPS[number % 10]) for number in range(rows)),
        )
        side.create(connection)
        for start in range(0, rows, 10_000):
            batch = vectors.normalise(random.normal(size=(min(10_000, rows - start), DIMENSIONS)))
            side.write(
                connection,
                (
                    schema.SideTableRow((start + n,), "image", "random", "", vectors.to_blob(row))
                    for n, row in enumerate(batch)
                ),
            )
    connection.close()


async def measure(path: Path, repeats: int) -> None:
    """Ask, and print how long it took."""
    datasette = Datasette([str(path)])
    await datasette.invoke_startup()
    random = np.random.default_rng(1)
    print(f"{'':24}{'page':>10}{'JSON':>10}   (median of {repeats}, ms)")
    for name, query in QUERIES.items():
        medians = []
        for address in ("/-/vision/large/photos", "/-/vision/search/large/photos"):
            taken = []
            for repeat in range(repeats + 1):
                embedding = encode_embedding(random.normal(size=DIMENSIONS).astype(np.float32).tobytes())
                began = time.perf_counter()
                response = await datasette.client.get(f"{address}?{query.format(embedding)}")
                taken.append(time.perf_counter() - began)
                assert response.status_code == 200, response.text
                if not repeat:  # the index is read
                    await asyncio.sleep(5 if name == "no filter" else 0)
            medians.append(statistics.median(taken[1:]) * 1000)
        print(f"{name:24}{medians[0]:10.0f}{medians[1]:10.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.db"
        make(path, options.rows)
        print(f"{options.rows:,} rows, {path.stat().st_size / 1e9:.1f} GB")
        asyncio.run(measure(path, options.repeats))


if __name__ == "__main__":
    main()
