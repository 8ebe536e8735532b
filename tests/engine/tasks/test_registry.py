"""A task of one's own: described in one module, it has a SQL function and an address, and no other file changes."""

from __future__ import annotations

import ast
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datasette_vision
from datasette_vision.config.settings import Config
from datasette_vision.engine.tasks.image_classification import ClassifierService
from datasette_vision.engine.tasks.registry import register_task, registered
from datasette_vision.engine.tasks.task import CanonicalCheck, LabelScorer, Task
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import WrongTask
from datasette_vision.install.trial import verify
from datasette_vision.models.store import ModelStore
from datasette_vision.models.tasks import FORMS, Form, Operation
from datasette_vision.sql.table import functions
from tests import pictures
from tests.plugin.api.test_api import Api

# The task: its models name the loudest of three numbers, in words.

WORDS = ("dark", "dim", "bright")
LOUDEST = Operation(
    "loudest",
    "Say what is loudest in images",
    "The word for the largest number that the model makes of an image.",
)


def _no_labels(vision: LabelScorer, service: Any, output: np.ndarray, k: int | None) -> list[dict[str, object]]:
    raise WrongTask("it has no labels")


def _no_checks(*given: object) -> Iterator[CanonicalCheck]:
    return iter(())


LOUDNESS = Task(
    Form("loudness", output="logits", operations=(LOUDEST,)),
    ClassifierService,
    np.copy,
    _no_labels,
    _no_checks,
    {"loudest": lambda service, output: WORDS[int(np.argmax(output)) % len(WORDS)]},
)


@pytest.fixture
def models(fake_models: Path, tmp_path: Path) -> Iterator[Path]:
    """The fake models, and one for the task: the fake classifier by another name."""
    folder = tmp_path / "models"
    shutil.copytree(fake_models, folder)
    shutil.copytree(folder / "fake-classifier", folder / "loud")
    path = folder / "loud/manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**manifest, "name": "loud", "task": "loudness"}))
    with registered(LOUDNESS):
        yield folder


def test_it_is_a_function_of_sql(models: Path) -> None:
    assert "vision_loudest" in {function.name for function in functions()}
    connection = sqlite3.connect(":memory:")
    datasette_vision.register(connection, Config(models_dir=str(models), default_model="fake"))
    (word,) = connection.execute("select vision_loudest(?)", [pictures.png()]).fetchone()
    assert word in WORDS
    assert connection.execute("select vision_loudest(?, 'loud')", [pictures.png()]).fetchone() == (word,)
    assert connection.execute("select vision_loudest(null), vision_loudest(x'00')").fetchone() == (None, None)
    with pytest.raises(sqlite3.OperationalError):
        connection.execute("select vision_loudest(?, 'fake')", [pictures.png()]).fetchone()


@pytest.mark.asyncio
async def test_it_has_an_address_that_is_described(models: Path) -> None:
    api = Api(models)
    answer = await api.post("loudest", files=[("image", ("x.png", pictures.png())), ("image", ("y.png", b"nothing"))])
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model"] == "loud"
    assert body["results"][0]["loudest"] in WORDS
    assert body["results"][1]["status"] == 400
    assert "/-/vision/loudest" in (await api.get("openapi.json")).json()["paths"]
    assert "Say what is loudest" in (await api.get("docs")).text
    assert (await Api(models, allow=False).post("loudest", files={"image": pictures.png()})).status_code == 403


def test_its_models_are_models_like_others(models: Path) -> None:
    with Vision(Config(models_dir=str(models), default_model="fake")) as vision:
        [described] = [each for each in vision.models() if each["name"] == "loud"]
        assert described["task"] == "loudness"
        with pytest.raises(WrongTask, match="'loud' is for loudness: it makes no embeddings"):
            vision.embed_image(pictures.png(), "loud")
        with pytest.raises(WrongTask, match="'fake' is for dual-encoder, and loudest for loudness"):
            vision.ask("loudest", pictures.png(), "fake")
    assert verify(ModelStore(models).find("loud")) != []


def test_the_only_model_of_a_task_is_looked_for_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes reading every manifest, and SQL asks for each row."""
    with Vision(Config(models_dir=str(models), default_model="fake")) as vision:
        word = vision.ask("loudest", pictures.png())
        monkeypatch.setattr(vision.services, "describe", lambda default: pytest.fail("looked for again"))
        assert vision.ask("loudest", pictures.png()) == word


def test_afterwards_it_is_gone() -> None:
    assert "loudness" not in FORMS
    assert "vision_loudest" not in {function.name for function in functions()}


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="there is a task dual-encoder already"):
        register_task(Task(FORMS["dual-encoder"], ClassifierService, np.copy, _no_labels, _no_checks))
    with pytest.raises(ValueError, match=r"loudness: expected answers to \['loudest'\], found \[\]"):
        register_task(Task(LOUDNESS.form, ClassifierService, np.copy, _no_labels, _no_checks))


def test_nothing_outside_asks_for_a_task_by_name() -> None:
    """Whoever wants to know what a model can do asks its form; recognising and baking sources is about their names."""
    package = Path(datasette_vision.__file__).parent
    allowed = {"models/tasks.py", "models/catalog.py", "install", "bake", "engine/tasks"}
    found = []
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if any(name == each or name.startswith(f"{each}/") for each in allowed):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare) and {"DUAL_ENCODER", "IMAGE_CLASSIFICATION", ".task"} & {
                part.id if isinstance(part, ast.Name) else "." + getattr(part, "attr", "")
                for part in (node.left, *node.comparators)
            }:
                found.append((name, node.lineno))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and "Service" in ast.unparse(node):
                found.append((name, node.lineno))
    # Whether a model is for the task of an operation: no task is named there.
    assert {name for name, _ in found} == {"engine/services.py"}
