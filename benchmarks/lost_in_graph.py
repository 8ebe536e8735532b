"""How many vectors of an HNSW graph no search finds again, by how many were added one by one before threads went on.

Each vector is looked for by itself. Prints one line for each number of vectors added one by one, with the time taken.

    python benchmarks/lost_in_graph.py --vectors 60000
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from datasette_vision.vectors import embedding as vectors
from datasette_vision.vectors import hnsw
from datasette_vision.vectors.eight_bit import Flat, coded


def clustered(count: int, dimensions: int) -> Flat:
    """Unit-length vectors in clusters of about 50, as embeddings are."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((count // 50, dimensions))
    noise = random.standard_normal((count, dimensions))
    codes, _ = coded(vectors.normalise(centres[random.integers(0, len(centres), count)] + 0.7 * noise))
    return Flat(np.arange(count, dtype=np.int64), codes)


def lost(graph: hnsw.HnswGraph, flat: Flat) -> int:
    """Return how many vectors of a graph are not among the ten it says are nearest to them."""
    found = graph.graph.search(flat.vectors.codes, 10).keys
    return int((~(found == np.arange(len(flat))[:, None]).any(axis=1)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=60_000)
    parser.add_argument("--dimensions", type=int, default=128)
    options = parser.parse_args()
    flat = clustered(options.vectors, options.dimensions)
    print("added one by one   lost   seconds")
    for first in (0, 2048, hnsw.ONE_BY_ONE, options.vectors):
        hnsw.ONE_BY_ONE = first
        start = time.perf_counter()
        graph = hnsw.build_graph([flat], options.dimensions)
        assert graph is not None  # nothing stops it
        print(f"{first:16} {lost(graph, flat):6} {time.perf_counter() - start:9.1f}", flush=True)


if __name__ == "__main__":
    main()
