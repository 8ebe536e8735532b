"""What models of each task consist of, as a manifest says it. How they are run is engine/tasks/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DUAL_ENCODER = "dual-encoder"
IMAGE_CLASSIFICATION = "image-classification"


@dataclass(frozen=True)
class Operation:
    """What can be asked of a task's models about an image: as vision_<name>(image [, model]), and at /-/vision/<name>.

    `schema` is the JSON Schema of the answer; `example` is SQL that runs on the demo database, if any does.
    """

    name: str
    summary: str
    description: str
    schema: dict[str, Any] = field(default_factory=lambda: {"type": "string"})
    example: str = ""


@dataclass(frozen=True)
class Form:
    """What a manifest of a task holds.

    `embeds`: what the image tower makes of an image is an embedding, of the manifest's `dimensions`, which can be
    compared, stored and searched. `output` is what the image tower's output is called unless the manifest says so.
    """

    task: str
    embeds: bool = False
    has_text_tower: bool = False
    # A classifier's logits come scaled out of its graph; without its scale a dual encoder cannot tell labels apart.
    needs_logit_scale: bool = False
    # One label for each number of the output.
    labels_the_output: bool = False
    # A graph may end with its own softmax: then there is nothing left to do ("none").
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
    """Return what can be asked of models, task by task."""
    return [(form, operation) for form in FORMS.values() for operation in form.operations]


def embeds(task: object) -> bool:
    """Say whether models of this task make embeddings."""
    return isinstance(task, str) and task in FORMS and FORMS[task].embeds
