"""files/model_transfer.py: a model on its way to a machine that does not have it."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest

from datasette_vision.engine.vision import Vision
from datasette_vision.errors import ModelCorrupt
from datasette_vision.files import model_transfer
from datasette_vision.models.store import ModelStore
from tests import fakes, pictures


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    fakes.make_dual_encoder(tmp_path / "models")
    return ModelStore(tmp_path / "models")


def test_it_arrives(store: ModelStore, tmp_path: Path) -> None:
    """The image tower alone, and it answers as the original."""
    package = model_transfer.pack(store.find("fake"))
    assert "manifest.json" in package.files
    assert not any("text" in name or "tokenizer" in name for name in package.files)
    there = model_transfer.unpack(package, tmp_path / "there")
    assert model_transfer.has(there, "fake", package.fingerprint)
    image = pictures.jpeg()
    assert (Vision(store=there).embed_image(image, "fake") == Vision(store=store).embed_image(image, "fake")).all()
    assert model_transfer.unpack(package, tmp_path / "there").find("fake").folder == there.find("fake").folder


def test_many_at_once(store: ModelStore, tmp_path: Path) -> None:
    package = model_transfer.pack(store.find("fake"))
    failed: list[BaseException] = []

    def unpack() -> None:
        try:
            found = model_transfer.unpack(package, tmp_path / "there").find("fake")
            found.path(found.manifest.image.file)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=unpack) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [path.name for path in (tmp_path / "there").iterdir()] == [package.fingerprint]


def test_the_fingerprint_is_of_what_decides_the_embeddings(store: ModelStore) -> None:
    manifest = store.find("fake").manifest
    mark = model_transfer.fingerprint(manifest)
    same = dataclasses.replace(manifest, identity="x", made_with={"by": "another"}, description="d", labels=())
    assert model_transfer.fingerprint(same) == mark
    spec = dataclasses.replace(manifest.preprocess, resample="nearest")
    assert model_transfer.fingerprint(dataclasses.replace(manifest, preprocess=spec)) != mark
    files = tuple(dataclasses.replace(file, sha256="0" * 64) for file in manifest.files)
    assert model_transfer.fingerprint(dataclasses.replace(manifest, files=files)) != mark


def test_what_is_not_there(store: ModelStore) -> None:
    mark = model_transfer.fingerprint(store.find("fake").manifest)
    assert model_transfer.has(store, "fake", mark)
    assert not model_transfer.has(store, "fake", "other")
    assert not model_transfer.has(store, "nosuch", mark)


def test_a_damaged_model_is_not_sent(store: ModelStore) -> None:
    model = store.find("fake")
    path = model.folder / model.manifest.image.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelCorrupt):
        model_transfer.pack(model)


def test_what_was_put_there_by_another_is_not_believed(store: ModelStore, tmp_path: Path) -> None:
    """The folder of temporary files is everybody's: what is used of it has the digests of the package."""
    package = model_transfer.pack(store.find("fake"))
    planted = tmp_path / "there" / package.fingerprint / "fake"
    planted.mkdir(parents=True)
    manifest = json.loads(package.files["manifest.json"])
    for file in manifest["files"]:
        file["sha256"] = "0" * 64
    (planted / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OSError, match=r"not empty|exists"):
        model_transfer.unpack(package, tmp_path / "there")
