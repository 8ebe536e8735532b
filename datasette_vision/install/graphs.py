"""Determines the inputs and outputs of a third-party graph, from names and shapes and by running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasette_vision.engine.runtime import OnnxSession, Port, ports
from datasette_vision.errors import EngineFailure, InstallFailed
from datasette_vision.install.prove import Run
from datasette_vision.models.manifest import TextTower

# Names that exporters give to the embedding in the shared space, best first. For SigLIP this is "pooler_output", but
# for CLIP that is the value before the projection: CLIP graphs also have image_embeds or text_embeds.
EMBEDDINGS = (
    "image_embeds",
    "text_embeds",
    "embedding",
    "embeddings",
    "sentence_embedding",
    "image_embedding",
    "text_embedding",
    "image_features",
    "text_features",
    "pooler_output",
    "output",
)
LOGITS = ("logits", "output", "output_0", "probabilities", "scores")
HIDDEN_STATES = ("last_hidden_state", "token_embeddings", "hidden_states")
DEFAULT_SIDE = 224


@dataclass(frozen=True)
class ImagePorts:
    """The input and output of an image tower or classifier; `side`: pixels, if the graph fixes them."""

    input: str
    output: str
    side: int | None


@dataclass(frozen=True)
class TextPorts:
    """The inputs and output of a text tower; `length`: tokens, if the graph fixes them."""

    input_ids: str
    attention_mask: str | None
    output: str
    length: int | None


def image_ports(path: Path, outputs: tuple[str, ...] = EMBEDDINGS) -> ImagePorts:
    """Return the input for pixels and the output of a graph. Raises InstallFailed if it takes something else."""
    inputs, found = ports(path)
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        both = any("input_ids" in port.name for port in inputs) and any(len(port.shape) == 4 for port in inputs)
        raise InstallFailed(
            f"{path.name}: expected one input, of shape (n, 3, height, width); found {_listed(inputs)}"
            + (": both towers in one graph: separate towers are needed" if both else "")
        )
    channels, height, width = inputs[0].shape[1:]
    if channels not in {3, None}:
        kind = "channels last: export it with channels first" if width == 3 else f"{channels} channels"
        raise InstallFailed(f"{path.name}: expected pixels of shape (n, 3, height, width), found {kind}")
    if height != width:
        raise InstallFailed(f"{path.name}: expected square images, found {height} x {width}")
    return ImagePorts(inputs[0].name, _output(path, found, outputs), height)


def text_ports(path: Path) -> TextPorts:
    """Return the inputs for tokens and the output of a graph. Raises InstallFailed if it takes something else."""
    inputs, outputs = ports(path)
    masks = [port for port in inputs if "mask" in port.name]
    ids = [port for port in inputs if "int" in port.type and port not in masks]
    if len(ids) != 1 or len(masks) > 1 or len(inputs) != len(ids) + len(masks):
        raise InstallFailed(
            f"{path.name}: expected the inputs input_ids and, optionally, attention_mask; found {_listed(inputs)}"
        )
    length = ids[0].shape[1] if len(ids[0].shape) == 2 else None
    return TextPorts(ids[0].name, masks[0].name if masks else None, _output(path, outputs, EMBEDDINGS), length)


def _output(path: Path, outputs: tuple[Port, ...], preferred: tuple[str, ...]) -> str:
    """Choose the output of shape (n, d). One without a stated shape is a candidate too, because the graph will be
    run.
    """
    flat = [port.name for port in outputs if len(port.shape) in {0, 2} and port.name not in HIDDEN_STATES]
    for name in preferred:
        if name in flat:
            return name
    if len(flat) == 1:
        return flat[0]
    raise InstallFailed(
        f"{path.name}: expected an output of shape (n, d) named {preferred[0]} or {preferred[2]};"
        f" found {_listed(outputs)}"
    )


def _listed(found: tuple[Port, ...]) -> str:
    return ", ".join(
        f"{port.name} ({', '.join('?' if size is None else str(size) for size in port.shape)})" for port in found
    )


def image_run(path: Path, found: ImagePorts) -> Run:
    """Load an image graph: {"pixel_values": (n, 3, h, w)} -> (n, d). It raises InstallFailed for another shape."""
    session = OnnxSession(path, inputs=(found.input,), output=found.output)
    return lambda inputs: _rows(path, session, {found.input: inputs["pixel_values"]}, found.output)


def text_run(path: Path, tower: TextTower) -> Run:
    """Load a text graph: {"input_ids", "attention_mask": (n, length)} -> (n, d). Raises as image_run()."""
    names = {tower.input_ids: "input_ids"}
    if tower.attention_mask is not None:
        names[tower.attention_mask] = "attention_mask"
    session = OnnxSession(path, inputs=tuple(names), output=tower.output)
    return lambda inputs: _rows(path, session, {name: inputs[own] for name, own in names.items()}, tower.output)


def _rows(path: Path, session: OnnxSession, feeds: Mapping[str, NDArray[Any]], output: str) -> NDArray[np.float32]:
    count = len(next(iter(feeds.values())))
    shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
    try:
        result = session.run(feeds)
    except EngineFailure:
        raise InstallFailed(f"{path.name}: the graph failed on {shapes}; see the log") from None
    if result.ndim != 2 or len(result) != count:
        raise InstallFailed(f"{path.name}: {output}: expected shape ({count}, d) for {shapes}, found {result.shape}")
    if not np.isfinite(result).all():
        raise InstallFailed(f"{path.name}: {output}: the graph returns values that are not numbers")
    return result
