"""From a recognised source to files in the staging folder, and a manifest without name, files and canonical results."""

from __future__ import annotations

import dataclasses
import itertools
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasette_vision.engine.tokenizer import Tokenizer
from datasette_vision.errors import InstallFailed, InvalidArgument
from datasette_vision.images.preprocess import Preprocess
from datasette_vision.install import graphs, preprocessors, samples, text_towers
from datasette_vision.install.labels import labels_of, read_labels
from datasette_vision.install.origins import UNKNOWN_LICENCE, Origin, read_json
from datasette_vision.install.prove import THRESHOLD, ModelInputs, Ranked, Rows, Run, no_inputs, prove
from datasette_vision.install.sources import Classifier, Graphs, Towers, choose_precisions
from datasette_vision.install.staging import link_or_copy
from datasette_vision.models.catalog import CLIP_LOGIT_SCALE, CatalogRow
from datasette_vision.models.manifest import MANIFEST_FORMAT, ImageTower, TextTower, parse_preprocess
from datasette_vision.models.tasks import DUAL_ENCODER, IMAGE_CLASSIFICATION
from datasette_vision.models.weights import weights_beside
from datasette_vision.util.progress import OnProgress

Draft = dict[str, Any]

# The files with the preprocessing: beside the graph, or at the root.
PREPROCESS_FILES = ("preprocessor_config.json", "processor_config.json", "preprocess_cfg.json")
# Enough to see whether a graph gives probabilities.
FEW_IMAGES = 4
PACKAGES = ("datasette-vision", "onnxruntime", "tokenizers", "pillow")


@dataclass(frozen=True)
class Wishes:
    """The user's options for the model, and its row in the catalogue."""

    precision: str = "auto"
    calibration: Path | None = None
    labels: Path | None = None
    preprocess: str | None = None
    row: CatalogRow | None = None


def from_towers(layout: Towers, wishes: Wishes, staging: Path, on_progress: OnProgress[str]) -> Draft:
    """Draft a dual encoder from two graphs. Raises InstallFailed."""
    image_files = _fetch(layout.image, wishes.precision, staging, "image")
    text_files = _fetch(layout.text, wishes.precision, staging, "text")
    tokenizer = staging / "tokenizer.json"
    text_origin = layout.text.origin
    tokenizer_name = _beside(layout.text, ("tokenizer.json",))
    lowered = text_towers.write_tokenizer(text_origin, tokenizer_name, tokenizer)

    any_image = next(iter(image_files.values()))
    image = graphs.image_ports(any_image)
    spec = _preprocess(layout.image, wishes, image.side or graphs.DEFAULT_SIDE)
    preprocess = parse_preprocess(spec, "--preprocess")
    parity: dict[str, Any] = {}

    def load_image(path: Path) -> Run:
        return graphs.image_run(path, graphs.image_ports(path))

    def ranked() -> Iterator[ModelInputs]:
        return _inputs(preprocess, samples.ranked_images(wishes.calibration))

    image_precision = _prove(
        "image", image_files, load_image, _pixels(preprocess, wishes), parity, on_progress, ranked=ranked
    )
    reference = text_files.get("fp32", next(iter(text_files.values())))
    row = wishes.row
    tower = text_towers.describe_text_tower(
        text_origin,
        tokenizer_name,
        reference,
        graphs.text_ports(reference),
        tokenizer,
        row.context_length if row else None,
    )
    cutter = Tokenizer(tokenizer, tower)
    texts = [cutter.pad([cutter.encode(text)]) for text in samples.SAMPLE_TEXTS]

    def load_text(path: Path) -> Run:
        return graphs.text_run(path, _with_ports(tower, path))

    text_precision = _prove("text", text_files, load_text, texts, parity, on_progress)

    image_path = _keep(staging, image_files, image_precision, "image")
    text_path = _keep(staging, text_files, text_precision, "text")
    used = graphs.image_ports(image_path)
    canonical = {"pixel_values": preprocess(samples.canonical_picture())[None]}
    dimensions, text_dimensions = load_image(image_path)(canonical).shape[1], load_text(text_path)(texts[0]).shape[1]
    if dimensions != text_dimensions:
        raise InstallFailed(
            f"{layout.image.origin.location}: the image tower has {dimensions} dimensions ({used.output}), the text"
            f" tower {text_dimensions} ({tower.output}): at least one of them lacks its projection"
        )
    return {
        **head(DUAL_ENCODER, [layout.image.origin, text_origin], row),
        "precision": image_precision
        if image_precision == text_precision
        else f"{image_precision} image, {text_precision} text",
        "dimensions": dimensions,
        **_scale(layout, row, on_progress),
        "image": {**_ports(ImageTower(_inside(staging, image_path), used.input, used.output))},
        "text": {**_with_ports(tower, text_path).__dict__, "file": _inside(staging, text_path)},
        "preprocess": spec,
        "labels": [],
        "parity": _parity(parity) | ({"tokenizer": "lower-cases, as trained"} if lowered else {}),
        "made_with": package_versions(),
    }


def from_classifier(layout: Classifier, wishes: Wishes, staging: Path, on_progress: OnProgress[str]) -> Draft:
    """Draft a classifier from one graph and its labels. Raises InstallFailed or InvalidArgument."""
    origin = layout.graphs.origin
    config = read_json(origin, "config.json")
    labels = read_labels(wishes.labels) if wishes.labels else labels_of(config)
    if not labels:
        raise InvalidArgument(
            f"{origin.location}: the classes are unknown: pass --labels FILE, with one label per line or JSON"
        )
    files = _fetch(layout.graphs, wishes.precision, staging, "image")
    found = graphs.image_ports(next(iter(files.values())), graphs.LOGITS)
    spec = _preprocess(layout.graphs, wishes, found.side or graphs.DEFAULT_SIDE)
    preprocess = parse_preprocess(spec, "--preprocess")
    parity: dict[str, Any] = {}

    def load(path: Path) -> Run:
        return graphs.image_run(path, graphs.image_ports(path, graphs.LOGITS))

    precision = _prove("image", files, load, _pixels(preprocess, wishes), parity, on_progress)
    path = _keep(staging, files, precision, "image")
    used = graphs.image_ports(path, graphs.LOGITS)
    run, few = load(path), itertools.islice(samples.sample_images(wishes.calibration), FEW_IMAGES)
    rows = np.concatenate([run({"pixel_values": preprocess(picture)[None]}) for picture in few])
    if rows.shape[1] != len(labels):
        raise InstallFailed(
            f"{origin.location}: {path.name} returns {rows.shape[1]} scores, but there are {len(labels)} labels"
        )
    multi_label = config.get("problem_type") == "multi_label_classification"
    return {
        **head(IMAGE_CLASSIFICATION, [origin], wishes.row),
        "precision": precision,
        "dimensions": len(labels),
        "activation": "none" if _are_probabilities(rows) else "sigmoid" if multi_label else "softmax",
        "image": _ports(ImageTower(_inside(staging, path), used.input, used.output)),
        "preprocess": spec,
        "labels": [{"label": label} for label in labels],
        "parity": _parity(parity),
        "made_with": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that make the model."""
    return {"python": platform.python_version(), **{package: metadata.version(package) for package in PACKAGES}}


def _fetch(tower: Graphs, precision: str, staging: Path, name: str) -> dict[str, Path]:
    """Put the candidate graphs into the staging folder: returns precision -> path there."""
    chosen = choose_precisions(tower, precision)
    found = {}
    for kind, source in chosen.items():
        data = weights_beside(source, tower.origin.names)
        # A graph refers to its weights by file name. They keep their names, in a folder without other graphs.
        target = staging / name / kind / Path(source).name if data else staging / f"{name}-{kind}.onnx"
        if len(chosen) == 1 and not data:
            target = staging / f"{name}.onnx"
        link_or_copy(tower.origin, source, target)
        for file in data:
            link_or_copy(tower.origin, file, target.parent / Path(file).name)
        found[kind] = target
    return found


def _keep(staging: Path, files: dict[str, Path], precision: str, name: str) -> Path:
    """Remove the graphs that were not chosen; return the path of the chosen one."""
    for kind, path in files.items():
        if kind != precision:
            path.unlink() if path.parent == staging else shutil.rmtree(path.parent)
    chosen = files[precision]
    return chosen if chosen.parent != staging else chosen.rename(staging / f"{name}.onnx")


def _beside(tower: Graphs, names: tuple[str, ...]) -> str:
    """Return the first of these files that exists: beside the graph, or at the root."""
    folder = next(iter(tower.by_precision.values())).rpartition("/")[0]
    for name in names:
        for candidate in (f"{folder}/{name}", name):
            if candidate in tower.origin.names:
                return candidate
    raise InstallFailed(f"{tower.origin.location}: expected {' or '.join(names)}, found none")


def _preprocess(tower: Graphs, wishes: Wishes, side: int) -> dict[str, Any]:
    if wishes.preprocess is not None:
        path = Path(wishes.preprocess)
        known = wishes.preprocess in preprocessors.PRESETS or not path.suffix
        return preprocessors.preset(wishes.preprocess, side) if known else preprocessors.from_file(path)
    try:
        name = _beside(tower, PREPROCESS_FILES)
    except InstallFailed as error:
        raise InstallFailed(
            f"{error}: specify the preprocessing with --preprocess ({', '.join(preprocessors.PRESETS)}, or a JSON file)"
        ) from None
    config = read_json(tower.origin, name)
    # transformers 5 writes one file for image processor and tokenizer.
    config = config.get("image_processor", config) if name.endswith("processor_config.json") else config
    return preprocessors.from_config(config, f"{tower.origin.location}: {name}")


def _pixels(preprocess: Preprocess, wishes: Wishes) -> Iterator[ModelInputs]:
    return _inputs(preprocess, samples.sample_images(wishes.calibration))


def _inputs(preprocess: Preprocess, pictures: Iterable[Image.Image]) -> Iterator[ModelInputs]:
    return ({"pixel_values": preprocess(picture)[None]} for picture in pictures)


def _prove(
    name: str,
    files: dict[str, Path],
    load: Callable[[Path], Run],
    inputs: Iterable[ModelInputs],
    parity: dict[str, Any],
    on_progress: OnProgress[str],
    ranked: Ranked = no_inputs,
) -> str:
    """Choose a precision where there are several, and put the report into `parity`."""
    if len(files) == 1:
        return next(iter(files))
    proving = list(inputs)
    kept, parity[name] = prove(files, load, proving, proving[0], ranked=ranked)
    for each in parity[name]["candidates"]:
        on_progress("  {} {name}: worst cosine {worst_cosine:.4f}, {milliseconds:.1f} ms".format(name, **each))
    return kept.name


def _with_ports(tower: TextTower, path: Path) -> TextTower:
    found = graphs.text_ports(path)
    return dataclasses.replace(
        tower, input_ids=found.input_ids, attention_mask=found.attention_mask, output=found.output
    )


def _are_probabilities(rows: Rows) -> bool:
    """Whether a graph includes its own softmax: a second one would even out all scores."""
    return bool(rows.shape[1] > 1 and (rows >= 0).all() and np.allclose(rows.sum(1), 1, atol=1e-3))


def _scale(layout: Towers, row: CatalogRow | None, on_progress: OnProgress[str]) -> dict[str, Any]:
    if row is not None and row.logit_scale is not None:
        bias = row.logit_bias or 0.0
        return {"logit_scale": row.logit_scale, "logit_bias": bias, "activation": "sigmoid" if bias else "softmax"}
    config = read_json(layout.image.origin, "config.json") | read_json(layout.text.origin, "config.json")
    if config.get("logit_bias") is not None and config.get("logit_scale") is not None:
        return {
            "logit_scale": float(config["logit_scale"]),
            "logit_bias": float(config["logit_bias"]),
            "activation": "sigmoid",
        }
    if config.get("model_type") in text_towers.SIGLIP:
        on_progress(
            "  its trained scale and bias are not in these files: scores over labels will be a softmax, as for CLIP"
        )
    return {
        "logit_scale": float(config.get("logit_scale") or CLIP_LOGIT_SCALE),
        "logit_bias": 0.0,
        "activation": "softmax",
    }


def head(task: str, origins: list[Origin], row: CatalogRow | None) -> Draft:
    """Return the head of a manifest: the model and its source."""
    unique = list(dict.fromkeys(origins))
    licences = list(dict.fromkeys(origin.licence for origin in unique if origin.licence != UNKNOWN_LICENCE))
    revisions = [origin.revision for origin in unique if origin.revision]
    location = " + ".join(origin.location for origin in unique)
    return {
        "format": MANIFEST_FORMAT,
        "task": task,
        "description": row.description if row else f"{location}, as ONNX graphs",
        "source": {
            "location": location,
            "revision": " + ".join(revisions) or None,
            "licence": row.licence if row else ", ".join(licences) or UNKNOWN_LICENCE,
        },
    }


def _ports(image: ImageTower) -> dict[str, str]:
    return {"file": image.file, "input": image.input, "output": image.output}


def _inside(staging: Path, path: Path) -> str:
    return path.relative_to(staging).as_posix()


def _parity(reports: dict[str, Any]) -> dict[str, Any]:
    return {"reference": "the fp32 graphs of the same source", "threshold": THRESHOLD, **reports} if reports else {}
