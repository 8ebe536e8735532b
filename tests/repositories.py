"""Folders as others publish models: Xenova's, Qdrant's, Immich's, transformers', a bare graph. With tiny graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import fakes

CLIP_CONFIG = {"model_type": "clip", "text_config": {"max_position_embeddings": 16}, "architectures": ["CLIPModel"]}
CLIP_PREPROCESSOR = {
    "crop_size": {"height": 16, "width": 16},
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 16},
}
TOKENIZER_CONFIG = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "pad_token": "<pad>"}


def rename(path: Path, names: dict[str, str]) -> None:
    """Give inputs, outputs and tensors of a graph other names."""
    model = onnx.load(path)
    for port in [*model.graph.input, *model.graph.output]:
        port.name = names.get(port.name, port.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    onnx.save(model, path)


def perturb(path: Path, target: Path, noise: float) -> None:
    """Write a graph with weights that are off by some noise, as a quantised one's are."""
    model = onnx.load(path)
    generator = np.random.default_rng(7)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32:
            noisy = value + noise * generator.standard_normal(value.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    onnx.save(model, target)


def text_graph_without_mask(path: Path, size: int, *, ignores_padding: bool) -> None:
    """As fakes.text_graph, but it knows padding by its id (as CLIP's, which is causal), or not at all (as SigLIP's)."""
    table = fakes.token_table(size)
    mask = (
        [
            helper.make_node("Equal", ["input_ids", "pad"], ["is_pad"]),
            helper.make_node("Not", ["is_pad"], ["is_text"]),
            helper.make_node("Cast", ["is_text"], ["mask"], to=TensorProto.FLOAT),
        ]
        if ignores_padding
        else [
            helper.make_node("Equal", ["input_ids", "input_ids"], ["all"]),
            helper.make_node("Cast", ["all"], ["mask"], to=TensorProto.FLOAT),
        ]
    )
    weights = {"table": table, "last": np.array([2]), "middle": np.array([1])}
    fakes.save_graph(
        path,
        [
            *mask,
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
            helper.make_node("Mul", ["rows", "mask3"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "middle"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "middle"], ["count"], keepdims=1),
            helper.make_node("Div", ["total", "count"], ["text_embeds"]),
        ],
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "length"])],
        helper.make_tensor_value_info("text_embeds", TensorProto.FLOAT, ["n", size]),
        {**weights, "pad": np.array(fakes.PAD)} if ignores_padding else weights,
    )


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def describe(folder: Path, config: dict[str, Any] | None = None) -> None:
    """Write what stands beside CLIP's graphs."""
    write_json(folder / "config.json", config or CLIP_CONFIG)
    write_json(folder / "preprocessor_config.json", CLIP_PREPROCESSOR)
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    fakes.save_tokenizer(folder / "tokenizer.json")
    (folder / "README.md").write_text("---\nlibrary_name: transformers.js\nlicense: mit\n---\n\n# A model\n")


def xenova(folder: Path, dimensions: int = 8, noise: dict[str, float] | None = None) -> Path:
    """As Xenova/clip-vit-base-patch32; `noise` adds quantised graphs, with so much noise for each tower."""
    onnx_folder = folder / "onnx"
    onnx_folder.mkdir(parents=True)
    describe(folder)
    fakes.image_graph(onnx_folder / "vision_model.onnx", dimensions, "image_embeds")
    text_graph_without_mask(onnx_folder / "text_model.onnx", dimensions, ignores_padding=True)
    for tower, amount in (noise or {}).items():
        perturb(onnx_folder / f"{tower}_model.onnx", onnx_folder / f"{tower}_model_quantized.onnx", amount)
    return folder


def siglip(folder: Path) -> Path:
    """As onnx-community/siglip2-base-patch16-224-ONNX."""
    xenova(folder)
    text_graph_without_mask(folder / "onnx" / "text_model.onnx", 8, ignores_padding=False)
    for tower, name in (("vision", "image_embeds"), ("text", "text_embeds")):
        rename(folder / "onnx" / f"{tower}_model.onnx", {name: "pooler_output"})
    write_json(folder / "config.json", {"model_type": "siglip", "text_config": {"model_type": "siglip_text_model"}})
    settings = {"tokenizer_class": "GemmaTokenizer", "model_max_length": 10**30, "pad_token": {"content": "<pad>"}}
    write_json(folder / "tokenizer_config.json", settings)
    processor = {"size": {"height": 16, "width": 16}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    write_json(folder / "preprocessor_config.json", {**processor, "image_processor_type": "SiglipImageProcessor"})
    return folder


def qdrant(root: Path, name: str = "clip-ViT-B-32") -> tuple[Path, Path]:
    """As Qdrant/clip-ViT-B-32-vision and -text: two repositories for one model."""
    vision, text = root / f"{name}-vision", root / f"{name}-text"
    for folder in (vision, text):
        folder.mkdir(parents=True)
        describe(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (vision / name).unlink()
    (text / "preprocessor_config.json").unlink()
    fakes.image_graph(vision / "model.onnx", 8, "image_embeds")
    fakes.text_graph(text / "model.onnx", 8)
    rename(text / "model.onnx", {"embedding": "text_embeds"})
    return vision, text


def immich(folder: Path) -> Path:
    """As immich-app/ViT-B-32__openai: int32 tokens of a fixed length, no mask."""
    for part in ("visual", "textual"):
        (folder / part).mkdir(parents=True)
    fakes.image_graph(folder / "visual" / "model.onnx", 8, "embedding")
    rename(folder / "visual" / "model.onnx", {"pixel_values": "image"})
    text_graph_without_mask(folder / "textual" / "model.onnx", 8, ignores_padding=True)
    rename(folder / "textual" / "model.onnx", {"input_ids": "text", "text_embeds": "embedding"})
    model = onnx.load(folder / "textual" / "model.onnx")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("text", TensorProto.INT32, [1, 16]))
    cast = helper.make_node("Cast", ["text"], ["long"], to=TensorProto.INT64)
    for node in model.graph.node:
        node.input[:] = ["long" if name == "text" else name for name in node.input]
    model.graph.node.insert(0, cast)
    onnx.save(model, folder / "textual" / "model.onnx")
    fakes.save_tokenizer(folder / "textual" / "tokenizer.json")
    write_json(folder / "textual" / "tokenizer_config.json", TOKENIZER_CONFIG)
    write_json(folder / "config.json", {"embed_dim": 8, "text_cfg": {"context_length": 16}})
    transform = {"size": [16, 16], "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3}
    write_json(
        folder / "visual" / "preprocess_cfg.json", {**transform, "interpolation": "bicubic", "resize_mode": "shortest"}
    )
    return folder


def classifier(folder: Path, noise: float | None = None, **config: Any) -> Path:
    """As Xenova/resnet-50: three classes."""
    (folder / "onnx").mkdir(parents=True)
    fakes.image_graph(folder / "onnx" / "model.onnx", 3, "logits")
    if noise is not None:
        perturb(folder / "onnx" / "model.onnx", folder / "onnx" / "model_quantized.onnx", noise)
    labels = {"0": "ant", "1": "bee", "2": "cat"}
    write_json(
        folder / "config.json", {"architectures": ["ResNetForImageClassification"], "id2label": labels, **config}
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "crop_pct": 0.875,
            "do_normalize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "size": 16,
        },
    )
    return folder


def transformers(folder: Path) -> Path:
    """As openai/clip-vit-base-patch32: PyTorch weights, twice, and other frameworks' beside."""
    folder.mkdir(parents=True)
    describe(folder)
    for name in ("model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "vocab.json"):
        (folder / name).write_bytes(name.encode())
    return folder
