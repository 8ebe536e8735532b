"""What models of each task consist of, according to their manifests. Running them is in engine/tasks/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DUAL_ENCODER = "dual-encoder"
IMAGE_CLASSIFICATION = "image-classification"


@dataclass(frozen=True)
class Operation:
    """An operation of a task's models on an image: vision_<name>(image [, model]) in SQL, and /-/vision/<name>.

    `schema` is the JSON Schema of the result. `example` is SQL that runs on the demo database, if any does.
    """

    name: str
    summary: str
    description: str
    schema: dict[str, Any] = field(default_factory=lambda: {"type": "string"})
    example: str = ""


@dataclass(frozen=True)
class Form:
    """The required contents of a task's manifest.

    `embeds`: the image tower's output is an embedding, with the manifest's `dimensions`, which can be compared, stored
    and searched. `output` is the name of the image tower's output unless the manifest gives another.
    """

    task: str
    embeds: bool = False
    has_text_tower: bool = False
    # A classifier's graph returns scaled logits. A dual encoder cannot distinguish labels without its scale.
    needs_logit_scale: bool = False
    # One label for each number in the output.
    labels_the_output: bool = False
    # A graph may include its own softmax: then there is nothing left to do ("none").
    activations: tuple[str, ...] = ("softmax", "sigmoid", "none")
    output: str = "output"
    operations: tuple[Operation, ...] = ()


FORMS: dict[str, Form] = {
    form.task: form
    for form in (
        Form(
            DUAL_ENCODER,
            embeds=True,
            has_text_tower=True,
            needs_logit_scale=True,
            activations=("softmax", "sigmoid"),
            output="embedding",
        ),
        Form(IMAGE_CLASSIFICATION, labels_the_output=True, output="logits"),
    )
}


def operations() -> list[tuple[Form, Operation]]:
    """Return the operations of all tasks."""
    return [(form, operation) for form in FORMS.values() for operation in form.operations]


def embeds(task: object) -> bool:
    """Say whether models of this task make embeddings."""
    return isinstance(task, str) and task in FORMS and FORMS[task].embeds
