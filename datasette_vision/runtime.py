"""The only module that imports onnxruntime, and it does so when the first model is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasette_vision.errors import EngineFailure, ModelCorrupt

logger = logging.getLogger(__name__)


class Session(Protocol):
    """A loaded graph. Thread-safe."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Compute the graph's one output for the named inputs."""


def default_threads() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class OnnxSession:
    """A graph loaded by ONNX Runtime on the CPU."""

    def __init__(self, path: Path, *, inputs: tuple[str, ...], output: str, threads: int | None = None) -> None:
        """Load the graph at `path`.

        Raises ModelCorrupt when it cannot be loaded, or does not have these inputs and this output.
        """
        import onnxruntime  # heavy: loaded with the first model, never at start

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take the cores from Datasette and from the other tower.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Shapes differ from call to call, and the arena never gives memory back: 50 MiB of 300 with CLIP.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            logger.error("%s: ONNX Runtime could not load it: %s", path, error)
            raise ModelCorrupt(f"{path}: expected a graph that ONNX Runtime can load; the log says why not") from None
        for kind, expected, nodes in (
            ("input", inputs, self._session.get_inputs()),
            ("output", (output,), self._session.get_outputs()),
        ):
            found = {node.name for node in nodes}
            if not set(expected) <= found or (kind == "input" and set(expected) != found):
                raise ModelCorrupt(
                    f"{path}: expected {kind} {', '.join(expected)}, found {', '.join(sorted(found)) or 'none'}"
                )
        self._output = output

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Compute the output. Raises EngineFailure, the details in the log."""
        try:
            # Half precision graphs answer in float16.
            return self._session.run([self._output], dict(inputs))[0].astype(np.float32, copy=False)
        except Exception as error:
            logger.error("ONNX Runtime failed: %s", error)
            raise EngineFailure("the inference engine failed on this input; the log says why") from None
