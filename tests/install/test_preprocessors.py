"""install/preprocessors.py: the configurations of real models, and what this package makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datasette_vision.errors import InstallFailed, InvalidArgument
from datasette_vision.install.preprocessors import PRESETS, from_config, from_file, preset

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"height": 224, "width": 224}

# name -> (configuration as published, resize, crop, resample)
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, int], int, str]] = {
    "CLIP, old": (
        {**CLIP, "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
         "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 224},
        {"shortest_edge": 224}, 224, "bicubic",
    ),
    "CLIP, new": (
        {**CLIP, "crop_size": SQUARE, "do_center_crop": True, "do_convert_rgb": True, "do_rescale": True,
         "image_processor_type": "CLIPImageProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
         "size": {"shortest_edge": 224}},
        {"shortest_edge": 224}, 224, "bicubic",
    ),
    "SigLIP 2": (
        {**HALF, "do_resize": True, "image_processor_type": "SiglipImageProcessor", "resample": 2, "size": SQUARE},
        SQUARE, 224, "bilinear",
    ),
    "ViT, old": (
        {**HALF, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor",
         "resample": 2, "size": 224},
        SQUARE, 224, "bilinear",
    ),
    "ViT, no type": ({**HALF, "do_normalize": True, "do_resize": True, "size": 384}, 
                     {"height": 384, "width": 384}, 384, "bilinear"),
    "ResNet-50": (
        {**IMAGENET, "crop_pct": 0.875, "do_normalize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
         "resample": 3, "size": 224},
        {"shortest_edge": 256}, 224, "bicubic",
    ),
    "ConvNeXt, large": (
        {**IMAGENET, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor", "resample": 3,
         "size": {"shortest_edge": 384}},
        {"height": 384, "width": 384}, 384, "bicubic",
    ),
    "LeViT": (
        {**IMAGENET, "do_center_crop": True, "image_processor_type": "LevitImageProcessor", "resample": 3,
         "size": {"shortest_edge": 224}, "crop_size": SQUARE},
        {"shortest_edge": 256}, 224, "bicubic",
    ),
    "MobileNetV2": (
        {**HALF, "crop_size": SQUARE, "do_center_crop": True, "image_processor_type": "MobileNetV2ImageProcessor",
         "resample": 2, "size": {"shortest_edge": 256}},
        {"shortest_edge": 256}, 224, "bilinear",
    ),
    "DeiT": (
        {**IMAGENET, "crop_size": 224, "do_center_crop": True, "feature_extractor_type": "DeiTFeatureExtractor",
         "resample": 3, "size": 256},
        {"height": 256, "width": 256}, 224, "bicubic",
    ),
    "open_clip": (
        {"size": [224, 224], "mode": "RGB", "mean": CLIP["image_mean"], "std": CLIP["image_std"],
         "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0},
        {"shortest_edge": 224}, 224, "bicubic",
    ),
    "open_clip, squash": (
        {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
        SQUARE, 224, "bicubic",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name: str) -> None:
    config, resize, crop, resample = PUBLISHED[name]
    found = from_config(config, "x")
    assert found["resize"] == resize
    assert found["crop"] == {"height": crop, "width": crop}
    assert found["resample"] == resample
    assert found["mean"] == config.get("image_mean", config.get("mean"))
    assert found["std"] == config.get("image_std", config.get("std"))


def test_without_normalisation() -> None:
    """MobileCLIP: the pixels from 0 to 1 as they are."""
    config = {"crop_size": SQUARE, "do_center_crop": True, "do_normalize": False, "size": {"shortest_edge": 224}}
    found = from_config({**config, "image_processor_type": "CLIPFeatureExtractor"}, "x")
    assert (found["mean"], found["std"]) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("kind", "resample"),
    [("CLIPImageProcessor", "bicubic"), ("ChineseCLIPImageProcessor", "bicubic"), ("ViTImageProcessor", "bilinear")],
)
def test_resampling_that_is_not_named_is_the_default_of_its_kind(kind: str, resample: str) -> None:
    config = {**HALF, "image_processor_type": kind, "do_center_crop": True, "crop_size": 224, "size": 224}
    assert from_config(config, "x")["resample"] == resample


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order: BGR order is not supported"),
        ({"rescale_offset": True}, "rescale_offset: an offset after rescaling is not supported"),
        ({"rescale_factor": 0.01}, "rescale_factor: expected 1/255"),
        ({"resample": 5}, "resample: expected one of 0, 1, 2, 3, found 5"),
        ({"size": {"longest_edge": 224}}, 'size: expected shortest_edge, or height and width, found {"longest_edge"'),
        ({"size": {"shortest_edge": 224}}, "size: expected a height and a width without cropping"),
        ({"size": "large"}, "cannot be understood"),
        ({"image_mean": None}, "cannot be understood"),
        ({"image_mean": []}, "cannot be understood"),
        ({"image_mean": [[0.5] * 3]}, "image_mean: expected three numbers"),
        ({"size": []}, "cannot be understood"),
        ({"size": {"height": float("inf"), "width": 1}}, "cannot be understood"),
        ({"size": 1e308, "interpolation": "bicubic", "mean": [], "std": []}, "cannot be understood"),
        ({"size": [0, 1e308], "interpolation": "bicubic", "mean": [], "std": []}, "resize_mode: "),
        ({"crop_size": 0.5, "do_center_crop": True}, "cannot be understood"),
        ({"size": {"longest_edge": "x" * 5000}}, "size: expected shortest_edge, or height and width, found {"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], message: str) -> None:
    config = {**HALF, "size": 224, "resample": 2, **changes}
    with pytest.raises(InstallFailed) as caught:
        from_config(config, "owner/model: preprocessor_config.json")
    assert str(caught.value).startswith(f"owner/model: preprocessor_config.json: {message}")
    assert str(caught.value).endswith("; specify the preprocessing with --preprocess")
    assert len(str(caught.value)) < 300


def test_presets() -> None:
    assert preset("imagenet")["resize"] == {"shortest_edge": 256}
    assert preset("imagenet", 288)["resize"] == {"shortest_edge": 329}
    assert preset("clip", 336)["crop"] == {"height": 336, "width": 336}
    assert preset("siglip")["resize"] == SQUARE
    for name in PRESETS:
        assert set(preset(name)) == {"resize", "resample", "crop", "mean", "std"}
    with pytest.raises(InvalidArgument, match=r"--preprocess: expected one of imagenet, clip, siglip, half, unit"):
        preset("other")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    config, resize, *_ = PUBLISHED["CLIP, new"]
    path.write_text(json.dumps(config))
    assert from_file(path)["resize"] == resize
    path.write_text(json.dumps(preset("clip")))
    assert from_file(path) == preset("clip")
    flaws = {
        "{": "expected JSON, found something else",
        "[" * 100_000: "expected JSON, found something else",
        "[]": "expected a JSON object",
    }
    for content, message in flaws.items():
        path.write_text(content)
        with pytest.raises(InvalidArgument, match=message):
            from_file(path)
    with pytest.raises(InvalidArgument, match="cannot be read: No such file"):
        from_file(tmp_path / "missing.json")
