"""From the original to the folder: export, fuse, quantise, prove, and write down what was found."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from datasette_vision.errors import InstallFailed
from datasette_vision.models import manifest as manifests
from datasette_vision.models import preprocessors
from datasette_vision.models.bake import calibration
from datasette_vision.models.bake.export import export, exportable
from datasette_vision.models.bake.fuse import fuse
from datasette_vision.models.bake.original import Original, TextSide
from datasette_vision.models.bake.prove import FP32, Inputs, Measured, choose, exact, measure
from datasette_vision.models.bake.quantise import quantise
from datasette_vision.models.manifest import DUAL_ENCODER, TextTower
from datasette_vision.preprocess import Preprocess, Size
from datasette_vision.tokenizer import Tokenizer

Progress = Callable[[str], None]
SHORT_TEXT = "a photo of a cat"  # 5 words: what people type
# Mean difference of two preprocessings, in steps of 1 of 255: rounding gives 0.1, another filter or crop more than 2.
MAX_PIXEL_DIFFERENCE = 1.0


class Baker:
    """Bakes one original into one folder."""

    def __init__(self, original: Original, staging: Path, precision: str, threshold: float, progress: Progress) -> None:
        self.original = original
        self.staging = staging
        self.precision = precision
        self.threshold = threshold
        self.progress = progress

    def bake(self, pictures: dict[str, Image.Image]) -> dict[str, Any]:
        """Write the files into the folder and return the manifest, but for its name, files and source."""
        original = self.original
        spec = preprocessors.from_config(original.processor.to_dict(), "preprocessor_config.json")
        pixels, difference = self._pixels(spec, pictures)
        with tempfile.TemporaryDirectory(prefix="bake-", dir=self.staging) as work, torch.no_grad():
            image = self._image_tower(pixels, Path(work))
            text = self._text_tower(original.text, Path(work)) if original.text is not None else None
        kept = {name: tower[0] for name, tower in (("image", image), ("text", text)) if tower is not None}
        manifest: dict[str, Any] = {
            "format": manifests.FORMAT,
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
                "threshold": self.threshold,
                "pixel_difference": round(difference, 3),
                **{name: tower[1] for name, tower in (("image", image), ("text", text)) if tower is not None},
            },
            "made_with": made_with(),
        }
        if original.text is not None:
            manifest["text"] = self._text_manifest(original.text)
        return manifest

    def _pixels(self, spec: dict[str, Any], pictures: dict[str, Image.Image]) -> tuple[NDArray[np.float32], float]:
        """Preprocess the pictures as the server will: (n, 3, h, w), and the mean difference to the original's way."""
        preprocess = preprocessor(spec)
        ours = np.stack([preprocess(picture) for picture in pictures.values()])
        theirs = np.stack([self.original.pixels(picture) for picture in pictures.values()])
        if ours.shape != theirs.shape:
            raise InstallFailed(
                f"its image processor gives pixels of shape {theirs.shape[1:]}, its configuration says {ours.shape[1:]}"
            )
        steps = 255 * np.array(spec["std"], np.float32)[:, None, None]
        difference = float((np.abs(ours - theirs) * steps).mean(axis=(1, 2, 3)).max())
        if difference > MAX_PIXEL_DIFFERENCE:
            raise InstallFailed(
                f"its image processor prepares pictures in another way than its configuration says:"
                f" the pixels differ by {difference:.1f} of 255"
            )
        return ours, difference

    def _image_tower(self, pixels: NDArray[np.float32], work: Path) -> tuple[Measured, dict[str, Any]]:
        output = "embedding" if self.original.task == DUAL_ENCODER else "logits"
        samples: list[Inputs] = [{"pixel_values": pixels[index : index + 1]} for index in range(len(pixels))]
        return self._tower("image", self.original.image, output, samples, samples[0], {"pixel_values": {0: "n"}}, work)

    def _text_tower(self, text: TextSide, work: Path) -> tuple[Measured, dict[str, Any]]:
        path = self.staging / "tokenizer.json"
        text.tokenizer.backend_tokenizer.save(str(path))
        tokenizer = Tokenizer(path, TextTower(**self._text_manifest(text)))
        samples: list[Inputs] = []
        for string in calibration.TEXTS:
            inputs = tokenizer.pad([tokenizer.encode(string)])
            if inputs["input_ids"][0].tolist() != text.ids(string):
                raise InstallFailed(f"its tokenizer.json gives other tokens than its tokenizer for {string[:40]!r}")
            samples.append(dict(inputs))
        axes = {0: "n", 1: "length"} if text.causal else {0: "n"}
        dynamic = dict.fromkeys(("input_ids", "attention_mask"), axes)
        timed = samples[calibration.TEXTS.index(SHORT_TEXT)]
        return self._tower("text", text.module, "embedding", samples, timed, dynamic, work)

    def _tower(
        self,
        name: str,
        module: torch.nn.Module,
        output: str,
        samples: list[Inputs],
        timed: Inputs,
        dynamic: dict[str, dict[int, str]],
        work: Path,
    ) -> tuple[Measured, dict[str, Any]]:
        """Bake one tower; return the candidate that was kept and the report on all of them."""
        self.progress(f"{name} tower: computing {len(samples)} embeddings with PyTorch")
        reference = np.concatenate(
            [module(*(torch.from_numpy(value) for value in sample.values())).numpy() for sample in samples]
        )
        self.progress(f"{name} tower: exporting")
        example = {key: torch.from_numpy(np.concatenate([value, value])) for key, value in timed.items()}
        exported = work / f"{name}.onnx"
        with exportable(self.original.model):
            export(module, example, output, exported, dynamic)
        candidates = {FP32: fuse(exported, work)}
        exported.unlink()
        if self.precision != FP32:
            self.progress(f"{name} tower: quantising")
            if quantise(candidates[FP32], work / f"{name}-int8.onnx"):
                candidates["int8"] = work / f"{name}-int8.onnx"
        self.progress(f"{name} tower: comparing and timing {', '.join(candidates)}")
        measured = measure(candidates, output, samples, reference, timed)
        if not exact(measured[0]):
            raise InstallFailed(
                f"the exported {name} tower is not the original: worst cosine {measured[0].worst_cosine:.6f},"
                f" norms differ by {measured[0].norm_difference:.2%}"
            )
        kept = choose(measured, self.precision, self.threshold)
        shutil.move(kept.path, self.staging / f"{name}.onnx")
        self.progress(
            f"{name} tower: kept {kept.name}, worst cosine {kept.worst_cosine:.5f}, {kept.milliseconds:.1f} ms,"
            f" {kept.size / 1e6:.0f} MB"
        )
        report = {
            "kept": kept.name,
            "worst_cosine": round(kept.worst_cosine, 6),
            "mean_cosine": round(kept.mean_cosine, 6),
            "samples": len(samples),
            "candidates": [candidate.report() for candidate in measured],
        }
        return kept, report

    @staticmethod
    def _text_manifest(text: TextSide) -> dict[str, Any]:
        return {
            "file": "text.onnx",
            "tokenizer": "tokenizer.json",
            "context_length": text.context_length,
            "padding": "longest" if text.causal else "max_length",
            "pad_token_id": text.pad_token_id,
        }


def preprocessor(spec: dict[str, Any]) -> Preprocess:
    """Return what a manifest's `preprocess` describes."""
    return Preprocess(
        Size(**spec["resize"]),
        spec["crop"]["height"],
        spec["crop"]["width"],
        spec["resample"],
        tuple(spec["mean"]),
        tuple(spec["std"]),
    )


def made_with() -> dict[str, str]:
    """Return the versions of what took part."""
    packages = ("datasette-vision", "torch", "transformers", "onnx", "onnxruntime", "numpy", "pillow", "tokenizers")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def _precision(kept: dict[str, Measured]) -> str:
    names = {tower: candidate.name for tower, candidate in kept.items()}
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    return ", ".join(f"{name} {tower}" for tower, name in names.items())
