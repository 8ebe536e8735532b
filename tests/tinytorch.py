"""Tiny PyTorch models in the layouts of transformers and sentence-transformers, the same at every run.

Two layers 64 wide, pictures of 64 pixels; weights spread so that different inputs get clearly different answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.levit.image_processing_pil_levit import LevitImageProcessorPil
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.fakes import byte_letters

SIDE = 64
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
VISION = {**SHAPE, "image_size": SIDE, "patch_size": 16}
CONTEXT = 32
LABELS = {0: "ant", 1: "bee", 2: "cat"}
LABELLED = {"id2label": LABELS, "label2id": {label: number for number, label in LABELS.items()}}
SQUARE = {"height": SIDE, "width": SIDE}


def spread(model: Any) -> Any:
    """Give a model weights under which its answers differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                std = 0.5 if "embed" in name else 1.2 / parameter[0].numel() ** 0.5
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def clip_tokenizer() -> Any:
    """CLIP's way with text, over single bytes."""
    letters = sorted(byte_letters())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CONTEXT)


def make_clip(folder: Path, **text: Any) -> Path:
    """A CLIP; `text` changes its text_config."""
    tokenizer = clip_tokenizer()
    settings = {
        **SHAPE,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    config = transformers.CLIPConfig(text_config={**settings, **text}, vision_config=VISION, projection_dim=48)
    spread(transformers.CLIPModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE).save_pretrained(folder)
    return folder


def plant_outliers(folder: Path, factor: float, channels: int = 3) -> Path:
    """Give a CLIP outlier channels without changing what it computes: what its normalisations give, times `factor`."""
    model = transformers.CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        for tower in (model.vision_model, model.text_model):
            for layer in tower.encoder.layers:
                attention = layer.self_attn
                for norm, readers in (
                    (layer.layer_norm1, (attention.q_proj, attention.k_proj, attention.v_proj)),
                    (layer.layer_norm2, (layer.mlp.fc1,)),
                ):
                    norm.weight[:channels] *= factor
                    norm.bias[:channels] *= factor
                    for reader in readers:
                        reader.weight[:, :channels] /= factor
    model.save_pretrained(folder)
    return folder


def make_sentence_transformer(folder: Path, clip: Path) -> Path:
    """The same CLIP as sentence-transformers keeps it, and llm-clip uses it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import CLIPModel

    SentenceTransformer(modules=[CLIPModel(str(clip))]).save(str(folder))
    return folder


def make_siglip(folder: Path) -> Path:
    """A SigLIP with a SentencePiece tokenizer trained on a few sentences."""
    import sentencepiece

    folder.mkdir(parents=True)
    sentences = [
        "a photo of a cat",
        "two dogs in the snow",
        "ein roter Ball",
        "una playa",
        "собака бежит",
        "12 oranges",
    ]
    text = folder / "sentences.txt"
    text.write_text("\n".join(sentences * 20), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "spiece"),
        vocab_size=200,
        hard_vocab_limit=False,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        minloglevel=3,
    )
    text.unlink()
    tokenizer = transformers.SiglipTokenizer(str(folder / "spiece.model"))
    ends = {"pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 2}
    config = transformers.SiglipConfig(
        text_config={
            **SHAPE,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "projection_size": 64,
            **ends,
        },
        vision_config=VISION,
    )
    model = spread(transformers.SiglipModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size=SQUARE).save_pretrained(folder)
    return folder


def _vit() -> tuple[Any, Any]:
    config = transformers.ViTConfig(**VISION, **LABELLED)
    return transformers.ViTForImageClassification(config), ViTImageProcessorPil(size=SQUARE)


def _swin() -> tuple[Any, Any]:
    config = transformers.SwinConfig(
        embed_dim=24, depths=[1, 1], num_heads=[2, 4], window_size=4, image_size=SIDE, patch_size=4, **LABELLED
    )
    return transformers.SwinForImageClassification(config), ViTImageProcessorPil(size=SQUARE)


def _resnet() -> tuple[Any, Any]:
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], **LABELLED
    )
    processor = ConvNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_pct=0.875)
    return transformers.ResNetForImageClassification(config), processor


def _convnext() -> tuple[Any, Any]:
    config = transformers.ConvNextConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], image_size=384, **LABELLED)
    return transformers.ConvNextForImageClassification(config), ConvNextImageProcessorPil(size={"shortest_edge": 384})


def _levit() -> tuple[Any, Any]:
    config = transformers.LevitConfig(
        hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[16, 16, 16], **LABELLED
    )
    return transformers.LevitForImageClassificationWithTeacher(config), LevitImageProcessorPil()


def _mobilenet() -> tuple[Any, Any]:
    config = transformers.MobileNetV2Config(image_size=SIDE, depth_multiplier=0.35, **LABELLED)
    processor = MobileNetV2ImageProcessorPil(size={"shortest_edge": 72}, crop_size=SQUARE)
    return transformers.MobileNetV2ForImageClassification(config), processor


def _mobilevit() -> tuple[Any, Any]:
    config = transformers.MobileViTConfig(
        image_size=SIDE, hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 8, 12, 16, 24, 24, 48], **LABELLED
    )
    processor = MobileViTImageProcessorPil(size={"shortest_edge": 72}, crop_size=SQUARE)
    return transformers.MobileViTForImageClassification(config), processor


CLASSIFIERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "vit": _vit,
    "swin": _swin,
    "resnet": _resnet,
    "convnext": _convnext,
    "levit": _levit,
    "mobilenet": _mobilenet,
    "mobilevit": _mobilevit,
}


def make_classifier(folder: Path, kind: str) -> Path:
    """A classifier of three labels."""
    model, processor = CLASSIFIERS[kind]()
    spread(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
