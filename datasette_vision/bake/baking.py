"""From the original to the folder: checks preprocessing and tokens, bakes the towers, and writes the manifest."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasette_vision import __version__
from datasette_vision.bake import calibration
from datasette_vision.bake.original import Original, TextSide
from datasette_vision.bake.towers import TowerToBake, Wish, bake_tower
from datasette_vision.engine.tokenizer import Tokenizer
from datasette_vision.errors import InstallFailed
from datasette_vision.images.preprocess import Preprocess
from datasette_vision.install import preprocessors, samples
from datasette_vision.install.prove import Measured, ModelInputs
from datasette_vision.models import manifest as manifests
from datasette_vision.models.manifest import TextTower
from datasette_vision.models.tasks import DUAL_ENCODER

SHORT_TEXT = "a photo of a cat"  # 5 words: a typical query
# Mean difference of two preprocessings, in steps of 1 of 255: rounding gives 0.1, another filter or crop more than 2.
MAX_PIXEL_DIFFERENCE = 1.0


class Baker:
    """Bakes one original into one folder."""

    def __init__(self, original: Original, staging: Path, wish: Wish) -> None:
        self.original = original
        self.staging = staging
        self.wish = wish

    def bake(self, folder: Path | None) -> dict[str, Any]:
        """Write the files into the folder and return the manifest without its name, files, source and canonical
        results.

        The images in `folder`, or built-in ones, are for comparing it with the original: see samples.py.
        """
        original = self.original
        spec = preprocessors.from_config(original.processor_config, "preprocessor_config.json")
        preprocess = manifests.parse_preprocess(spec, "preprocess")
        pixels, difference = self._pixels(preprocess, samples.sample_images(folder))
        towers = [self._image_tower(pixels, preprocess, folder)]
        if original.text is not None:
            towers.append(self._text_tower(original.text))
        kept, reports = {}, {}
        with tempfile.TemporaryDirectory(prefix="bake-", dir=self.staging) as work:
            for tower in towers:
                kept[tower.name], reports[tower.name] = bake_tower(tower, self.wish, self.staging, Path(work))
        manifest: dict[str, Any] = {
            "format": manifests.MANIFEST_FORMAT,
            "task": original.task,
            "description": original.description,
            "precision": _precision(kept),
            "dimensions": original.dimensions,
            "logit_scale": original.logit_scale,
            "logit_bias": original.logit_bias,
            "activation": original.activation,
            "image": {"file": "image.onnx"},
            "preprocess": spec,
            "labels": [{"label": label} for label in original.labels],
            "parity": {
                "reference": "PyTorch fp32",
                "threshold": self.wish.threshold,
                "pixel_difference": round(difference, 3),
                **reports,
            },
            "made_with": made_with(),
        }
        if original.text is not None:
            manifest["text"] = _text_manifest(original.text)
        return manifest

    def _pixels(self, preprocess: Preprocess, pictures: Iterable[Image.Image]) -> tuple[NDArray[np.float32], float]:
        """Preprocess the images like the server: (n, 3, h, w), and the mean difference from the original's
        preprocessing.
        """
        pairs = [(preprocess(picture), self.original.pixels(picture)) for picture in pictures]
        ours, theirs = (np.stack(pixels) for pixels in zip(*pairs, strict=True))
        if ours.shape != theirs.shape:
            raise InstallFailed(
                f"its image processor returns pixels of shape {theirs.shape[1:]}, its configuration says"
                f" {ours.shape[1:]}"
            )
        steps = 255 * np.array(preprocess.std, np.float32)[:, None, None]
        difference = float((np.abs(ours - theirs) * steps).mean(axis=(1, 2, 3)).max())
        if difference > MAX_PIXEL_DIFFERENCE:
            raise InstallFailed(
                f"its image processor prepares images in another way than its configuration says:"
                f" the pixels differ by {difference:.1f} of 255"
            )
        return ours, difference

    def _image_tower(self, pixels: NDArray[np.float32], preprocess: Preprocess, folder: Path | None) -> TowerToBake:
        original = self.original
        output = "embedding" if original.task == DUAL_ENCODER else "logits"
        proving: list[ModelInputs] = [{"pixel_values": pixels[index : index + 1]} for index in range(len(pixels))]
        dynamic = {"pixel_values": {0: "n"}}

        def inputs(pictures: Iterable[Image.Image]) -> Iterator[ModelInputs]:
            return ({"pixel_values": preprocess(picture)[None]} for picture in pictures)

        def ranges() -> Iterator[ModelInputs]:
            return inputs(calibration.calibration_images())

        def ranked() -> Iterator[ModelInputs]:
            return inputs(samples.ranked_images(folder) if original.task == DUAL_ENCODER else ())

        return TowerToBake(
            "image", original.model, original.image, output, proving, proving[0], dynamic, ranges, ranked
        )

    def _text_tower(self, text: TextSide) -> TowerToBake:
        """Write tokenizer.json, check that it gives the original's tokens, and return the tower with them."""
        path = self.staging / "tokenizer.json"
        text.backend.save(str(path))
        tokenizer = Tokenizer(path, TextTower(**_text_manifest(text)))
        proving: list[ModelInputs] = []
        for string in samples.SAMPLE_TEXTS:
            inputs = tokenizer.pad([tokenizer.encode(string)])
            found, expected = inputs["input_ids"][0].tolist(), text.ids(string)
            if found != expected:
                raise InstallFailed(
                    f"its tokenizer.json gives other tokens than its tokenizer for {string[:40]!r}:"
                    f" {found[:12]} instead of {expected[:12]}"
                )
            proving.append(dict(inputs))
        axes = {0: "n", 1: "length"} if text.causal else {0: "n"}
        dynamic = dict.fromkeys(("input_ids", "attention_mask"), axes)
        timed = proving[samples.SAMPLE_TEXTS.index(SHORT_TEXT)]

        def ranges() -> Iterator[ModelInputs]:
            return (dict(tokenizer.pad([tokenizer.encode(string)])) for string in calibration.calibration_texts())

        return TowerToBake("text", self.original.model, text.module, "embedding", proving, timed, dynamic, ranges)


def _text_manifest(text: TextSide) -> dict[str, Any]:
    return {
        "file": "text.onnx",
        "tokenizer": "tokenizer.json",
        "context_length": text.context_length,
        "padding": "longest" if text.causal else "max_length",
        "pad_token_id": text.pad_token_id,
    }


def made_with() -> dict[str, str]:
    """Return the versions of the packages involved."""
    packages = ("torch", "transformers", "onnx", "onnxruntime", "numpy", "pillow", "tokenizers")
    # This package may be present without being installed, as where container images are built.
    own = {"python": platform.python_version(), "datasette-vision": __version__}
    return own | {package: version(package) for package in packages}


def _precision(kept: dict[str, Measured]) -> str:
    names = {tower: candidate.name for tower, candidate in kept.items()}
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    return ", ".join(f"{name} {tower}" for tower, name in names.items())
