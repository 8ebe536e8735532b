"""Exports a tower from PyTorch to ONNX, with each attention as one node.

Uses the TorchScript exporter: the graph contains only what the tower computes, and no packages besides torch and onnx
are needed. Attention through transformers' attention interface becomes ONNX Runtime's MultiHeadAttention when it is
traced. A model with its own attention (LeViT), or with a bias on its scores (Swin), is exported as written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers
from onnx import TensorProto, helper
from torch.onnx import symbolic_helper

from datasette_vision.bake.original import quiet
from datasette_vision.errors import InstallFailed

OPSET = 17
IR_VERSION = 8  # supported by ONNX Runtime since 1.17
ATTENTION = "datasette_vision"


class _MultiHeadAttention(torch.autograd.Function):
    """Attention over queries, keys and values of shape (n, length, width), exported as one node."""

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, heads: int, scale: float, causal: bool) -> Any:
        return g.op(
            "com.microsoft::MultiHeadAttention",
            query,
            key,
            value,
            num_heads_i=heads,
            scale_f=scale,
            unidirectional_i=int(causal),
        ).setType(query.type())

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, heads: int, scale: float, causal: bool) -> Any:
        parts = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
        mixed = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=causal, scale=scale)
        return mixed.transpose(1, 2).flatten(2)


def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> tuple[Any, None]:
    """Compute attention with the interface of transformers: (n, heads, length, size) -> (n, length, heads, size)."""
    causal = options.get("is_causal")
    causal = bool(getattr(module, "is_causal", False) if causal is None else causal)
    scale = options.get("scaling")
    scale = float(query.shape[-1]) ** -0.5 if scale is None else float(scale)
    if attention_mask is not None:
        scores = torch.matmul(query, key.transpose(-1, -2)) * scale + attention_mask
        return torch.matmul(scores.softmax(-1), value).transpose(1, 2), None
    heads = int(query.shape[1])
    flat = (part.transpose(1, 2).flatten(2) for part in (query, key, value))
    mixed = _MultiHeadAttention.apply(*flat, heads, scale, causal)
    return mixed.unflatten(-1, (heads, -1)), None


def _no_mask(*arguments: Any, **options: Any) -> None:
    """Return no mask. Causal towers set their own flag."""


transformers.AttentionInterface.register(ATTENTION, _attention)
transformers.AttentionMaskInterface.register(ATTENTION, _no_mask)


def _gelu(g: Any, x: Any, approximate: str) -> Any:
    """Export GELU as one node, exact or with the tanh that SigLIP was trained with."""
    operator = "FastGelu" if approximate == "tanh" else "Gelu"
    return g.op(f"com.microsoft::{operator}", x).setType(x.type())


@contextmanager
def exportable(model: Any) -> Iterator[None]:
    """Make the model compute its attention with functions that can be exported as one node, then restore it."""
    before = model.config._attn_implementation
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator without an ONNX equivalent
    torch.onnx.register_custom_op_symbolic("aten::gelu", symbolic_helper.parse_args("v", "s")(_gelu), OPSET)
    try:
        with quiet():
            model.set_attn_implementation(ATTENTION)
            yield
    finally:
        with quiet():
            model.set_attn_implementation(before)
        torch.onnx.unregister_custom_op_symbolic("aten::gelu", OPSET)
        torch.backends.mha.set_fastpath_enabled(fastpath)


def export(
    tower: torch.nn.Module,
    example: dict[str, torch.Tensor],
    output: str,
    path: Path,
    dynamic: dict[str, dict[int, str]],
) -> None:
    """Write `tower` to `path`, with inputs named and shaped as in `example`, and the axes in `dynamic` variable.

    Raises InstallFailed if PyTorch cannot export it.
    """
    try:
        with torch.no_grad(), quiet():
            torch.onnx.export(
                tower,
                tuple(example.values()),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(example),
                output_names=[output],
                dynamic_axes={**dynamic, output: {0: "n"}},
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InstallFailed(f"PyTorch cannot export this model to ONNX: {reason}") from error
    _complete(path, example, dynamic)


def _complete(path: Path, example: dict[str, torch.Tensor], dynamic: dict[str, dict[int, str]]) -> None:
    """Restore the inputs that the tower does not use: all text towers take the same inputs."""
    model = onnx.load(str(path))
    model.ir_version = IR_VERSION
    present = {value.name for value in model.graph.input}
    for name, tensor in example.items():
        if name not in present:
            shape = [dynamic.get(name, {}).get(axis, size) for axis, size in enumerate(tensor.shape)]
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
    onnx.save(model, str(path))
