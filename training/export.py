"""Turn the checkpoint into the model folder that the package ships, and prove that it gives the same embeddings.

python training/export.py [--checkpoint FILE] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image

from card import write_notice
from checkpoint import POLISHED, TOKENIZER, load_checkpoint
from emoji_set import emoji_set, google_drawings, plain
from manifest import MANIFEST, MODEL_FOLDER, group_labels, list_files, subgroup_labels, versions, write_json
from model import DualEncoder
from onnx_graphs import image_graph, text_graph
from runtime import ShippedModel, unit

CANONICAL_TEXT = "purple and gold"
DESCRIPTION = (
    "A small dual encoder trained from scratch on emoji drawings and their names in 25 languages: "
    "it knows drawings, not photographs."
)


def parity(model: DualEncoder, folder: Path) -> dict[str, Any]:
    """Cosines between the embeddings of the fp32 torch model and of the files, over every emoji and its name."""
    shipped = ShippedModel(folder)
    drawings = google_drawings()
    pixels = []
    for emoji in emoji_set():
        with Image.open(drawings[plain(emoji.hexcode)]) as picture:
            pixels.append(shipped.preprocess(picture))
    batch = np.stack(pixels)
    names = [emoji.name for emoji in emoji_set()]
    tokens = shipped.tokenise(names)
    with torch.no_grad():
        images = torch.cat([model.image(part) for part in torch.from_numpy(batch).split(128)]).numpy()
        texts = model.text(*(torch.from_numpy(tokens[name]) for name in ("input_ids", "attention_mask"))).numpy()
    image_cosines = (unit(images) * unit(shipped.embed_pixels(batch))).sum(1)
    text_cosines = (unit(texts) * shipped.embed_texts(names)).sum(1)
    return {
        "reference": "PyTorch fp32",
        "worst_cosine_image": round(float(image_cosines.min()), 6),
        "worst_cosine_text": round(float(text_cosines.min()), 6),
        "mean_cosine_image": round(float(image_cosines.mean()), 6),
        "mean_cosine_text": round(float(text_cosines.mean()), 6),
        "samples": len(names),
    }


def export(checkpoint: Path, folder: Path) -> None:
    """Write every file of the model folder except the card."""
    model, shape, scale = load_checkpoint(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(image_graph(model.image, shape.dimensions), folder / "image.onnx")
    onnx.save(text_graph(model.text, shape.dimensions), folder / "text.onnx")
    shutil.copyfile(checkpoint.with_name(TOKENIZER.name), folder / "tokenizer.json")
    write_json(folder / "labels-groups.json", group_labels())
    write_notice(folder)
    half = [0.5, 0.5, 0.5]
    manifest: dict[str, Any] = {
        "format": 1,
        "name": "tiny-emoji",
        "task": "dual-encoder",
        "description": DESCRIPTION,
        "source": {"location": "training/ in this repository", "revision": None, "licence": "Apache-2.0"},
        "precision": "fp16-weights",
        "dimensions": shape.dimensions,
        "logit_scale": round(scale, 4),
        "logit_bias": 0.0,
        "activation": "softmax",
        "image": {"file": "image.onnx"},
        "text": {
            "file": "text.onnx",
            "tokenizer": "tokenizer.json",
            "context_length": shape.context_length,
            "padding": "longest",
            "pad_token_id": 0,
        },
        "preprocess": {
            "resize": {"shortest_edge": shape.image_size},
            "resample": "bicubic",
            "crop": {"height": shape.image_size, "width": shape.image_size},
            "mean": half,
            "std": half,
        },
        "labels": subgroup_labels(),
        "canonical": {"text": CANONICAL_TEXT, "embedding": []},
        "files": list_files(folder),
        "parity": {},
        "made_with": versions(),
    }
    write_json(folder / MANIFEST, manifest)
    canonical = ShippedModel(folder).embed_texts([CANONICAL_TEXT])[0]
    manifest["canonical"]["embedding"] = [round(float(value), 7) for value in canonical[:8]]
    manifest["parity"] = parity(model, folder)
    write_json(folder / MANIFEST, manifest)
    print(manifest["parity"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=POLISHED)
    parser.add_argument("--folder", type=Path, default=MODEL_FOLDER)
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.folder)
