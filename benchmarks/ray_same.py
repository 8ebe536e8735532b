"""The same images without Ray, with Ray on this machine, on a cluster of three nodes, and with a node of it killed.

python -m benchmarks.ray_same [--images 2000] [--broken 50] [--model clip] [--models-dir DIR]

Fails unless all have each image once, with the same digest, size and error, and embeddings within 1e-6.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from benchmarks import ray_images
from datasette_vision.bulk.pipeline import config_for_bulk
from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.files import embed_files
from datasette_vision.files.embed_files import Job
from datasette_vision.files.ray import cluster as ray_cluster
from datasette_vision.files.ray import job as ray_job

TOLERANCE = 1e-6
NODE = {"num_cpus": 1, "object_store_memory": 200_000_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--broken", type=int, default=50)
    parser.add_argument("--model", default="tiny-emoji")
    parser.add_argument("--models-dir")
    options = parser.parse_args()
    config = Config(models_dir=options.models_dir)
    ray_cluster.settle()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ray_images.write(folder / "photos", options.images, options.broken)

        def job(out: str) -> Job:
            return Job((str(folder / "photos"),), str(folder / out), options.model, rows_per_file=64)

        def without() -> None:
            vision = Vision(config_for_bulk(config))
            embed_files.embed_files(job("without"), vision)
            vision.close()

        def here() -> None:
            ray_job.embed_files_on_ray(job("here"), config, quiet=True)

        def cluster(out: str, kill: bool) -> None:
            made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
            nodes = [made.add_node(**NODE) for _ in range(2)]
            made.wait_for_nodes()
            ray.init(address=made.address, log_to_driver=False)

            def end() -> None:
                while len(list((folder / out).glob("part-*"))) * 64 < options.images // 4:
                    time.sleep(0.1)
                made.remove_node(nodes[0], allow_graceful=False)
                done = sum(len(ray_images.rows(path)) for path in (folder / out).glob("part-*"))
                print(f"  one node of three is killed: {done:,} images are written")

            thread = threading.Thread(target=end, daemon=True)
            if kill:
                thread.start()
            workers = ray_job.Workers(minimum=3, maximum=3, images_per_block=32)
            ray_job.embed_files_on_ray(job(out), config, workers=workers, quiet=True)
            if kill and thread.is_alive():
                sys.exit("the job was over before a node was killed")
            ray.shutdown()
            made.shutdown()

        ways: dict[str, Callable[[], None]] = {
            "without": without,
            "here": here,
            "three-nodes": lambda: cluster("three-nodes", False),
            "node-killed": lambda: cluster("node-killed", True),
        }
        print(f"{options.images:,} images, {options.broken} of them broken, {options.model}")
        failed = False
        expected: list[dict[str, Any]] = []
        for way, run in ways.items():
            began = time.perf_counter()
            run()
            seconds = time.perf_counter() - began
            found = ray_images.rows(folder / way)
            expected = expected or found
            errors = sum(row["error"] is not None for row in found)
            same, largest, exact = ray_images.compare(found, expected)
            once = len(found) == len({row["path"] for row in found}) == options.images
            print(
                f"{way:12} {len(found):,} rows, {errors} errors, {seconds:6.1f} s: "
                + (f"{'bit for bit' if exact else f'within {largest:.1e}'}" if same else "NOT the same rows")
            )
            failed |= not (same and once and largest <= TOLERANCE and errors == options.broken)
        if failed:
            sys.exit("the ways differ")


if __name__ == "__main__":
    main()
