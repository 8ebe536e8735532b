"""How to use a third-party text tower: context length, padding, and the tokenizer as the model was trained with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from datasette_vision.engine.tokenizer import Tokenizer
from datasette_vision.errors import InstallFailed
from datasette_vision.install.graphs import TextPorts, text_run
from datasette_vision.install.origins import Origin, read_json
from datasette_vision.install.prove import compare
from datasette_vision.models.manifest import TextTower

# If neither graph nor configuration says: CLIP and SigLIP as trained (their papers and configurations).
CONTEXT_LENGTH = {"clip": 77, "siglip": 64, "siglip2": 64}
SIGLIP = ("siglip", "siglip2", "siglip_text_model")
# Tokenizers write a huge number if they have no limit.
NO_LIMIT = 100_000
# The minimum cosine between the embeddings of a text with and without padding: a causal or masked tower returns the
# same, up to the noise of quantised activations.
SAME = 0.99
PROBE_TEXT = "a dog"


def describe_text_tower(
    origin: Origin, tokenizer_name: str, graph: Path, found: TextPorts, tokenizer: Path, context_length: int | None
) -> TextTower:
    """Determine the inputs of a text graph. `tokenizer` is the tokenizer.json that it will be used with.

    Raises InstallFailed.
    """
    folder = tokenizer_name.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    config, settings = read_json(origin, "config.json"), read_json(origin, f"{prefix}tokenizer_config.json")
    written = json.loads(tokenizer.read_text("utf-8"))
    length = found.length or context_length or _context_length(config, settings, written, origin.location)
    tower = TextTower(
        file=graph.name,
        tokenizer=tokenizer.name,
        context_length=length,
        padding="max_length",
        pad_token_id=_pad_token_id(settings, written),
        input_ids=found.input_ids,
        attention_mask=found.attention_mask,
        output=found.output,
    )
    if found.length is None and config.get("model_type") not in SIGLIP and _padding_changes_nothing(graph, tower):
        tower = TextTower(**{**tower.__dict__, "padding": "longest"})
    return tower


def write_tokenizer(origin: Origin, name: str, target: Path) -> bool:
    """Write tokenizer.json as the model needs it; return whether it had to be changed.

    SigLIP 2 was trained on lower-case text, which its Gemma tokenizer does not do: transformers lower-cases in a
    separate class (huggingface/transformers#43101).
    """
    content = origin.file(name).read_bytes()
    settings = read_json(origin, "tokenizer_config.json")
    lowers = read_json(origin, "config.json").get("model_type") in SIGLIP and str(
        settings.get("tokenizer_class", "")
    ).startswith(("Gemma", "Siglip2"))
    try:
        value = json.loads(content)
        if not isinstance(value, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise InstallFailed(f"{origin.location}: {name}: expected a tokenizer in JSON, found something else") from None
    if lowers and "Lowercase" not in json.dumps(value.get("normalizer")):
        before = value.get("normalizer")
        steps = [{"type": "Lowercase"}, *([before] if before else [])]
        value["normalizer"] = {"type": "Sequence", "normalizers": steps}
        content = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    target.write_bytes(content)
    return lowers


def _context_length(config: dict[str, Any], settings: dict[str, Any], written: dict[str, Any], location: str) -> int:
    text = config.get("text_config") or {}
    stated = [
        text.get("max_position_embeddings"),
        text.get("context_length"),
        None if text else config.get("max_position_embeddings"),
        settings.get("model_max_length"),
        (written.get("truncation") or {}).get("max_length"),
    ]
    lengths = [int(value) for value in stated if isinstance(value, (int, float)) and 2 <= value < NO_LIMIT]
    if lengths:
        return min(lengths)
    kind = config.get("model_type")
    if kind in CONTEXT_LENGTH:
        return CONTEXT_LENGTH[kind]
    raise InstallFailed(
        f"{location}: the context length is in neither the graph, config.json nor tokenizer_config.json"
    )


def _pad_token_id(settings: dict[str, Any], written: dict[str, Any]) -> int:
    token = settings.get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    for added in written.get("added_tokens") or []:
        if token is not None and added.get("content") == token:
            return int(added["id"])
    vocabulary = (written.get("model") or {}).get("vocab")
    if isinstance(vocabulary, dict) and token in vocabulary:
        return int(vocabulary[token])
    if isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
        for number, entry in enumerate(vocabulary):
            if isinstance(entry, list) and entry and entry[0] == token:
                return number
    return int((written.get("padding") or {}).get("pad_id") or 0)


def _padding_changes_nothing(graph: Path, tower: TextTower) -> bool:
    """Test whether a text gives the same embedding at its own length as padded to the whole context."""
    tokenizer = Tokenizer(graph.with_name(tower.tokenizer), tower)
    ids = tokenizer.encode(PROBE_TEXT)
    padded = tokenizer.pad([ids])
    alone = np.array([ids], dtype=np.int64)
    run = text_run(graph, tower)
    whole = run(padded)
    try:
        own = run({"input_ids": alone, "attention_mask": np.ones_like(alone)})
    except InstallFailed:
        return False  # made for one length only, although its shape does not say so
    return bool(compare(whole, own)[0][0] > SAME)
