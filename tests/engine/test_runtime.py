"""engine/runtime.py: graphs that are as announced, and graphs that are not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from datasette_vision.engine.runtime import WIDEN, OnnxSession, Port, default_threads, ports, waiting
from datasette_vision.errors import ConfigError, EngineFailure, ModelCorrupt
from tests import fakes

FAILED = "the inference engine failed on this input; see the log"


def graph(path: Path, kind: int = TensorProto.FLOAT, second: str | None = None) -> Path:
    """embedding = pixel_values + 1, of kind `kind`; and with `second`, an input more that is added to it."""
    names = ["pixel_values", *([second] if second else [])]
    fakes.save_graph(
        path,
        [
            helper.make_node("Add", ["pixel_values", second or "one"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["embedding"], to=kind),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in names],
        helper.make_tensor_value_info("embedding", kind, ["n", 2]),
        {} if second else {"one": np.array([1], dtype=np.float32)},
    )
    return path


def load(path: Path, inputs: tuple[str, ...] = ("pixel_values",), output: str = "embedding") -> OnnxSession:
    return OnnxSession(path, inputs=inputs, output=output, threads=1)


def zeros(*shape: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    return {"pixel_values": np.zeros(shape, dtype=dtype)}


# Running


def test_run(tmp_path: Path) -> None:
    session = load(graph(tmp_path / "x.onnx"))
    found = session.run({"pixel_values": np.array([[1, 2], [3, 4]], dtype=np.float32)})
    assert found.dtype == np.float32
    assert found.tolist() == [[2, 3], [4, 5]]


@pytest.mark.parametrize("rows", [0, 1, 2, 33, 7])
def test_batches_of_any_size(tmp_path: Path, rows: int) -> None:
    assert load(graph(tmp_path / "x.onnx")).run(zeros(rows, 2)).tolist() == [[1, 1]] * rows


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT])
def test_the_output_is_float32_whatever_the_graph_gives(tmp_path: Path, kind: int) -> None:
    found = load(graph(tmp_path / "x.onnx", kind)).run(zeros(1, 2))
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 1]]


def test_a_path_that_is_not_ascii(tmp_path: Path) -> None:
    assert load(graph(tmp_path / "modèle 模型.onnx")).run(zeros(1, 2)).tolist() == [[1, 1]]


def test_the_threads_are_those_asked_for(tmp_path: Path) -> None:
    path = graph(tmp_path / "x.onnx")
    for given, expected in ((3, 3), (None, default_threads())):
        session = OnnxSession(path, inputs=("pixel_values",), output="embedding", threads=given)
        assert session._session.get_session_options().intra_op_num_threads == expected
    assert default_threads() >= 1


def test_execution_providers(tmp_path: Path) -> None:
    path = graph(tmp_path / "x.onnx")
    only = ["CPUExecutionProvider"]
    for given in ([], only):
        session = OnnxSession(path, inputs=("pixel_values",), output="embedding", providers=given)
        assert session._session.get_providers() == only
    with pytest.raises(
        ConfigError, match=r"providers: the installed ONNX Runtime has .*CPUExecutionProvider.*, not Gpu;"
    ):
        OnnxSession(path, inputs=("pixel_values",), output="embedding", providers=["Gpu", *only])


@pytest.mark.parametrize("version", ["1.22.0", "1.25.1", "1.26.0", "1.31.1", "2.0.0"])
def test_threads_do_not_spin_for_long(version: str) -> None:
    """ONNX Runtime without the newer setting would spin on for 30 ms: there, threads sleep."""
    newer = {"session.intra_op.spin_duration_us": "100"}
    older = {"session.intra_op.allow_spinning": "0"}
    assert waiting(version) == (older if version < "1.26" else newer)


@pytest.mark.parametrize("overflow", [False, True])
def test_exact_products_are_asked_for_only_where_they_overflow(tmp_path: Path, overflow: bool) -> None:
    path = graph(tmp_path / "x.onnx")
    session = OnnxSession(path, inputs=("pixel_values",), output="embedding", widen=lambda: overflow)
    options = session._session.get_session_options()
    if overflow:
        assert options.get_session_config_entry(WIDEN) == "1"
    else:
        with pytest.raises(RuntimeError, match=WIDEN):
            options.get_session_config_entry(WIDEN)
    assert session.run(zeros(1, 2)).tolist() == [[1, 1]]


def test_many_threads_run_one_session(tmp_path: Path) -> None:
    session = load(graph(tmp_path / "x.onnx"))

    def work(number: int) -> list[list[float]]:
        return session.run({"pixel_values": np.full((3, 2), number, dtype=np.float32)}).tolist()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(200)))
    assert found == [[[number + 1, number + 1]] * 3 for number in range(200)]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_graph_for_one_row_at_a_time(tmp_path: Path, rows: int) -> None:
    """As torch.onnx.export writes it without dynamic axes."""
    path = tmp_path / "x.onnx"
    fakes.save_graph(
        path,
        [helper.make_node("Add", ["pixel_values", "one"], ["embedding"])],
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 2])],
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 2]),
        {"one": np.array([1], dtype=np.float32)},
    )
    values = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    assert load(path).run({"pixel_values": values}).tolist() == (values + 1).tolist()


@pytest.mark.parametrize(("kind", "given"), [(TensorProto.INT32, np.int64), (TensorProto.FLOAT16, np.float32)])
def test_inputs_narrower_than_ours(tmp_path: Path, kind: int, given: Any) -> None:
    path = tmp_path / "x.onnx"
    fakes.save_graph(
        path,
        [helper.make_node("Cast", ["pixel_values"], ["embedding"], to=TensorProto.FLOAT)],
        [helper.make_tensor_value_info("pixel_values", kind, ["n", 2])],
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 2]),
        {},
    )
    assert load(path).run({"pixel_values": np.array([[3, 4]], dtype=given)}).tolist() == [[3, 4]]


def test_ports(tmp_path: Path) -> None:
    inputs, outputs = ports(graph(tmp_path / "x.onnx", TensorProto.FLOAT16))
    assert inputs == (Port("pixel_values", "tensor(float)", (None, 2)),)
    assert outputs == (Port("embedding", "tensor(float16)", (None, 2)),)
    with pytest.raises(ModelCorrupt, match=r"missing\.onnx: expected a graph"):
        ports(tmp_path / "missing.onnx")


# Failing


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"pixels": np.zeros((1, 2), dtype=np.float32)},
        {**zeros(1, 2), "more": np.zeros(1)},
        zeros(1, 3),
        zeros(2),
        zeros(1, 2, dtype=np.float64),
        {"pixel_values": "secret"},
        {"pixel_values": None},
    ],
    ids=str,
)
def test_a_run_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture, inputs: dict[str, Any]) -> None:
    session = load(graph(tmp_path / "x.onnx"))
    with caplog.at_level(logging.ERROR), pytest.raises(EngineFailure) as caught:
        session.run(inputs)
    assert str(caught.value) == FAILED
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert [record.getMessage().startswith("ONNX Runtime failed: ") for record in caplog.records] == [True]
    # The next one is served.
    assert session.run(zeros(1, 2)).tolist() == [[1, 1]]


# Loading


@pytest.mark.parametrize("content", [None, b"", b"no graph", b"\x08\x08" * 1000, "truncated"], ids=str)
def test_what_cannot_be_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | str | None) -> None:
    path = tmp_path / "x.onnx"
    if content == "truncated":
        fakes.image_graph(path, 8, "embedding")
        path.write_bytes(path.read_bytes()[:-100])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with caplog.at_level(logging.ERROR), pytest.raises(ModelCorrupt) as caught:
        load(path)
    assert str(caught.value) == f"{path}: expected a graph that ONNX Runtime can load; see the log"
    assert caught.value.__suppress_context__
    assert f"{path}: ONNX Runtime could not load it: " in caplog.text


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (("pixels",), "embedding", "expected input pixels, found pixel_values"),
        (("pixel_values", "mask"), "embedding", "expected input pixel_values, mask, found pixel_values"),
        ((), "embedding", "expected input , found pixel_values"),
        (("pixel_values",), "logits", "expected output logits, found embedding"),
        (("pixel_values",), "sum", "expected output sum, found embedding"),
    ],
)
def test_other_inputs_or_outputs(tmp_path: Path, inputs: tuple[str, ...], output: str, message: str) -> None:
    path = graph(tmp_path / "x.onnx")
    with pytest.raises(ModelCorrupt) as caught:
        load(path, inputs, output)
    assert str(caught.value) == f"{path}: {message}"


def test_an_input_that_nobody_would_fill(tmp_path: Path) -> None:
    path = graph(tmp_path / "x.onnx", second="mask")
    with pytest.raises(ModelCorrupt) as caught:
        load(path)
    assert str(caught.value) == f"{path}: expected input pixel_values, found mask, pixel_values"
    found = load(path, ("mask", "pixel_values")).run({**zeros(1, 2), "mask": np.ones((1, 2), dtype=np.float32)})
    assert found.tolist() == [[1, 1]]


def test_an_output_more_does_no_harm(tmp_path: Path) -> None:
    """Towers exported by transformers give their hidden states too."""
    path = tmp_path / "x.onnx"
    import onnx

    model = onnx.load(graph(path))
    model.graph.output.insert(0, helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 2]))
    model.graph.node[1].op_type = "Neg"
    del model.graph.node[1].attribute[:]
    onnx.save(model, path)
    assert load(path).run(zeros(1, 2)).tolist() == [[-1, -1]]


def test_nothing_is_reported_to_anybody(tmp_path: Path) -> None:
    """ONNX Runtime collects telemetry from 1.31 on, and keeps it in the user's home until it is sent."""
    code = (
        "from datasette_vision.models.store import ModelStore; from datasette_vision.engine.runtime import ports;"
        "model = ModelStore().find('tiny-emoji'); print(len(ports(model.path(model.manifest.image.file))))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "ORT_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**environment, "HOME": str(tmp_path)}
    )
    assert done.stdout == "2\n", done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
