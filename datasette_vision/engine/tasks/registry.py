"""The registered tasks. To add one, add a line to BUILT_IN, or call register_task() from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from datasette_vision.engine.tasks import dual_encoder, image_classification
from datasette_vision.engine.tasks.task import Task
from datasette_vision.models.tasks import FORMS, operations

BUILT_IN = (dual_encoder.TASK, image_classification.TASK)

_tasks: dict[str, Task] = {task.name: task for task in BUILT_IN}


def task_of(name: str) -> Task:
    """Return the task of a name. Manifests have been checked for unknown tasks."""
    return _tasks[name]


def register_task(task: Task) -> None:
    """Add a task, before models are listed and connections are made.

    Raises ValueError for a name that is taken, and for an operation without an answer.
    """
    names = {operation.name for operation in task.form.operations}
    if task.name in _tasks or names & {operation.name for _, operation in operations()}:
        raise ValueError(f"there is a task {task.name} already, or one of its operations")
    if names != set(task.answers):
        raise ValueError(f"{task.name}: expected answers to {sorted(names)}, found {sorted(task.answers)}")
    FORMS[task.name] = task.form
    _tasks[task.name] = task


@contextlib.contextmanager
def registered(task: Task) -> Iterator[None]:
    """Register a task while the block runs: for tests."""
    register_task(task)
    try:
        yield
    finally:
        del _tasks[task.name], FORMS[task.name]
