"""Recognises what a folder or repository holds, by the names of its files and its config.json."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from datasette_vision.errors import InstallFailed
from datasette_vision.install.origins import Origin, read_json
from datasette_vision.models.tasks import DUAL_ENCODER, IMAGE_CLASSIFICATION

# Names of graphs without ".onnx": (image tower, text tower). First those of Xenova and onnx-community, then Immich's,
# then common names of private exports.
TOWERS = (
    ("onnx/vision_model", "onnx/text_model"),
    ("vision_model", "text_model"),
    ("visual/model", "textual/model"),
    ("vision/model", "text/model"),
    ("image/model", "text/model"),
    ("image", "text"),
    ("visual", "textual"),
    ("image_encoder", "text_encoder"),
)
ONE_GRAPH = ("onnx/model", "model")
# The suffix of a graph's name for each precision. The first match is used.
PRECISIONS = {"fp32": ("",), "int8": ("_quantized", "_int8", "_uint8"), "fp16": ("_fp16",)}
WEIGHTS = ("*.safetensors", "*pytorch_model*.bin", "modules.json")
# The files that an export needs besides weights. Other formats of the same weights are not downloaded.
BESIDE_WEIGHTS = ("*.json", "*.txt", "*.model", "*.py", "*.jinja")
OTHER_FORMATS = ("onnx/*", "openvino/*", "*.onnx*", "*.h5", "*.msgpack", "*.ot", "*.gguf", "*.mlpackage/*", ".*")


@dataclass(frozen=True)
class Graphs:
    """One graph in the available precisions: {"fp32": "onnx/model.onnx"}."""

    origin: Origin
    by_precision: dict[str, str]


@dataclass(frozen=True)
class Finished:
    """A model of this package, installed elsewhere or baked before."""

    origin: Origin


@dataclass(frozen=True)
class Towers:
    """A dual encoder as two graphs, possibly from two repositories."""

    image: Graphs
    text: Graphs


@dataclass(frozen=True)
class Classifier:
    """A classifier as one graph."""

    graphs: Graphs


@dataclass(frozen=True)
class Weights:
    """Weights for PyTorch, to be exported."""

    origin: Origin


Layout: TypeAlias = Finished | Towers | Classifier | Weights


def recognise(
    origin: Origin, task: str | None, partner: Callable[[str], Origin], text_origin: Origin | None = None
) -> Layout:
    """Return what an origin holds.

    `partner` opens another origin by its location, for a dual encoder in two repositories. `text_origin` is that origin
    if it is already known. Raises InstallFailed if there is nothing that can be installed.
    """
    if "manifest.json" in origin.names:
        return Finished(origin)
    if text_origin is not None:
        return _pair(origin, text_origin)
    if task != IMAGE_CLASSIFICATION:
        for image, text in TOWERS:
            image_graphs, text_graphs = _graphs(origin, image), _graphs(origin, text)
            if image_graphs and text_graphs:
                return Towers(image_graphs, text_graphs)
    one = _one_graph(origin)
    config = read_json(origin, "config.json")
    if one is not None and task != DUAL_ENCODER and (task or _classifies(config)):
        return Classifier(one)
    if any(fnmatch.filter(origin.names, pattern) for pattern in WEIGHTS):
        return Weights(origin)
    for image, text in TOWERS:
        lonely = _graphs(origin, image) or _graphs(origin, text)
        if lonely:
            missing = text if _graphs(origin, image) else image
            there = ", ".join(sorted(lonely.by_precision.values()))
            raise InstallFailed(f"{origin.location}: found {there}, but no {missing}.onnx")
    if one is not None:
        return _with_partner(origin, one, partner)
    raise InstallFailed(
        f"{origin.location}: found nothing that can be installed: expected ONNX towers (onnx/vision_model.onnx and"
        " onnx/text_model.onnx), a classifier (model.onnx), PyTorch weights (model.safetensors), or a model installed"
        f" before (manifest.json); found {_shown(origin)}"
    )


def needed_for_export(origin: Origin) -> list[str]:
    """Return the files that an export of PyTorch weights reads: one format of weights, and the files beside them."""
    names = sorted(
        name for name in origin.names if not any(fnmatch.fnmatch(name, pattern) for pattern in OTHER_FORMATS)
    )
    safe = {name for name in names if name.endswith(".safetensors")}
    folders = {name.rpartition("/")[0] for name in safe}
    pickled = {name for name in names if name.endswith(".bin") and name.rpartition("/")[0] not in folders}
    beside = {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in BESIDE_WEIGHTS)}
    return sorted(safe | pickled | beside)


def choose_precisions(graphs: Graphs, wanted: str) -> dict[str, str]:
    """Return the candidate graphs: for "auto", fp32 and int8 if both exist.

    Raises InstallFailed if there is none of the wanted precision.
    """
    found = graphs.by_precision
    if wanted == "auto":
        return {precision: name for precision, name in found.items() if precision != "fp16"} or found
    if wanted in found:
        return {wanted: found[wanted]}
    raise InstallFailed(
        f"{graphs.origin.location}: no graph of precision {wanted}; found {', '.join(sorted(found.values()))}"
    )


def _graphs(origin: Origin, stem: str) -> Graphs | None:
    found = {}
    for precision, suffixes in PRECISIONS.items():
        names = [name for suffix in suffixes if (name := f"{stem}{suffix}.onnx") in origin.names]
        if names:
            found[precision] = names[0]
    return Graphs(origin, found) if found else None


def _one_graph(origin: Origin) -> Graphs | None:
    for stem in ONE_GRAPH:
        if graphs := _graphs(origin, stem):
            return graphs
    only = fnmatch.filter(origin.names, "*.onnx")
    return Graphs(origin, {"fp32": only[0]}) if len(only) == 1 else None


def _classifies(config: dict[str, Any]) -> bool:
    architectures = config.get("architectures") or []
    if any("ImageClassification" in str(name) for name in architectures):
        return True
    return not architectures and "id2label" in config and "text_config" not in config


def _pair(origin: Origin, text_origin: Origin) -> Towers:
    """Combine the image tower of one origin with the text tower of another."""
    image, text = _graphs(origin, TOWERS[0][0]) or _one_graph(origin), _one_graph(text_origin)
    for found, place in ((image, origin), (text, text_origin)):
        if found is None:
            raise InstallFailed(f"{place.location}: expected model.onnx, found {_shown(place)}")
    assert image is not None
    assert text is not None
    return Towers(image, text)


def _with_partner(origin: Origin, graphs: Graphs, partner: Callable[[str], Origin]) -> Towers:
    """Find the other tower of a dual encoder in two repositories, like those of Qdrant."""
    reads_text, reads_images = "tokenizer.json" in origin.names, "preprocessor_config.json" in origin.names
    own, other = ("text", "vision") if reads_text else ("vision", "text")
    head, mark, tail = origin.location.rpartition(f"-{own}")
    if reads_text == reads_images or not mark:
        raise InstallFailed(
            f"{origin.location}: one graph of unknown kind. For a classifier, pass --task"
            " image-classification, --labels and --preprocess. For a dual encoder, provide separate towers, as"
            " onnx/vision_model.onnx and onnx/text_model.onnx, or as two repositories NAME-vision and NAME-text"
        )
    found = partner(f"{head}-{other}{tail}")
    return _pair(found, origin) if reads_text else _pair(origin, found)


def _shown(origin: Origin) -> str:
    names = sorted(origin.names)
    return (", ".join(names[:8]) + (" …" if len(names) > 8 else "")) or "no files"
