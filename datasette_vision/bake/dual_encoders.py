"""CLIP, SigLIP and SigLIP 2, from a transformers or a sentence-transformers folder."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
import transformers

from datasette_vision.bake.original import Original, OriginalTower, TextSide, load_model, load_processor, load_tokenizer
from datasette_vision.bake.slow_tokenizers import backend
from datasette_vision.models.tasks import DUAL_ENCODER


def _features(found: Any) -> torch.Tensor:
    """Return the embedding: transformers 4 returns it bare, 5 within an output object."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def _image(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    return _features(model.get_image_features(pixel_values=pixel_values))


def _text(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    # The mask is left out on purpose. CLIP's text tower is causal, and its output is at the end token, before any
    # padding. SigLIP's was trained to read its padding.
    return _features(model.get_text_features(input_ids=input_ids))


def load_clip(folder: Path) -> Original:
    """Load a CLIP."""
    model, tokenizer = load_model(transformers.CLIPModel, folder), load_tokenizer(folder)
    length = min(model.config.text_config.max_position_embeddings, tokenizer.model_max_length)
    return _original("CLIP", folder, model, tokenizer, length, model.config.projection_dim, causal=True)


def load_siglip(folder: Path) -> Original:
    """Load a SigLIP or a SigLIP 2 with fixed resolution."""
    model, tokenizer = load_model(transformers.SiglipModel, folder), load_tokenizer(folder)
    config = model.config.text_config
    found = _original(
        "SigLIP",
        folder,
        model,
        tokenizer,
        config.max_position_embeddings,
        config.projection_size or config.hidden_size,
        causal=False,
    )
    return dataclasses.replace(found, logit_bias=model.logit_bias.item(), activation="sigmoid")


def _original(
    family: str, folder: Path, model: Any, tokenizer: Any, context_length: int, dimensions: int, *, causal: bool
) -> Original:
    config = model.config
    text = TextSide(
        OriginalTower(model, _text),
        tokenizer,
        backend(tokenizer),
        context_length=context_length,
        causal=causal,
        pad_token_id=_pad_token(tokenizer, config),
    )
    return Original(
        DUAL_ENCODER,
        model,
        OriginalTower(model, _image),
        load_processor(folder),
        dimensions=dimensions,
        description=_described(family, config),
        text=text,
        logit_scale=math.exp(model.logit_scale.item()),
    )


def _pad_token(tokenizer: Any, config: Any) -> int:
    found = tokenizer.pad_token_id
    return int(found if found is not None else config.text_config.pad_token_id or 0)


def _described(family: str, config: Any) -> str:
    vision = config.vision_config
    return (
        f"{family}: images of {vision.image_size} pixels in patches of {vision.patch_size},"
        f" {vision.num_hidden_layers} layers of {vision.hidden_size};"
        f" texts, {config.text_config.num_hidden_layers} layers of {config.text_config.hidden_size}"
    )
