"""CLIP, SigLIP and SigLIP 2, from a transformers folder or from a sentence-transformers one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers

from datasette_vision.bake.original import Original, OriginalTower, TextSide, load_model, load_processor, load_tokenizer
from datasette_vision.bake.slow_tokenizers import backend
from datasette_vision.models.tasks import DUAL_ENCODER


def _features(found: Any) -> torch.Tensor:
    """Return the embedding: transformers 4 gives it bare, 5 within an output object."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def _image(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    return _features(model.get_image_features(pixel_values=pixel_values))


def _text(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    # The mask is left out on purpose. CLIP's text tower is causal and answers at the end token, which padding only
    # follows; SigLIP's was trained to look at its padding.
    return _features(model.get_text_features(input_ids=input_ids))


def load_clip(folder: Path) -> Original:
    """Load a CLIP."""
    model = load_model(transformers.CLIPModel, folder)
    config = model.config
    tokenizer = load_tokenizer(folder)
    text = TextSide(
        OriginalTower(model, _text),
        tokenizer,
        backend(tokenizer),
        context_length=min(config.text_config.max_position_embeddings, tokenizer.model_max_length),
        causal=True,
        pad_token_id=_pad_token(tokenizer, config),
    )
    return Original(
        DUAL_ENCODER,
        model,
        OriginalTower(model, _image),
        load_processor(folder),
        dimensions=config.projection_dim,
        description=_described("CLIP", config),
        text=text,
        logit_scale=math.exp(model.logit_scale.item()),
    )


def load_siglip(folder: Path) -> Original:
    """Load a SigLIP or a SigLIP 2 of fixed resolution."""
    model = load_model(transformers.SiglipModel, folder)
    config = model.config
    tokenizer = load_tokenizer(folder)
    text = TextSide(
        OriginalTower(model, _text),
        tokenizer,
        backend(tokenizer),
        context_length=config.text_config.max_position_embeddings,
        causal=False,
        pad_token_id=_pad_token(tokenizer, config),
    )
    return Original(
        DUAL_ENCODER,
        model,
        OriginalTower(model, _image),
        load_processor(folder),
        dimensions=config.text_config.projection_size or config.text_config.hidden_size,
        description=_described("SigLIP", config),
        text=text,
        logit_scale=math.exp(model.logit_scale.item()),
        logit_bias=model.logit_bias.item(),
        activation="sigmoid",
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
