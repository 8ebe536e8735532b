"""Ordering embeddings by similarity in SQL, against the one second that Datasette gives a query.

python benchmarks/similarity_scan.py [--rows 100000] [--dimensions 512]
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from statistics import median

import numpy as np

from datasette_vision.engine.vision import Vision
from datasette_vision.sql import registration as sql
from datasette_vision.vectors import embedding as vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    matrix = vectors.normalise(np.random.default_rng(0).standard_normal((options.rows, options.dimensions)))
    vision = Vision()
    connection = sqlite3.connect(":memory:")
    sql.register(connection, lambda: vision)
    connection.execute("create table t (id integer primary key, embedding blob)")
    connection.executemany("insert into t (embedding) values (?)", ((row.tobytes(),) for row in matrix))
    query = "select id from t order by vision_similarity(embedding, ?) desc limit 10"
    seconds = []
    for run in range(options.runs):
        began = time.perf_counter()
        found = [row[0] - 1 for row in connection.execute(query, [matrix[run].tobytes()])]
        seconds.append(time.perf_counter() - began)
        expected = np.argsort(-(matrix @ matrix[run]))[:10]
        assert found[0] == run
        assert set(found) == set(expected.tolist())
    print(f"{options.rows:,} x {options.dimensions}: {median(seconds):.3f} s (median of {options.runs})")


if __name__ == "__main__":
    main()
