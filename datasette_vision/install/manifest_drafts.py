"""From a recognised source to files in the staging folder and a manifest that lacks only name, files and canonical."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from datasette_vision.engine.tokenizer import Tokenizer
from datasette_vision.errors import InstallFailed, InvalidArgument
from datasette_vision.images.preprocess import Preprocess
from datasette_vision.install import graphs, preprocessors, samples, text_towers, trial
from datasette_vision.install.labels import labels_of, read_labels
from datasette_vision.install.origins import UNKNOWN_LICENCE, Origin, read_json
from datasette_vision.install.sources import Classifier, Graphs, Towers, choose_precisions
from datasette_vision.install.staging import link_or_copy
from datasette_vision.models.catalog import CLIP_LOGIT_SCALE, CatalogRow
from datasette_vision.models.manifest import MANIFEST_FORMAT, ImageTower, TextTower, parse_manifest
from datasette_vision.models.tasks import DUAL_ENCODER, IMAGE_CLASSIFICATION
from datasette_vision.models.weights import weights_beside
from datasette_vision.util.progress import OnProgress

Draft = dict[str, Any]

# Where preprocessing is written: beside the graph, or at the root.
PREPROCESS_FILES = ("preprocessor_config.json", "processor_config.json", "preprocess_cfg.json")
PACKAGES = ("datasette-vision", "onnxruntime", "tokenizers", "pillow")


@dataclass(frozen=True)
class Wishes:
    """What the person said about the model, and what the catalogue knows of it."""

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
    pixels = samples.calibration(wishes.calibration, _preprocessor(spec))
    image_precision, report = trial.compare(
        "image", image_files, lambda path: graphs.run_image(path, graphs.image_ports(path), pixels)
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
    text_precision, text_report = trial.compare("text", text_files, lambda path: _run_texts(path, tower, tokenizer))
    for line in (*report, *text_report):
        on_progress("  {tower} {precision}: worst cosine {worst_cosine:.4f}, {milliseconds:.1f} ms".format(**line))

    image_path = _keep(staging, image_files, image_precision, "image")
    text_path = _keep(staging, text_files, text_precision, "text")
    used = graphs.image_ports(image_path)
    dimensions = graphs.run_image(image_path, used, pixels[:2]).shape[1]
    text_dimensions = _run_texts(text_path, tower, tokenizer, 2).shape[1]
    if dimensions != text_dimensions:
        raise InstallFailed(
            f"{layout.image.origin.location}: the image tower gives {dimensions} dimensions ({used.output}), the text"
            f" tower {text_dimensions} ({tower.output}): at least one of them lacks its projection"
        )
    used_text = graphs.text_ports(text_path)
    return {
        **head(DUAL_ENCODER, [layout.image.origin, text_origin], row),
        "precision": image_precision
        if image_precision == text_precision
        else f"{image_precision} image, {text_precision} text",
        "dimensions": dimensions,
        **_scale(layout, row, on_progress),
        "image": {**_ports(ImageTower(_inside(staging, image_path), used.input, used.output))},
        "text": {
            **tower.__dict__,
            "file": _inside(staging, text_path),
            "input_ids": used_text.input_ids,
            "attention_mask": used_text.attention_mask,
            "output": used_text.output,
        },
        "preprocess": spec,
        "labels": [],
        "parity": _parity([*report, *text_report]) | ({"tokenizer": "lower-cases, as trained"} if lowered else {}),
        "made_with": package_versions(),
    }


def from_classifier(layout: Classifier, wishes: Wishes, staging: Path, on_progress: OnProgress[str]) -> Draft:
    """Draft a classifier from one graph and its labels. Raises InstallFailed or InvalidArgument."""
    origin = layout.graphs.origin
    config = read_json(origin, "config.json")
    labels = read_labels(wishes.labels) if wishes.labels else labels_of(config)
    if not labels:
        raise InvalidArgument(
            f"{origin.location}: nothing says what the classes are: give --labels FILE, a label a line or JSON"
        )
    files = _fetch(layout.graphs, wishes.precision, staging, "image")
    found = graphs.image_ports(next(iter(files.values())), graphs.LOGITS)
    spec = _preprocess(layout.graphs, wishes, found.side or graphs.DEFAULT_SIDE)
    pixels = samples.calibration(wishes.calibration, _preprocessor(spec))
    precision, report = trial.compare(
        "image", files, lambda path: graphs.run_image(path, graphs.image_ports(path, graphs.LOGITS), pixels)
    )
    for line in report:
        on_progress("  {tower} {precision}: worst cosine {worst_cosine:.4f}, {milliseconds:.1f} ms".format(**line))
    path = _keep(staging, files, precision, "image")
    used = graphs.image_ports(path, graphs.LOGITS)
    rows = graphs.run_image(path, used, pixels)
    if rows.shape[1] != len(labels):
        raise InstallFailed(
            f"{origin.location}: {path.name} gives {rows.shape[1]} scores, but there are {len(labels)} labels"
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
        "parity": _parity(report),
        "made_with": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions that make the model."""
    return {"python": platform.python_version(), **{package: metadata.version(package) for package in PACKAGES}}


def _fetch(tower: Graphs, precision: str, staging: Path, name: str) -> dict[str, Path]:
    """Put the graphs that come into question into the staging folder: precision -> path there."""
    chosen = choose_precisions(tower, precision)
    found = {}
    for kind, source in chosen.items():
        data = weights_beside(source, tower.origin.names)
        # A graph names the files of its weights: they keep theirs, in a folder where no other graph's can be.
        target = staging / name / kind / Path(source).name if data else staging / f"{name}-{kind}.onnx"
        if len(chosen) == 1 and not data:
            target = staging / f"{name}.onnx"
        link_or_copy(tower.origin, source, target)
        for file in data:
            link_or_copy(tower.origin, file, target.parent / Path(file).name)
        found[kind] = target
    return found


def _keep(staging: Path, files: dict[str, Path], precision: str, name: str) -> Path:
    """Remove the graphs that were not chosen; return where the one that was is now."""
    for kind, path in files.items():
        if kind != precision:
            path.unlink() if path.parent == staging else shutil.rmtree(path.parent)
    chosen = files[precision]
    return chosen if chosen.parent != staging else chosen.rename(staging / f"{name}.onnx")


def _beside(tower: Graphs, names: tuple[str, ...]) -> str:
    """Return the first of these files that there is: beside the graph, or at the root."""
    folder = next(iter(tower.by_precision.values())).rpartition("/")[0]
    for name in names:
        for candidate in (f"{folder}/{name}", name):
            if candidate in tower.origin.names:
                return candidate
    raise InstallFailed(f"{tower.origin.location}: expected {' or '.join(names)}, which is not there")


def _preprocess(tower: Graphs, wishes: Wishes, side: int) -> dict[str, Any]:
    if wishes.preprocess is not None:
        path = Path(wishes.preprocess)
        known = wishes.preprocess in preprocessors.PRESETS or not path.suffix
        return preprocessors.preset(wishes.preprocess, side) if known else preprocessors.from_file(path)
    try:
        name = _beside(tower, PREPROCESS_FILES)
    except InstallFailed as error:
        raise InstallFailed(
            f"{error}: say how pictures are prepared with --preprocess ({', '.join(preprocessors.PRESETS)},"
            " or a JSON file)"
        ) from None
    config = read_json(tower.origin, name)
    # transformers 5 writes one file for image processor and tokenizer.
    config = config.get("image_processor", config) if name.endswith("processor_config.json") else config
    return preprocessors.from_config(config, f"{tower.origin.location}: {name}")


def _preprocessor(spec: dict[str, Any]) -> Preprocess:
    """Check a specification by the manifest's own rules, and return what does it."""
    probe = {**_EMPTY, "preprocess": spec}
    return parse_manifest(probe, "--preprocess").preprocess


_EMPTY: dict[str, Any] = {
    "format": MANIFEST_FORMAT,
    "name": "probe",
    "task": IMAGE_CLASSIFICATION,
    "description": "probe",
    "source": {"location": "probe", "licence": "probe"},
    "precision": "fp32",
    "dimensions": 1,
    "activation": "softmax",
    "image": {"file": "probe"},
    "labels": [{"label": "probe"}],
    "files": [{"path": "probe", "size": 0, "sha256": "0" * 64}],
}


def _run_texts(path: Path, tower: TextTower, tokenizer: Path, count: int | None = None) -> trial.Rows:
    """Embed the sample texts with a graph, one by one as they have different lengths: -> (n, d)."""
    from datasette_vision.engine.runtime import OnnxSession

    found = graphs.text_ports(path)
    used = TextTower(
        **{
            **tower.__dict__,
            "input_ids": found.input_ids,
            "attention_mask": found.attention_mask,
            "output": found.output,
        }
    )
    cutter = Tokenizer(tokenizer, used)
    names = (used.input_ids,) if used.attention_mask is None else (used.input_ids, used.attention_mask)
    session = OnnxSession(path, inputs=names, output=used.output)
    padded = [cutter.pad([cutter.encode(text)]) for text in samples.SAMPLE_TEXTS[:count]]
    return np.concatenate(
        [graphs.run_text(path, used, each["input_ids"], each["attention_mask"], session) for each in padded]
    )


def _are_probabilities(rows: trial.Rows) -> bool:
    """Whether a graph ends with its own softmax: a second one would even all scores out."""
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
            "  its trained scale and bias are not among these files: scores over labels will be a softmax, as CLIP's"
        )
    return {
        "logit_scale": float(config.get("logit_scale") or CLIP_LOGIT_SCALE),
        "logit_bias": 0.0,
        "activation": "softmax",
    }


def head(task: str, origins: list[Origin], row: CatalogRow | None) -> Draft:
    """Return what a manifest says of itself and of its source."""
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


def _parity(report: list[dict[str, Any]]) -> dict[str, Any]:
    return {"reference": "the fp32 graphs of the same source", "candidates": report} if report else {}
