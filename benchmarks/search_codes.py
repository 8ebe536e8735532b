"""Searching codes of one and four bits beside comparing with all in 8 bits and beside an HNSW graph: time and recall.

python benchmarks/search_codes.py [--rows 100000 1000000] [--kinds clusters gap emoji uniform] [--graph]

All search the same embeddings in the same run, turn about: made up in clusters, in clusters with a gap between texts
(the queries) and images (the rows), of the emoji under thousands of augmentations with texts as queries (by the
bundled model, 256 numbers, as many rows as --emoji says: 100,000 take five minutes of two cores), and uniform random
ones. Each names k + SPARE rows, of which the embeddings themselves would be compared; recall@10 is of those. `--graph`
needs usearch.
"""

from __future__ import annotations

import argparse
import io
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import numkong
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasette_vision.vectors import codes
from datasette_vision.vectors.embedding import normalise

Matrix = NDArray[np.float32]
QUERIES = 100
K = 10
NAMED = K + codes.SPARE


def clusters(rows: int, random: np.random.Generator) -> tuple[Matrix, Matrix]:
    centres = _normal(random, max(10, rows // 1000), 512, 1)

    def some(count: int) -> Matrix:
        return normalise(centres[random.integers(0, len(centres), count)] + _normal(random, count, 512, 0.7))

    return _in_parts(some, rows), some(QUERIES)


def gap(rows: int, random: np.random.Generator) -> tuple[Matrix, Matrix]:
    centres = _normal(random, max(10, rows // 1000), 512, 1)
    images, texts = _normal(random, 2, 512, 1)

    def some(count: int, common: Matrix, part: float) -> Matrix:
        chosen = centres[random.integers(0, len(centres), count)]
        return normalise(common + np.float32(part) * chosen + _normal(random, count, 512, 0.5))

    return _in_parts(lambda count: some(count, images, 0.8), rows), some(QUERIES, texts, 0.5)


def uniform(rows: int, random: np.random.Generator) -> tuple[Matrix, Matrix]:
    return _in_parts(lambda count: normalise(_normal(random, count, 512, 1)), rows), _normal(random, QUERIES, 512, 1)


def emoji(rows: int, random: np.random.Generator) -> tuple[Matrix, Matrix]:
    from datasette_vision.demo.demo import read_archive
    from datasette_vision.engine.vision import Vision

    vision, drawn = Vision(), list(read_archive())
    drawings = [Image.open(io.BytesIO(each.image)).convert("RGBA") for each in drawn]
    encoder = vision.services.dual_encoder("tiny-emoji").encoder.get()

    def some(count: int) -> Matrix:
        pixels = np.stack([_augmented(drawings[random.integers(len(drawings))], random) for _ in range(count)])
        return normalise(encoder.encode_pixels(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) * 2 - 1)))

    names = random.permutation([each.name for each in drawn])[:QUERIES]
    return _in_parts(some, rows, 64), np.array([vision.embed_text(str(name)) for name in names])


def _augmented(drawing: Image.Image, random: np.random.Generator) -> Matrix:
    """Turn, scale, shift and mirror a drawing, on some background, in some light: (64, 64, 3), 0 to 1."""
    scale = drawing.width / 64 / random.uniform(0.62, 1.12)
    angle = random.uniform(-0.26, 0.26)
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    mirror = -1 if random.random() < 0.35 else 1
    middle_x, middle_y = drawing.width / 2 + random.uniform(-5, 5, 2) * scale
    matrix = (
        *(cosine * mirror, -sine, middle_x - 32 * (cosine * mirror - sine)),
        *(sine * mirror, cosine, middle_y - 32 * (sine * mirror + cosine)),
    )
    placed = drawing.transform((64, 64), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    pixels = np.asarray(placed, np.float32) / 255
    background = np.ones(3) if random.random() < 0.6 else random.random(3)
    lit = pixels[..., :3] * pixels[..., 3:] + background * (1 - pixels[..., 3:])
    lit = ((lit - 0.5) * random.uniform(0.6, 1.2) + 0.5 + random.uniform(-0.1, 0.1)) * random.uniform(0.85, 1.15, 3)
    if random.random() < 0.3:
        lit += random.normal(0, 0.05, lit.shape)
    return np.clip(lit, 0, 1).astype(np.float32)


def _normal(random: np.random.Generator, count: int, dimensions: int, length: float) -> Matrix:
    """Random vectors of about this length."""
    return random.standard_normal((count, dimensions), np.float32) * np.float32(length / np.sqrt(dimensions))


def _in_parts(some: Any, rows: int, part: int = 10_000) -> Matrix:
    first = some(min(part, rows))
    made = np.empty((rows, first.shape[1]), np.float32)
    made[: len(first)] = first
    for start in range(part, rows, part):
        made[start : start + part] = some(min(part, rows - start))
    return made


class Codes:
    """As vision_search() does."""

    def __init__(self, matrix: Matrix) -> None:
        labels = np.arange(len(matrix))
        self.space = codes.space_of(matrix[:: max(1, len(matrix) // 4096)], matrix.shape[1])
        self.codes = codes.empty(self.space, len(matrix))
        for start in range(0, len(matrix), 2048):
            part = slice(start, start + 2048)
            self.codes.put(codes.encode(self.space, labels[part], labels[part], matrix[part]), start)

    def search(self, query: Matrix) -> NDArray[np.intp]:
        return self.codes.search(codes.query_in(self.space, query), NAMED, None)[0]


class EightBits:
    """As version 0.1 did: the query with all, each number in 8 bits."""

    def __init__(self, matrix: Matrix) -> None:
        self.codes, self.scales = np.empty(matrix.shape, np.int8), np.empty(len(matrix), np.float32)
        for start in range(0, len(matrix), 2048):
            some = slice(start, start + 2048)
            self.codes[some], self.scales[some] = self._coded(matrix[some])

    @staticmethod
    def _coded(matrix: Matrix) -> tuple[NDArray[np.int8], Matrix]:
        levels = np.rint(matrix * (127 / np.abs(matrix).max(axis=1, keepdims=True)))
        return levels.astype(np.int8), (1 / np.linalg.norm(levels, axis=1)).astype(np.float32)

    def search(self, query: Matrix) -> NDArray[np.intp]:
        products: Any = numkong.cdist(self._coded(query[None])[0], self.codes, "dot")
        similarities = np.asarray(products)[0].astype(np.float32) * self.scales
        # What a sample says that the best are above: much faster than to part all.
        bound = np.partition(similarities[::64], -(NAMED // 32 + 4))[-(NAMED // 32 + 4)]
        chosen = np.flatnonzero(similarities >= bound)
        return chosen[np.argsort(-similarities[chosen])[:NAMED]]


class Graph:
    """As version 0.1 did for more than 500,000."""

    def __init__(self, matrix: Matrix) -> None:
        from usearch.index import Index

        self.index = Index(ndim=matrix.shape[1], metric="cos", dtype="i8", connectivity=16, expansion_add=96)
        self.index.expansion_search = 256
        scaled = EightBits._coded
        for start in range(0, len(matrix), 2048):
            part = scaled(matrix[start : start + 2048])[0]
            self.index.add(np.arange(start, start + len(part), dtype=np.uint64), part)
        self._coded = scaled

    def search(self, query: Matrix) -> NDArray[np.intp]:
        return self.index.search(self._coded(query[None])[0][0], NAMED).keys.astype(np.intp)


def nearest(matrix: Matrix, queries: Matrix) -> list[set[int]]:
    best, similarities = np.empty((len(queries), 0), np.intp), np.empty((len(queries), 0), np.float32)
    for start in range(0, len(matrix), 50_000):
        part = queries @ matrix[start : start + 50_000].T
        places = np.argpartition(-part, K, axis=1)[:, :K]
        best = np.hstack([best, places + start])
        similarities = np.hstack([similarities, np.take_along_axis(part, places, axis=1)])
    order = np.argsort(-similarities, axis=1)[:, :K]
    return [set(row.tolist()) for row in np.take_along_axis(best, order, axis=1)]


def measure(matrix: Matrix, queries: Matrix, graph: bool) -> None:
    searchers: dict[str, Any] = {}
    for kind in (Codes, EightBits, *([Graph] if graph else [])):
        began = time.perf_counter()
        searchers[kind.__name__] = kind(matrix)
        print(f"    {kind.__name__:10} made in {time.perf_counter() - began:6.1f} s")
    expected = nearest(matrix, queries)
    seconds: dict[str, list[float]] = {name: [] for name in searchers}
    recall = dict.fromkeys(searchers, 0.0)
    for query, wanted in zip(queries, expected, strict=True):
        for name, searcher in searchers.items():
            began = time.perf_counter()
            found = searcher.search(query)
            seconds[name].append(time.perf_counter() - began)
            recall[name] += len(wanted & set(found.tolist())) / K / len(queries)
    for name, each in seconds.items():
        ratio = median(each) / median(seconds["EightBits"])
        slow = sorted(each)[int(0.95 * len(each))]
        print(
            f"    {name:10} p50 {1000 * median(each):7.2f} ms ({ratio:4.2f} of 8 bits), p95 {1000 * slow:7.2f} ms,"
            f" recall@{K} {recall[name]:.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {kind.__name__: kind for kind in (clusters, gap, emoji, uniform)}
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--emoji", type=int, default=100_000, help="how many rows of emoji, at most")
    parser.add_argument("--graph", action="store_true", help="an HNSW graph too, which takes minutes for a million")
    parser.add_argument("--keep", type=Path, help="a folder that keeps the embeddings of emoji between runs")
    options = parser.parse_args()
    print(processor())
    for rows in options.rows:
        for name in options.kinds:
            count = min(rows, options.emoji) if name == "emoji" else rows
            kept = options.keep and options.keep / f"emoji-{count}.npz"
            if name == "emoji" and kept and kept.exists():
                arrays = np.load(kept)
                matrix, queries = arrays["matrix"], arrays["queries"]
            else:
                matrix, queries = kinds[name](count, np.random.default_rng(0))
                if name == "emoji" and kept:
                    np.savez(kept, matrix=matrix, queries=queries)
            print(f"  {name}: {count:,} x {matrix.shape[1]}", flush=True)
            measure(matrix, queries, options.graph)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"


if __name__ == "__main__":
    main()
