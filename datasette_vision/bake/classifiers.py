"""Image classifiers with fixed labels, of any architecture in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from datasette_vision.bake.original import Original, OriginalTower, load_model, load_processor
from datasette_vision.errors import InstallFailed
from datasette_vision.models.tasks import IMAGE_CLASSIFICATION


def _logits(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=pixel_values).logits


def _logits_of_bgr(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    return _logits(model, pixel_values.flip(1))


def load_classifier(folder: Path) -> Original:
    """Load a classifier. Raises InstallFailed if the number of labels is wrong."""
    model = load_model(transformers.AutoModelForImageClassification, folder)
    processor = load_processor(folder)
    names = model.config.id2label
    labels = [str(names.get(number, f"LABEL_{number}")) for number in range(len(names))]
    multi_label = model.config.problem_type == "multi_label_classification"
    # Models trained with OpenCV's order of channels (MobileViT): ours is RGB, so the graph reverses it.
    bgr = bool(getattr(processor, "do_flip_channel_order", False))
    original = Original(
        IMAGE_CLASSIFICATION,
        model,
        OriginalTower(model, _logits_of_bgr if bgr else _logits),
        processor,
        dimensions=len(labels),
        description=f"{type(model).__name__.removesuffix('ForImageClassification')}: {len(labels)} labels",
        activation="sigmoid" if multi_label else "softmax",
        labels=labels,
        bgr=bgr,
    )
    if not labels:
        raise InstallFailed(f"{folder}: config.json has no labels (id2label)")
    return original
