"""Bake a PyTorch model and print what was tried: cosine, time, size, and what loading each tower takes.

python benchmarks/bake_candidates.py MODEL_FOLDER [--precision auto] [--out FOLDER]

Needs the extra `bake`. MODEL_FOLDER is one of transformers or sentence-transformers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from datasette_vision.bake.bake import bake

# Each tower in a process of its own: what memory it takes, and how long until it can answer.
LOAD = """
import sys, time
import onnxruntime
from datasette_vision.util.memory import resident_mib
from datasette_vision.engine.runtime import OnnxSession
before, started, used = resident_mib(), time.perf_counter(), time.process_time()
OnnxSession(sys.argv[1], inputs=tuple(sys.argv[3:]), output=sys.argv[2])
print(f"{1000 * (time.perf_counter() - started):.0f} ms to load ({1000 * (time.process_time() - used):.0f} ms of CPU),"
      f" {resident_mib() - before:.0f} MiB more")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = bake(arguments.model, folder, precision=arguments.precision, on_progress=print)
        output = "embedding" if manifest["task"] == "dual-encoder" else "logits"
        inputs = {"image": ["pixel_values"], "text": ["input_ids", "attention_mask"]}
        for tower in ("image", "text"):
            if tower not in manifest["parity"]:
                continue
            report = manifest["parity"][tower]
            print(f"\n{tower} tower, {report['samples']} samples, kept {report['kept']}")
            for row in report["candidates"]:
                print(
                    f"  {row['name']:12s} {row['milliseconds']:8.1f} ms  worst cosine {row['worst_cosine']:.5f}"
                    f"  mean {row['mean_cosine']:.5f}  {row['size'] / 1e6:6.1f} MB"
                )
            command = [sys.executable, "-c", LOAD, str(folder / f"{tower}.onnx"), output, *inputs[tower]]
            print("  " + subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        print(json.dumps(manifest["made_with"]))


if __name__ == "__main__":
    main()
