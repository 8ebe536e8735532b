"""install/install.py and staging.py: a model appears whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasette_vision.config.settings import Config
from datasette_vision.engine.vision import Vision
from datasette_vision.errors import InstallFailed, InvalidArgument, ModelCorrupt, SourceNotFound, UnknownModel
from datasette_vision.install import staging, trial
from datasette_vision.install.install import Installer
from datasette_vision.install.requests import Request
from datasette_vision.models.leftovers import leftovers
from datasette_vision.models.store import ModelStore
from tests import fakes, repositories
from tests.hubserver import Hub, serve

NAME = "clip"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return repositories.xenova(tmp_path / "source" / "clip")


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def installer(models_dir: Path, said: list[str]) -> Installer:
    return Installer(models_dir, said.append)


def request(source: Path, **wishes: Any) -> Request:
    return Request(str(source), **wishes)


def entries(models_dir: Path) -> set[str]:
    return {entry.name for entry in models_dir.iterdir()} if models_dir.exists() else set()


def is_clean(models_dir: Path) -> bool:
    """Nothing is there but models, locks, and no downloads."""
    downloads = models_dir / ".downloads"
    return {name for name in entries(models_dir) if name.startswith(".")} <= {".locks", ".downloads"} and (
        not downloads.exists() or not list(downloads.iterdir())
    )


# An installed model


def test_what_is_installed_serves(installer: Installer, source: Path, models_dir: Path) -> None:
    outcome = installer.install(request(source))
    assert not outcome.already_there
    assert sorted(path.name for path in (models_dir / NAME).iterdir()) == [
        "image.onnx",
        "manifest.json",
        "text.onnx",
        "tokenizer.json",
    ]
    vision = Vision(Config(default_model=NAME), store=ModelStore(models_dir))
    canonical = outcome.model.manifest.canonical
    assert np.allclose(vision.embed_text(canonical["text"]), canonical["embedding"], atol=1e-5)
    assert len(canonical["image_embedding"]) == 8
    vision.close()
    assert is_clean(models_dir)


def test_a_second_time_nothing_is_done(installer: Installer, source: Path, models_dir: Path) -> None:
    first = installer.install(request(source)).model
    again = installer.install(request(source))
    assert again.already_there
    assert again.model.manifest.identity == first.manifest.identity


def test_what_is_there_needs_no_writing(installer: Installer, source: Path, models_dir: Path) -> None:
    installer.install(request(source))
    shutil.rmtree(models_dir / ".locks")
    assert installer.install(request(source)).already_there
    assert entries(models_dir) == {NAME}


def test_wishes_that_a_source_cannot_fulfil(installer: Installer, source: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\n")
    with pytest.raises(InvalidArgument, match="--labels: only for a classifier"):
        installer.install(request(source, labels=labels))
    model = installer.install(request(source)).model
    with pytest.raises(InvalidArgument, match="--preprocess: this source defines its own"):
        installer.install(request(model.folder, preprocess="clip", name="other"))
    with pytest.raises(InstallFailed, match="clip: no graph of precision int8: it is fp32"):
        installer.install(request(model.folder, precision="int8", name="other"))


def test_another_source_of_the_same_name_is_refused(installer: Installer, source: Path, tmp_path: Path) -> None:
    installer.install(request(source))
    other = repositories.xenova(tmp_path / "other", 12)
    with pytest.raises(InstallFailed) as caught:
        installer.install(request(other, name=NAME))
    assert str(caught.value) == (
        "clip is already installed from clip (fp32): --force replaces it, --name gives this one another name"
    )
    with pytest.raises(InstallFailed, match="already installed"):
        installer.install(request(source, precision="int8"))
    assert installer.install(request(other, name=NAME, force=True)).model.manifest.dimensions == 12
    assert is_clean(installer.models_dir)


def test_a_damaged_model_is_replaced_by_force(installer: Installer, source: Path, models_dir: Path) -> None:
    installer.install(request(source))
    (models_dir / NAME / "manifest.json").write_text("{}")
    with pytest.raises(InstallFailed, match=r"exists but is damaged .*: --force replaces it"):
        installer.install(request(source))
    assert installer.install(request(source, force=True)).model.manifest.name == NAME
    (models_dir / "stray").mkdir()
    with pytest.raises(InstallFailed, match="exists but is damaged"):
        installer.install(request(source, name="stray"))


def test_a_model_installed_elsewhere(installer: Installer, source: Path, models_dir: Path, tmp_path: Path) -> None:
    """The way to a machine without a network: install here, copy the folder, install from it there."""
    first = installer.install(request(source)).model
    there = Installer(tmp_path / "there", lambda line: None)
    model = there.install(request(models_dir / NAME, name="copied")).model
    assert model.manifest.name == "copied"
    assert model.manifest.canonical == first.manifest.canonical
    assert model.manifest.source == first.manifest.source
    assert there.install(request(models_dir / NAME, name="copied")).already_there
    damaged = models_dir / NAME / "text.onnx"
    damaged.write_bytes(damaged.read_bytes() + b"\0")
    with pytest.raises(InstallFailed, match=r"^again cannot be used: text\.onnx: expected [\d,]+ bytes, found"):
        there.install(request(models_dir / NAME, name="again"))
    assert entries(there.models_dir) == {"copied", ".locks"}


def test_a_folder_is_copied_not_linked(installer: Installer, source: Path) -> None:
    model = installer.install(request(source)).model
    graph = source / "onnx" / "text_model.onnx"
    with graph.open("r+b") as stream:
        stream.write(b"overwritten")
    trial.verify(model)


@pytest.mark.parametrize("name", ["", "Clip", "../x", "a/b", ".clip", "x" * 65])
def test_a_name_that_cannot_be(installer: Installer, source: Path, models_dir: Path, name: str) -> None:
    if name == "":
        assert installer.install(request(source, name=name)).model.manifest.name == NAME
        return
    with pytest.raises(InvalidArgument, match="--name: expected lower-case letters"):
        installer.install(request(source, name=name))
    assert entries(models_dir) == set()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("clip-ViT-B-32", "clip-vit-b-32"),
        ("ViT-B-32__openai", "vit-b-32__openai"),
        ("my model (2)", "my-model-2"),
        ("x-vision", "x"),
        ("模型", "model"),
    ],
)
def test_the_name_of_a_folder(installer: Installer, tmp_path: Path, given: str, name: str) -> None:
    assert installer.install(request(repositories.xenova(tmp_path / given))).model.manifest.name == name


@pytest.mark.parametrize("given", ["./missing", "/no/such/folder", "~/no-such-folder", "cliip", "a b/c"])
def test_a_source_that_is_not_there(installer: Installer, models_dir: Path, given: str) -> None:
    with pytest.raises(SourceNotFound) as caught:
        installer.install(Request(given))
    assert given in str(caught.value)
    assert entries(models_dir) == set()


# Failing, at any step


def broken_graph(source: Path) -> None:
    (source / "onnx" / "text_model.onnx").write_bytes(b"no graph")


def broken_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").write_text("{}")


def not_json(source: Path) -> None:
    (source / "config.json").write_text("{")


def unequal_towers(source: Path) -> None:
    fakes.image_graph(source / "onnx" / "vision_model.onnx", 12, "image_embeds")


def no_preprocessing(source: Path) -> None:
    (source / "preprocessor_config.json").unlink()


FLAWS: list[tuple[Callable[[Path], None], str]] = [
    (broken_graph, "clip cannot be used: text.onnx: expected a graph that ONNX Runtime can load"),
    (broken_tokenizer, "clip cannot be used: tokenizer.json: expected a tokenizer"),
    (not_json, "clip: config.json: expected JSON, found something else"),
    (unequal_towers, "clip: the image tower has 12 dimensions (image_embeds), the text tower 8 (text_embeds)"),
    (
        no_preprocessing,
        "clip: expected preprocessor_config.json or processor_config.json or preprocess_cfg.json, found none",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), FLAWS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_source_with_a_flaw(
    installer: Installer, source: Path, models_dir: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(source)
    with pytest.raises(InstallFailed) as caught:
        installer.install(request(source))
    assert str(caught.value).startswith(message)
    assert entries(models_dir) <= {".locks"}


def test_weights_without_the_extra(models_dir: Path, tmp_path: Path) -> None:
    def bake(*arguments: object, **named: object) -> dict[str, Any]:
        raise InstallFailed("exporting needs more: pip install 'datasette-vision[bake]'")

    weights = repositories.transformers(tmp_path / "weights")
    with pytest.raises(InstallFailed, match=r"pip install 'datasette-vision\[bake\]'"):
        Installer(models_dir, lambda line: None, bake).install(request(weights))
    assert entries(models_dir) == {".locks"}


def test_weights_are_exported(models_dir: Path, tmp_path: Path, said: list[str]) -> None:
    weights = repositories.transformers(tmp_path / "weights")
    asked: dict[str, Any] = {}

    def bake(source: Path, staging: Path, **wishes: Any) -> dict[str, Any]:
        asked.update(wishes, source=source)
        wishes["on_progress"]("half-way")
        folder = fakes.make_dual_encoder(tmp_path / "baked")
        value = json.loads((folder / "manifest.json").read_text())
        for path in folder.iterdir():
            if path.name != "manifest.json":
                shutil.copy(path, staging)
        return {key: value[key] for key in value if key not in {"name", "files", "source", "canonical"}}

    model = Installer(models_dir, said.append, bake).install(request(weights, precision="int8")).model
    assert asked.pop("on_progress") == said.append
    assert asked == {"source": weights, "task": None, "precision": "int8", "calibration": None}
    assert model.manifest.source.location == "weights"
    assert model.manifest.source.licence == "mit"
    assert model.manifest.dimensions == 8
    assert "half-way" in said
    assert len(trial.verify(model)) == 3


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions stop")
def test_a_folder_that_cannot_be_written(installer: Installer, source: Path, models_dir: Path) -> None:
    models_dir.mkdir(mode=0o500)
    with pytest.raises(InstallFailed, match=r"choose another folder with --models-dir"):
        installer.install(request(source))


def test_a_models_folder_that_is_a_file(installer: Installer, source: Path, models_dir: Path) -> None:
    models_dir.write_text("")
    with pytest.raises(InstallFailed, match=r"models.*: choose another folder with --models-dir"):
        installer.install(request(source))


def test_a_full_disk(models_dir: Path, source: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(origin: object, name: str, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("datasette_vision.install.manifest_drafts.link_or_copy", full)
    with pytest.raises(InstallFailed, match=r"No space left on device: free some space, and install again"):
        Installer(models_dir, said.append).install(request(source))
    assert entries(models_dir) == {".locks"}


def test_an_interrupt(models_dir: Path, source: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Installer(models_dir, interrupt).install(request(source))
    assert entries(models_dir) == {".locks"}


# What killed installs left


def left(models_dir: Path, kind: str, name: str = NAME, digits: str = "0123abcd") -> Path:
    return models_dir / f".{kind}-{name}-{digits}"


def test_a_staging_folder_is_cleared_up(installer: Installer, source: Path, models_dir: Path) -> None:
    for name in (NAME, "other"):
        left(models_dir, "install", name).mkdir(parents=True)
        (left(models_dir, "install", name) / "image.onnx").write_bytes(b"half")
    assert ModelStore(models_dir).names() == ModelStore(models_dir / "nothing").names()
    installer.install(request(source))
    assert is_clean(models_dir)


def test_names_that_begin_alike_are_kept_apart(installer: Installer, source: Path, models_dir: Path) -> None:
    """.install-clip-b16-… is not a leftover of `clip`: its own lock says whether it is at work."""
    at_work = left(models_dir, "install", "clip-b16")
    at_work.mkdir(parents=True)
    with staging.exclusive(models_dir / ".locks" / "clip-b16", "", print):
        installer.install(request(source))
        assert at_work.is_dir()
    assert [kind for _, kind in leftovers(models_dir, "clip-b16")] == ["install"]
    assert leftovers(models_dir, "clip") == []


def test_a_replacement_killed_half_way(installer: Installer, source: Path, models_dir: Path) -> None:
    """Killed between its two renames: the old model serves, and is put back by the next install."""
    identity = installer.install(request(source)).model.manifest.identity
    (models_dir / NAME).rename(left(models_dir, "old"))
    left(models_dir, "install").mkdir()
    store = ModelStore(models_dir)
    assert NAME in store.names()
    model = store.find(NAME)
    assert model.manifest.identity == identity
    trial.verify(model)
    outcome = installer.install(request(source))
    assert outcome.already_there
    assert outcome.model.folder == models_dir / NAME
    assert is_clean(models_dir)


def test_a_replacement_killed_at_its_end(installer: Installer, source: Path, models_dir: Path) -> None:
    installer.install(request(source))
    shutil.copytree(models_dir / NAME, left(models_dir, "old"))
    assert ModelStore(models_dir).find(NAME).folder == models_dir / NAME
    installer.install(request(source))
    assert is_clean(models_dir)


def test_old_downloads_are_forgotten(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = models_dir / ".downloads"
    downloads.mkdir(parents=True)
    now = 1_700_000_000
    monkeypatch.setattr(time, "time", lambda: now)
    for days in (6, 7, 8):
        (downloads / f"{days}.part").write_bytes(b"x")
        moment = now - days * 24 * 3600
        os.utime(downloads / f"{days}.part", (moment, moment))
    staging.clear_up(models_dir, print)
    assert sorted(path.name for path in downloads.iterdir()) == ["6.part", "7.part"]


# Two at once


def test_two_installs_of_one_name(models_dir: Path, source: Path) -> None:
    said: list[str] = []
    outcomes: list[bool] = []
    errors: list[Exception] = []
    lock = threading.Barrier(2)

    def work() -> None:
        lock.wait()
        try:
            outcomes.append(Installer(models_dir, said.append).install(request(source)).already_there)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(outcomes) == [False, True]
    assert said.count("clip is being installed by another process: waiting for it to finish") == 1
    assert is_clean(models_dir)


def test_installs_of_different_names_at_once(models_dir: Path, source: Path) -> None:
    errors: list[Exception] = []

    def work(name: str) -> None:
        try:
            Installer(models_dir, lambda line: None).install(request(source, name=name))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"model-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store = ModelStore(models_dir)
    for number in range(4):
        trial.verify(store.find(f"model-{number}"))
    assert is_clean(models_dir)


# Removing


def test_remove(installer: Installer, source: Path, models_dir: Path) -> None:
    installer.install(request(source))
    installer.remove(NAME)
    assert entries(models_dir) == {".locks"}
    with pytest.raises(UnknownModel):
        installer.remove(NAME)
    with pytest.raises(InvalidArgument, match="tiny-emoji is bundled with the package"):
        installer.remove("tiny-emoji")
    with pytest.raises(UnknownModel):
        installer.remove("../source")


def test_remove_what_is_damaged_or_half_replaced(installer: Installer, source: Path, models_dir: Path) -> None:
    installer.install(request(source))
    (models_dir / NAME / "manifest.json").unlink()
    installer.remove(NAME)
    installer.install(request(source))
    (models_dir / NAME).rename(left(models_dir, "old"))
    installer.remove(NAME)
    assert entries(models_dir) == {".locks"}


# Verifying


def test_verify_names_the_file(installer: Installer, source: Path) -> None:
    model = installer.install(request(source)).model
    assert len(trial.verify(model)) == 3
    path = model.folder / "image.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelCorrupt, match=r"image\.onnx: expected the SHA-256"):
        trial.verify(model)


@pytest.mark.parametrize(("tower", "key"), [("text", "embedding"), ("image", "image_embedding")])
def test_verify_compares_what_the_model_answers(installer: Installer, source: Path, tower: str, key: str) -> None:
    """Another processor, another ONNX Runtime: the files are right, and the numbers are not."""
    model = installer.install(request(source)).model
    path = model.folder / "manifest.json"
    value = json.loads(path.read_text())
    value["canonical"][key] = value["canonical"][key][1:] + value["canonical"][key][:1]
    path.write_text(json.dumps(value))
    with pytest.raises(ModelCorrupt, match=rf"{tower}\.onnx: the canonical \w+ no longer gives what was recorded"):
        trial.verify(installer.store.find(NAME))
    value["canonical"][key] = ["x"]
    path.write_text(json.dumps(value))
    with pytest.raises(ModelCorrupt, match="is not one of this model"):
        trial.verify(installer.store.find(NAME))


# Killed at any moment

SLOW = 0.005
ROUNDS = 20


def install_in_child(models_dir: str, url: str, force: bool) -> None:
    """Runs in a process of its own, which the test kills."""
    os.environ["HF_ENDPOINT"] = url
    Installer(Path(models_dir), lambda line: None).install(Request("owner/clip", force=force))


def whole_or_nothing(models_dir: Path) -> bool:
    """Verify the model if it is there; return whether it is."""
    try:
        model = ModelStore(models_dir).find(NAME)
    except UnknownModel:
        return False
    trial.verify(model)
    return True


@pytest.fixture(scope="module")
def children() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.install.test_install", "onnxruntime", "huggingface_hub", "tokenizers"])
    return context


@pytest.mark.parametrize("at_work", [False, True])
def test_a_download_that_is_in_place_is_dropped_by_the_next_install(
    installer: Installer, models_dir: Path, source: Path, at_work: bool
) -> None:
    """Who put it there was killed before it could; but what is being put into another folder is still needed."""
    installer.install(request(source))
    downloads = models_dir / ".downloads"
    downloads.mkdir(exist_ok=True)
    (graph, *_) = sorted((models_dir / "clip").glob("*.onnx"))
    os.link(graph, downloads / "0123")
    (downloads / "4567").write_bytes(b"to be resumed")
    with contextlib.ExitStack() as stack:
        if at_work:
            stack.enter_context(staging.exclusive(models_dir / ".locks/other", "", lambda line: None))
            stack.enter_context(staging.staged(models_dir, "other"))
        assert installer.install(request(source)).already_there
    assert sorted(path.name for path in downloads.iterdir()) == (["0123", "4567"] if at_work else ["4567"])


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_killed_at_random_moments(children: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repositories.xenova(tmp_path / "served")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    generator = random.Random(20)
    found = []
    with serve(Hub({"owner/clip": tmp_path / "served"}, seconds_per_chunk=SLOW)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        models_dir = tmp_path / "models"
        started = time.monotonic()
        child = children.Process(target=install_in_child, args=(str(models_dir), hub.url, False))
        child.start()
        child.join()
        seconds = time.monotonic() - started
        assert child.exitcode == 0
        for number in range(ROUNDS):
            replaces = number % 2 == 1
            if not replaces:
                shutil.rmtree(models_dir)
            child = children.Process(target=install_in_child, args=(str(models_dir), hub.url, replaces))
            child.start()
            time.sleep(generator.uniform(0, seconds))
            child.kill()
            child.join()
            there = whole_or_nothing(models_dir)
            # A replacement that is killed leaves the old one or the new one, never none.
            assert there or not replaces
            found.append((replaces, there))
            hub.seconds_per_chunk = 0
            Installer(models_dir, lambda line: None).install(Request("owner/clip", force=replaces))
            hub.seconds_per_chunk = SLOW
            assert whole_or_nothing(models_dir)
            assert is_clean(models_dir), sorted(models_dir.rglob("*"))
    assert len(found) == ROUNDS
