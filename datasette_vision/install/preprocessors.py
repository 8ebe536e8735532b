"""Translates preprocessing from other formats into a manifest's `preprocess`.

The formats are preprocessor_config.json of transformers, preprocess_cfg.json of open_clip, and presets by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasette_vision.errors import InstallFailed, InvalidArgument
from datasette_vision.install.origins import read_object

Spec = dict[str, Any]

# https://github.com/openai/CLIP/blob/main/clip/clip.py and torchvision's references for ImageNet.
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF, ZERO, ONE = [0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]

# name -> (shorter edge / crop, or None to resize to exactly the crop), resample, mean, std
PRESETS: dict[str, tuple[float | None, str, list[float], list[float]]] = {
    "imagenet": (256 / 224, "bilinear", IMAGENET_MEAN, IMAGENET_STD),
    "clip": (1.0, "bicubic", CLIP_MEAN, CLIP_STD),
    "siglip": (None, "bicubic", HALF, HALF),
    "half": (None, "bilinear", HALF, HALF),
    "unit": (None, "bilinear", ZERO, ONE),
}

# PIL.Image.Resampling, which transformers writes as numbers.
PIL_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

# Processors that resize to a square if `size` is one number. The others keep the aspect ratio.
SHORTEST_EDGE = ("CLIP", "ConvNext", "Levit", "MobileNet", "Bit", "ChineseCLIP", "Poolformer")
CHANGES_COLOURS = {"do_flip_channel_order": "BGR order", "rescale_offset": "an offset after rescaling"}


def preset(name: str, size: int = 224) -> Spec:
    """Return a preset for a graph that takes `size` x `size` pixels. Raises InvalidArgument for an unknown name."""
    if name not in PRESETS:
        raise InvalidArgument(f"--preprocess: expected one of {', '.join(PRESETS)}, or a JSON file, found {name!r}")
    ratio, resample, mean, std = PRESETS[name]
    resize = {"height": size, "width": size} if ratio is None else {"shortest_edge": round(size * ratio)}
    return _spec(resize, size, size, resample, mean, std)


def from_file(path: Path) -> Spec:
    """Read a JSON file in any of the formats, or in a manifest's own. Raises InvalidArgument."""
    value = read_object(path, str(path), InvalidArgument)
    if {"resize", "crop", "resample", "mean", "std"} <= set(value):
        return value
    return from_config(value, str(path))


def from_config(config: Mapping[str, Any], where: str) -> Spec:
    """Translate a preprocessor_config.json or an open_clip preprocess_cfg.json.

    Raises InstallFailed, naming `where`, for an unsupported step.
    """
    try:
        return _from_open_clip(config) if "interpolation" in config else _from_transformers(config)
    except _Unsupported as error:
        raise InstallFailed(f"{where}: {str(error)[:150]}; specify the preprocessing with --preprocess") from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InstallFailed(
            f"{where}: cannot be understood ({str(error)[:100]}); specify the preprocessing with --preprocess"
        ) from None


class _Unsupported(Exception):
    pass


def _from_transformers(config: Mapping[str, Any]) -> Spec:
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for key, meaning in CHANGES_COLOURS.items():
        if config.get(key):
            raise _Unsupported(f"{key}: {meaning} is not supported")
    if config.get("do_rescale", True) and abs(float(config.get("rescale_factor", 1 / 255)) * 255 - 1) > 0.01:
        raise _Unsupported("rescale_factor: expected 1/255")
    resample = PIL_RESAMPLING.get(int(config.get("resample", 3 if "CLIP" in kind else 2)))
    if resample is None:
        raise _Unsupported(
            f"resample: expected one of {', '.join(map(str, PIL_RESAMPLING))}, found {_shown(config['resample'])}"
        )
    mean, std = (
        (list(config["image_mean"]), list(config["image_std"])) if config.get("do_normalize", True) else (ZERO, ONE)
    )
    if isinstance(mean[0], (list, tuple)):
        raise _Unsupported("image_mean: expected three numbers")
    size = _transformers_size(config.get("size", config.get("crop_size", 224)), kind, config)
    crops = bool(config.get("do_center_crop", "crop_size" in config and "do_center_crop" not in config))
    # ConvNeXt (and transformers' ResNet) below 384: enlarge by 1 / crop_pct, then crop the centre; above: squash.
    # transformers, image_processing_convnext.py. These configurations have no do_center_crop.
    if "crop_pct" in config or kind.startswith("ConvNext"):
        edge = _edge(size)
        if edge >= 384:
            return _spec({"height": edge, "width": edge}, edge, edge, resample, mean, std)
        return _spec(
            {"shortest_edge": int(edge / float(config.get("crop_pct") or 224 / 256))}, edge, edge, resample, mean, std
        )
    # LeViT: image_processing_levit.py.
    if kind.startswith("Levit") and "shortest_edge" in size:
        size = {"shortest_edge": int(256 / 224 * size["shortest_edge"])}
    if crops:
        crop = config.get("crop_size", size)
        height, width = (crop, crop) if isinstance(crop, int) else (_side(crop, "height"), _side(crop, "width"))
        return _spec(size, height, width, resample, mean, std)
    if "shortest_edge" in size:
        raise _Unsupported("size: expected a height and a width without cropping")
    return _spec(size, size["height"], size["width"], resample, mean, std)


def _transformers_size(size: Any, kind: str, config: Mapping[str, Any]) -> dict[str, int]:
    if isinstance(size, (list, tuple)):
        return {"height": int(size[0]), "width": int(size[1])}
    if isinstance(size, int):
        square = not kind.startswith(SHORTEST_EDGE) and "crop_pct" not in config
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    if not isinstance(size, Mapping):
        raise TypeError(f"size {_shown(size)}")
    known = {key: int(size[key]) for key in ("shortest_edge", "height", "width") if size.get(key) is not None}
    if "shortest_edge" in known:
        return {"shortest_edge": known["shortest_edge"]}
    if set(known) != {"height", "width"}:
        raise _Unsupported(f"size: expected shortest_edge, or height and width, found {_shown(size)}")
    return known


def _shown(value: Any) -> str:
    """Return a value as a message quotes it, cut short."""
    return json.dumps(value)[:60]


def _side(crop: Mapping[str, Any], side: str) -> int:
    return int(crop[side] if side in crop else crop["shortest_edge"])


def _edge(size: Mapping[str, int]) -> int:
    return size["shortest_edge"] if "shortest_edge" in size else size["height"]


def _from_open_clip(config: Mapping[str, Any]) -> Spec:
    """open_clip, transform.py: `resize_mode` shortest resizes and crops, squash does not keep the aspect ratio."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    mode = config.get("resize_mode", "shortest")
    if mode == "squash":
        resize = {"height": height, "width": width}
    elif mode == "shortest" and height == width:
        resize = {"shortest_edge": height}
    else:
        raise _Unsupported(f"resize_mode: {_shown(mode)} is not supported for {height} x {width}")
    resample = str(config["interpolation"])
    if resample not in PIL_RESAMPLING.values():
        raise _Unsupported(
            f"interpolation: expected one of {', '.join(PIL_RESAMPLING.values())}, found {_shown(resample)}"
        )
    return _spec(resize, height, width, resample, list(config["mean"]), list(config["std"]))


def _spec(resize: dict[str, int], height: int, width: int, resample: str, mean: list[float], std: list[float]) -> Spec:
    crop = {"height": height, "width": width}
    return {"resize": resize, "resample": resample, "crop": crop, "mean": mean, "std": std}
