"""A text embedding over HTTP, beside the least it could cost: a bare `select 1` plus the raw ONNX Runtime call.

python benchmarks/text_over_http.py [--model tiny-emoji] [--runs 300]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import onnxruntime
from servers import serve

from datasette_vision.engine.tokenizer import Tokenizer
from datasette_vision.models.store import ModelStore


def milliseconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-emoji")
    parser.add_argument("--runs", type=int, default=300)
    options = parser.parse_args()
    model = ModelStore().find(options.model)
    text = model.manifest.text
    assert text is not None
    tokenizer = Tokenizer(model.path(text.tokenizer), text)
    session = onnxruntime.InferenceSession(str(model.path(text.file)), providers=["CPUExecutionProvider"])

    def raw(sentence: str) -> None:
        session.run(None, tokenizer.pad([tokenizer.encode(sentence)]))

    figures: dict[str, list[float]] = {"select 1 over HTTP": [], "raw ONNX Runtime": [], "vision_embed over HTTP": []}
    with serve() as server:
        embed = f"select length(vision_embed(:q, '{options.model}')) as bytes"
        for run in range(-20, options.runs):
            sentence = f"purple and gold, number {run}"
            measured = (
                milliseconds(lambda: server.query("select 1", q=sentence)),  # noqa: B023
                milliseconds(lambda: raw(sentence)),  # noqa: B023
                milliseconds(lambda: server.query(embed, q=sentence)),  # noqa: B023
            )
            if run >= 0:
                for figure, value in zip(figures.values(), measured, strict=True):
                    figure.append(value)
    for name, values in figures.items():
        low, high = np.percentile(values, [10, 90])
        print(f"{name:24}{median(values):8.2f} ms (median of {options.runs}; 10 to 90 %: {low:.2f} to {high:.2f})")
    one, engine, ours = (median(values) for values in figures.values())
    print(f"{'ratio':24}{ours / (one + engine):8.2f}")


if __name__ == "__main__":
    main()
