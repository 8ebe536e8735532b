"""The only module that imports onnxruntime (except those that bake). It does so when the first model is loaded."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine import overflow
from datasette_vision.errors import ConfigError, EngineFailure, ModelCorrupt
from datasette_vision.models.operators import uses
from datasette_vision.util import memory
from datasette_vision.util.cores import available_cores

logger = logging.getLogger(__name__)


class Session(Protocol):
    """A loaded graph. Thread-safe.

    `one_by_one`: whether it gets one row at a time, because it accepts no more, or because the rows of a batch affect
    each other. Padding a text to the length of others would too.
    """

    one_by_one: bool

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Compute the graph's output for the named inputs."""


def default_threads() -> int:
    """Return how many cores this process may use, according to its container."""
    return available_cores()


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: its element type as ONNX Runtime names it, and its shape, with None for
    variable sizes.
    """

    name: str
    type: str
    shape: tuple[int | None, ...]


# The first version with a setting for how long threads spin. Earlier ones ignore unknown settings.
SPIN_DURATION_SINCE = (1, 26)
CPU = "CPUExecutionProvider"
WIDEN = "session.x64quantprecision"
# These scale the activations of a whole batch by its largest value: the embedding of an image beside a bright one would
# differ by a hundredth or so. ONNX Runtime's quantize_dynamic() makes such graphs; ours do not have them.
SCALE_THE_BATCH = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
# Our types -> the narrower types that some exporters give their inputs. Nothing else is converted.
NARROWED = {
    ("int64", "tensor(int32)"): np.int32,
    ("float32", "tensor(float16)"): np.float16,
}


@functools.cache
def products_overflow() -> bool:
    """Whether 8-bit products overflow on this processor. Determined once per process, in less than a millisecond."""
    without_telemetry()
    import onnxruntime  # heavy: loaded with the first model, never at start

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(overflow.product_graph(), options, providers=[CPU])
    return overflow.overflows(lambda rows: session.run(["y"], {"x": rows})[0])


def known_overflow() -> bool | None:
    """Return what products_overflow() found, None where nothing was loaded yet."""
    return products_overflow() if products_overflow.cache_info().currsize else None


class OnnxSession:
    """A graph loaded by ONNX Runtime. Apart from rounding, the other rows of a batch do not change a row's result."""

    def __init__(
        self,
        path: Path,
        *,
        inputs: tuple[str, ...],
        output: str,
        threads: int | None = None,
        providers: Sequence[str] = (),
        widen: Callable[[], bool] = products_overflow,
    ) -> None:
        """Load the graph at `path`, on the CPU unless other execution providers are given, best first.

        Where `widen()`, 8-bit products are added in 32 bits, at the price of time: see overflow.py.
        Raises ModelCorrupt when it cannot be loaded, or does not have these inputs and this output, and ConfigError for
        a provider that the installed ONNX Runtime does not have.
        """
        self._session = _load(path, threads or default_threads(), providers=providers, widen=widen)
        for kind, expected, nodes in (
            ("input", inputs, self._session.get_inputs()),
            ("output", (output,), self._session.get_outputs()),
        ):
            found = {node.name for node in nodes}
            if not set(expected) <= found or (kind == "input" and set(expected) != found):
                raise ModelCorrupt(
                    f"{path}: expected {kind} {', '.join(expected)}, found {', '.join(sorted(found)) or 'none'}"
                )
        self._run_options = run_options()
        # Loading takes twice the memory that the graph keeps: of 350 MiB with CLIP, 65 are free again by now.
        memory.trim()
        self._output = output
        self._types = {node.name: node.type for node in self._session.get_inputs()}
        # One row at a time if there is no batch axis, which is the default of torch.onnx.export.
        fixed = any(node.shape[:1] == [1] for node in self._session.get_inputs())
        self.one_by_one = fixed or uses(path, SCALE_THE_BATCH)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Compute the output. Raises EngineFailure; the details are in the log."""
        try:
            feeds = {name: self._fitted(name, value) for name, value in inputs.items()}
            rows = len(next(iter(feeds.values()))) if feeds else 0
            if self.one_by_one and rows > 1:
                single = [{name: value[row : row + 1] for name, value in feeds.items()} for row in range(rows)]
                answers = [self._session.run([self._output], feed, self._run_options)[0] for feed in single]
                return np.concatenate(answers).astype(np.float32, copy=False)
            # Half-precision graphs return float16.
            return self._session.run([self._output], feeds, self._run_options)[0].astype(np.float32, copy=False)
        except Exception as error:
            logger.error("ONNX Runtime failed: %s", error)
            raise EngineFailure("the inference engine failed on this input; see the log") from None

    def _fitted(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        narrower = NARROWED.get((str(getattr(value, "dtype", "")), self._types.get(name, "")))
        return value if narrower is None else value.astype(narrower)


def ports(path: Path) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Return the inputs and the outputs of a graph. Raises ModelCorrupt if it cannot be loaded."""
    session = _load(path, 1, optimise=False)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return tuple(_port(node) for node in inputs), tuple(_port(node) for node in outputs)


def _port(node: Any) -> Port:
    return Port(
        node.name, node.type, tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape)
    )


def without_telemetry() -> None:
    """Disable ONNX Runtime's telemetry before it is imported: since 1.31 it reports data, and writes to the user's
    home.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def waiting(version: str) -> dict[str, str]:
    """Return the settings for how threads wait for the next operator of a graph.

    Spinning for 30 ms, ONNX Runtime's default, takes the cores from Datasette and from the other tower. Threads that
    sleep at once wake up only when an operator of 0.3 ms is over. 100 microseconds are longer than the gaps in a graph.
    """
    if tuple(int(part) for part in version.split(".")[:2]) >= SPIN_DURATION_SINCE:
        return {"session.intra_op.spin_duration_us": "100"}
    return {"session.intra_op.allow_spinning": "0"}


def session_options(threads: int) -> Any:
    """Return ONNX Runtime's options for a graph on so many threads."""
    import onnxruntime  # heavy: loaded with the first model, never at start

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for key, value in waiting(onnxruntime.__version__).items():
        options.add_session_config_entry(key, value)
    options.enable_mem_pattern = False  # shapes differ from call to call
    # Planning which buffers to share takes time that grows with the square of the graph: 110 of the 140 ms that a CLIP
    # text tower takes to load. Without it, buffers are still freed after their last use.
    options.enable_mem_reuse = False
    options.log_severity_level = 3
    return options


def run_options() -> Any:
    """Return ONNX Runtime's options for a run: what its arena took goes back to the system when the run is over.

    Without an arena every operator faults its buffers in again: twice the time of 32 images with CLIP. One that keeps
    what it took holds 219 MiB after them, this one 157.
    """
    import onnxruntime  # heavy: loaded with the first model, never at start

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _load(
    path: Path,
    threads: int,
    *,
    optimise: bool = True,
    providers: Sequence[str] = (),
    widen: Callable[[], bool] = lambda: False,
) -> Any:
    without_telemetry()
    import onnxruntime  # heavy: loaded with the first model, never at start

    available = onnxruntime.get_available_providers()
    if unknown := [name for name in providers if name not in available]:
        raise ConfigError(
            f"providers: the installed ONNX Runtime has {', '.join(available)}, not {', '.join(unknown)};"
            " for NVIDIA GPUs: pip install onnxruntime-gpu"
        )
    options = session_options(threads)
    if widen():
        options.add_session_config_entry(WIDEN, "1")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[*providers, *([] if CPU in providers else [CPU])]
        )
    except Exception as error:
        logger.error("%s: ONNX Runtime could not load it: %s", path, error)
        raise ModelCorrupt(f"{path}: expected a graph that ONNX Runtime can load; see the log") from None
