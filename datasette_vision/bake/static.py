"""Convolutional networks with 8-bit weights and activations, with fixed ranges for the activations.

There is no fast dynamic quantisation for convolutions. Fixed ranges are determined over the calibration images, and are
right for similar images. The comparison with the original decides whether they are good enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onnxruntime import quantization

from datasette_vision.bake.graph import OnnxGraph
from datasette_vision.bake.original import quiet
from datasette_vision.install.prove import ModelInputs

# With fewer convolutions, they are the first layer of another kind of network.
MIN_CONVOLUTIONS = 5


class _Samples(quantization.CalibrationDataReader):
    """Calibration inputs, one after the other."""

    def __init__(self, ranges: Callable[[], Iterator[ModelInputs]]) -> None:
        self._samples = ranges()

    def get_next(self) -> dict[str, Any] | None:
        sample = next(self._samples, None)
        return dict(sample) if sample is not None else None


def quantise_convolutions(source: Path, target: Path, ranges: Callable[[], Iterator[ModelInputs]]) -> bool:
    """Write the graph at `source` to `target` with 8-bit convolutions; return whether it is a convolutional network."""
    graph = OnnxGraph(source)
    if len(graph.nodes("Conv")) < MIN_CONVOLUTIONS or graph.nodes("MatMul"):
        return False
    logging.disable(logging.WARNING)  # advice that is already followed, logged on the root logger
    with quiet():
        quantization.quantize_static(
            str(source),
            str(target),
            _Samples(ranges),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    logging.disable(logging.NOTSET)
    return True
