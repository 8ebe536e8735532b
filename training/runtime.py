"""The shipped model as anybody would run it: manifest, tokenizer.json, Pillow, ONNX Runtime, and no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from manifest import MANIFEST, MODEL_FOLDER

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def unit(rows: np.ndarray) -> np.ndarray:
    """(n, d) -> the same rows at length one."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


class ShippedModel:
    """Embeds texts and pictures with the files of a model folder."""

    def __init__(self, folder: Path = MODEL_FOLDER, threads: int = 2) -> None:
        self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.image = onnxruntime.InferenceSession(folder / "image.onnx", options, ["CPUExecutionProvider"])
        self.text = onnxruntime.InferenceSession(folder / "text.onnx", options, ["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(folder / self.manifest["text"]["tokenizer"]))
        self.tokenizer.enable_truncation(self.manifest["text"]["context_length"])
        self.tokenizer.enable_padding(pad_id=self.manifest["text"]["pad_token_id"], pad_token="<pad>")

    def preprocess(self, picture: Image.Image) -> np.ndarray:
        """Any picture -> (3, h, w) float32, as the manifest's `preprocess` says."""
        spec = self.manifest["preprocess"]
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        white.alpha_composite(rgba)
        scale = spec["resize"]["shortest_edge"] / min(rgba.size)
        size = [max(1, round(side * scale)) for side in rgba.size]
        resized = white.convert("RGB").resize((size[0], size[1]), RESAMPLING[spec["resample"]])
        height, width = spec["crop"]["height"], spec["crop"]["width"]
        left, top = (resized.width - width) // 2, (resized.height - height) // 2
        pixels = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32) / 255
        normalised = (pixels - np.array(spec["mean"], np.float32)) / np.array(spec["std"], np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """(n, 3, h, w) float32 -> (n, d) float32, as the image tower gives it."""
        parts = [pixels[start : start + 128] for start in range(0, len(pixels), 128)]
        return np.concatenate([self.image.run(["embedding"], {"pixel_values": part})[0] for part in parts])

    def embed_images(self, pictures: list[Image.Image]) -> np.ndarray:
        """Pictures -> (n, d) float32 of unit length."""
        return unit(self.embed_pixels(np.stack([self.preprocess(picture) for picture in pictures])))

    def tokenise(self, texts: list[str]) -> dict[str, np.ndarray]:
        """The inputs of the text tower, padded to the longest."""
        encoded = self.tokenizer.encode_batch(texts)
        return {
            "input_ids": np.array([row.ids for row in encoded], np.int64),
            "attention_mask": np.array([row.attention_mask for row in encoded], np.int64),
        }

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Texts -> (n, d) float32 of unit length."""
        parts = [texts[start : start + 256] for start in range(0, len(texts), 256)]
        return unit(np.concatenate([self.text.run(["embedding"], self.tokenise(part))[0] for part in parts]))
