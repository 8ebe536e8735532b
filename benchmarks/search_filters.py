"""vision_search() among the rows of a filter, beside comparing each of those in SQL: milliseconds and recall@10.

python benchmarks/search_filters.py [--rows 100000 1000000]

The rows are those of search.py, made up in clusters, each row with a number at random and one that falls with the
distance from the query: filters by the first pass any rows, those by the second the farthest, which are the hardest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from search import MODEL, clustered, connect, index, make, queries
from search_codes import processor

PASSING = (0.001, 0.01, 0.1, 0.5, 0.9, 1.0)
DIMENSIONS = 512
AMONG = "vision_search('photos', :query, 10, :model, 'image', (select json_group_array(id) from photos where {}))"
COMPARED = """select json_group_array(id) from (select id from photos join _vision_photos using (id) where {}
order by vision_similarity(embedding, :query) desc limit 10)"""


def measure(path: Path, rows: int, searches: int) -> None:
    make(path, rows, DIMENSIONS)
    connection = connect(path)
    index(path, rows, DIMENSIONS)
    random = np.random.default_rng(5)
    matrix = np.concatenate([*clustered(rows, DIMENSIONS, seed=1)])
    asked = queries(rows, DIMENSIONS)[:searches]
    far = np.empty(rows, np.int64)
    far[np.argsort(matrix @ asked[0], kind="stable")] = np.arange(rows)
    connection.execute("alter table photos add column any integer")
    connection.execute("alter table photos add column far integer")
    connection.execute("begin")
    numbers = zip(random.permutation(rows).tolist(), far.tolist(), range(rows), strict=True)
    connection.executemany("update photos set any = ?, far = ? where id = ?", numbers)
    connection.execute("commit")
    orders = {
        "any": np.array(connection.execute("select any from photos order by id").fetchall())[:, 0],
        "far": far,
    }
    connection.execute(f"select {AMONG.format('id = 1')}", {"query": asked[0].tobytes(), "model": MODEL}).fetchone()
    for column, order in orders.items():
        for part in PASSING:
            where = f"{column} < {round(part * rows)}"
            passing = np.flatnonzero(order < round(part * rows))
            seconds, recall = [], []
            for query in asked if column == "any" else asked[:1].repeat(searches, 0):
                began = time.perf_counter()
                parameters = {"query": query.tobytes(), "model": MODEL}
                (answer,) = connection.execute(f"select {AMONG.format(where)}", parameters).fetchone()
                seconds.append(time.perf_counter() - began)
                best = np.sort(matrix[passing] @ query)[-10:]
                found = [hit["similarity"] for hit in json.loads(answer)]
                recall.append(sum(similarity >= best[0] - 1e-6 for similarity in found) / len(best))
            began = time.perf_counter()
            connection.execute(COMPARED.format(where), parameters).fetchone()
            compared = time.perf_counter() - began
            print(
                f"    {column:4} {100 * part:5.1f} % pass: p50 {1000 * median(seconds):7.1f} ms, recall@10"
                f" {np.mean(recall[:20]):.3f}; each compared in SQL {1000 * compared:8.1f} ms",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--searches", type=int, default=20)
    options = parser.parse_args()
    print(processor())
    for rows in options.rows:
        print(f"  {rows:,} embeddings of {DIMENSIONS}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder) / "photos.db", rows, options.searches)


if __name__ == "__main__":
    main()
