"""Zero-shot classification: from similarities between an image and texts to scores for labels.

The scores follow CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020): softmax(logit_scale * cosine). With
`multi_label`, and for models trained that way, they follow SigLIP (Zhai et al. 2023, https://arxiv.org/abs/2303.15343):
sigmoid(logit_scale * cosine + logit_bias), for each label independently.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasette_vision.errors import InvalidLabels
from datasette_vision.util.excerpt import excerpt

MAX_LABELS_CHARS = 2_000_000
# A template is repeated for every label: 1,000 prompts of 20,000 characters.
MAX_PROMPTS_CHARS = 20_000_000
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class LabelSet:
    """The labels to choose from, each with its prompt, and how to compute scores."""

    labels: tuple[str, ...]
    prompts: tuple[str, ...]
    multi_label: bool = False
    temperature: float = 1.0


def parse_labels(text: str, max_labels: int = 1000) -> LabelSet:
    """Read the `labels` argument of the SQL functions.

    A JSON array of strings, or of {"label", "prompt"} objects; or an object {"labels": […], "template": "a photo of a
    {}", "multi_label": false, "temperature": 1.0}. A string's prompt is the template with {} replaced by the string, or
    the string itself. Raises InvalidLabels for anything else.
    """
    if len(text) > MAX_LABELS_CHARS:
        raise InvalidLabels(f"expected at most {MAX_LABELS_CHARS:,} characters of labels, found {len(text):,}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidLabels(f'expected labels as a JSON array such as ["cat", "dog"], found {excerpt(text)}') from None
    options: dict[str, object] = {}
    if isinstance(value, dict):
        unknown = sorted(set(value) - {"labels", "template", "multi_label", "temperature"})
        if unknown:
            raise InvalidLabels(
                f"labels: unknown key {excerpt(unknown[0])}; allowed are labels, template, multi_label, temperature"
            )
        if "labels" not in value:
            raise InvalidLabels('labels: expected the key "labels" in the object, found none')
        options, value = value, value["labels"]
    template = _template(options.get("template", "{}"))
    labels, prompts = _entries(value, template, max_labels)
    return LabelSet(
        labels, prompts, _flag(options.get("multi_label", False)), _temperature(options.get("temperature", 1))
    )


def _entries(value: object, template: str, max_labels: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not isinstance(value, list):
        raise InvalidLabels("labels: expected a JSON array, found something else")
    if not value:
        raise InvalidLabels("labels: expected at least one label, found an empty array")
    if len(value) > max_labels:
        raise InvalidLabels(f"labels: expected at most {max_labels:,} labels (max_labels), found {len(value):,}")
    characters = len(template) * len(value)
    if characters > MAX_PROMPTS_CHARS:
        raise InvalidLabels(
            f"labels: expected a template of at most {MAX_PROMPTS_CHARS // len(value):,} characters for"
            f" {len(value):,} labels, found one of {len(template):,}"
        )
    labels, prompts = [], []
    seen: set[str] = set()
    for position, entry in enumerate(value, start=1):
        if isinstance(entry, str):
            label, prompt = entry, template.replace("{}", entry)
        elif (
            isinstance(entry, dict)
            and set(entry) == {"label", "prompt"}
            and isinstance(entry["label"], str)
            and isinstance(entry["prompt"], str)
        ):
            label, prompt = entry["label"], entry["prompt"]
        else:
            raise InvalidLabels(
                f'labels: expected each to be a string or {{"label": …, "prompt": …}}, number {position} is neither'
            )
        if not label.strip() or not prompt.strip():
            raise InvalidLabels(f"labels: number {position} is empty")
        if SURROGATE.search(label):
            raise InvalidLabels(f"labels: number {position} contains a lone surrogate")
        if label in seen:
            raise InvalidLabels(f"labels: {excerpt(label)} occurs twice")
        seen.add(label)
        labels.append(label)
        prompts.append(prompt)
    return tuple(labels), tuple(prompts)


def _template(value: object) -> str:
    if not isinstance(value, str) or value.count("{}") != 1:
        raise InvalidLabels('labels: expected a template that contains {} once, such as "a photo of a {}"')
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidLabels("labels: expected multi_label to be true or false")
    return value


def _temperature(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0.001 <= value <= 1000):
        raise InvalidLabels("labels: expected temperature to be a number from 0.001 to 1000")
    return float(value)


def scores(
    similarities: NDArray[np.floating],
    *,
    logit_scale: float,
    logit_bias: float = 0.0,
    temperature: float = 1.0,
    multi_label: bool = False,
) -> NDArray[np.float64]:
    """Turn similarities of shape (n,) into scores of shape (n,), each a probability.

    Softmax, so that they sum to 1; with `multi_label` a sigmoid each. `temperature` divides the logits: above 1 makes
    the scores more even, below 1 more extreme.
    """
    logits = (logit_scale * np.asarray(similarities, dtype=np.float64) + logit_bias) / temperature
    return sigmoid(logits) if multi_label else softmax(logits)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return probabilities that sum to 1 over the last axis."""
    wide = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)) for each logit, without overflow."""
    return np.exp(-np.logaddexp(0, -np.asarray(logits, dtype=np.float64)))


def top_k(labels: tuple[str, ...], values: NDArray[np.float64], k: int | None = None) -> list[dict[str, object]]:
    """Return the k best [{"label", "score"}], best first (all if k is None). Ties keep the order of the labels."""
    order = np.argsort(-values, kind="stable")[:k]
    return [{"label": labels[i], "score": _rounded(float(values[i]))} for i in order]


def _rounded(score: float) -> float:
    """Six significant digits: more would only show the noise of float32."""
    return float(f"{score:.6g}") if math.isfinite(score) else score
