"""The models as the llm tool sees them, by its Python functions and by its command line."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

llm = pytest.importorskip("llm")

from datasette_vision.engine.vision import Vision
from tests import pictures


@pytest.fixture
def environment(fake_models: Path, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "DATASETTE_VISION_MODELS": str(fake_models), "LLM_USER_PATH": str(tmp_path / "llm")}


def run(environment: dict[str, str], *arguments: str | Path, fails: bool = False) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "llm", *map(str, arguments)], capture_output=True, env=environment, timeout=120
    )
    assert (result.returncode != 0) == fails, result.stderr.decode()
    return (result.stderr if fails else result.stdout).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of plain colours, and one of them twice as large."""
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour, side in (("red", "red", 40), ("green", "green", 40), ("red-too", "red", 80)):
        folder.joinpath(f"{name}.png").write_bytes(pictures.encode(Image.new("RGB", (side, side), colour), "PNG"))
    return folder


def test_dual_encoders_are_listed_and_classifiers_are_not(environment: dict[str, str]) -> None:
    listed = run(environment, "embed-models")
    assert "vision/fake" in listed
    assert "vision/tiny-emoji" in listed
    assert "fake-classifier" not in listed


def test_embed_text_and_binary(environment: dict[str, str], fake_vision: Vision, folder: Path) -> None:
    text = json.loads(run(environment, "embed", "-m", "vision/fake", "-c", "purple heart"))
    np.testing.assert_allclose(text, fake_vision.embed_text("purple heart"), atol=1e-6)
    image = json.loads(run(environment, "embed", "-m", "vision/fake", "--binary", "-i", folder / "red.png"))
    np.testing.assert_allclose(image, fake_vision.embed_image((folder / "red.png").read_bytes()), atol=1e-6)


def test_embed_multi_then_similar(environment: dict[str, str], folder: Path, tmp_path: Path) -> None:
    database = tmp_path / "embeddings.db"
    files = ["--binary", "--files", folder, "*.png"]
    run(environment, "embed-multi", "pictures", "-m", "vision/fake", "-d", database, *files)
    rows = sqlite3.connect(database).execute("select id, embedding from embeddings order by id").fetchall()
    assert [row[0] for row in rows] == ["green.png", "red-too.png", "red.png"]
    assert sum(value * value for value in struct.unpack("<8f", rows[0][1])) == pytest.approx(1, abs=1e-5)
    similar = run(environment, "similar", "pictures", "red.png", "-d", database).splitlines()
    assert json.loads(similar[0])["id"] == "red-too.png"
    assert json.loads(similar[0])["score"] == pytest.approx(1, abs=1e-3)


def test_a_bad_file_is_a_clear_error(environment: dict[str, str], tmp_path: Path) -> None:
    tmp_path.joinpath("bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    message = run(environment, "embed", "-m", "vision/fake", "--binary", "-i", tmp_path / "bad.png", fails=True)
    assert "PNG" in message
    assert "Traceback" not in message


def test_texts_and_images_may_be_mixed_in_one_batch(
    fake_models: Path, fake_vision: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASETTE_VISION_MODELS", str(fake_models))
    model = llm.get_embedding_model("vision/fake")
    items = ["one", pictures.png(seed=1), "two", pictures.png(seed=2)] * 20
    found = list(model.embed_multi(items))
    assert len(found) == 80
    for item, vector in zip(items, found, strict=True):
        expected = fake_vision.embed_text(item) if isinstance(item, str) else fake_vision.embed_image(item)
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_an_unreadable_item_is_named(fake_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATASETTE_VISION_MODELS", str(fake_models))
    with pytest.raises(llm.ModelError, match=r"^item 1 of a batch of 1 \(SHA-256 [0-9a-f]{12}…\): not an image"):
        llm.get_embedding_model("vision/fake").embed(b"nothing like an image")
    items = [pictures.png(), b"bad one", "text", b"bad two"]
    with pytest.raises(llm.ModelError, match=r"item 2 of a batch of 4 .*; item 4 of a batch of 4"):
        list(llm.get_embedding_model("vision/fake").embed_multi(items))
