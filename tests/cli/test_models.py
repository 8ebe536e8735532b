"""cli/models.py: the commands as they are typed, what they print, and how they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from click.testing import CliRunner, Result
from datasette.cli import cli

from datasette_vision.cli.models import PRODUCTS, _installed
from datasette_vision.engine.runtime import products_overflow
from datasette_vision.models.catalog import CATALOG
from datasette_vision.models.store import ModelStore
from tests import repositories
from tests.hubserver import Hub, serve


@pytest.fixture
def models_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATASETTE_VISION_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def vision(*arguments: str, typed: str | None = None, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["vision", *arguments], input=typed)
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return repositories.xenova(tmp_path / "My CLIP", noise={"vision": 0.001, "text": 3.0})


def test_install(models_dir: Path, source: Path) -> None:
    result = vision("install", str(source))
    assert result.stdout == (
        f"my-clip is installed in {models_dir / 'my-clip'}\n"
        "dual-encoder, 8 dimensions, int8 image, fp32 text, 0.0 MB\n"
        "Use it in SQL: select vision_embed('purple and gold', 'my-clip')\n"
    )
    assert "image int8: worst cosine" in result.stderr
    assert vision("install", str(source)).stdout == (
        f"my-clip is already installed in {models_dir / 'my-clip'} (--force replaces it)\n"
    )
    assert "int8, 0.0 MB" in vision("install", str(source), "--force", "--precision", "int8").stdout


def test_install_elsewhere_under_another_name(models_dir: Path, source: Path, tmp_path: Path) -> None:
    vision("install", str(source), "--name", "mine", "--models-dir", str(tmp_path / "there"))
    assert [row["name"] for row in json.loads(vision("models", "--json").stdout)] == ["tiny-emoji"]
    there = json.loads(vision("models", "--json", "--models-dir", str(tmp_path / "there")).stdout)
    assert [row["name"] for row in there] == ["mine", "tiny-emoji"]


def test_install_a_classifier(models_dir: Path, tmp_path: Path) -> None:
    graph = repositories.classifier(tmp_path / "own") / "onnx" / "model.onnx"
    labels = tmp_path / "labels.txt"
    labels.write_text("ant\nbee\ncat\n")
    result = vision(
        *("install", str(graph), "--name", "insects", "--task", "image-classification"),
        *("--labels", str(labels), "--preprocess", "imagenet"),
    )
    assert "image-classification, 3 dimensions, fp32" in result.stdout
    assert "select vision_classify(image, 'insects')" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nonsense",), 9, "'nonsense': not a local folder or file, not a repository owner/name, and not in the"),
        (("./nonsense",), 9, "./nonsense: no such folder or file"),
        (("{source}", "--name", "A B"), 2, "--name: expected lower-case letters, digits"),
        (("{source}", "--preprocess", "photo"), 2, "--preprocess: expected one of imagenet, clip"),
        (("{weights}",), 8, "pip install 'datasette-vision[bake]'"),
    ],
)
def test_errors_end_with_their_code(
    models_dir: Path,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    weights = repositories.transformers(tmp_path / "weights")
    filled = [argument.format(source=source, weights=weights) for argument in arguments]
    result = vision("install", *filled, code=code)
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert message in result.stderr
    assert result.stdout == ""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server with the repositories of the catalogue."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve(Hub()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_install_from_the_catalogue(models_dir: Path, hub: Hub, tmp_path: Path) -> None:
    hub.repositories["Xenova/clip-vit-base-patch32"] = repositories.xenova(tmp_path / "clip")
    hub.repositories["canavar/clip-ViT-B-32-multilingual-v1-ONNX"] = repositories.qdrant(tmp_path)[1]
    hub.repositories["onnx-community/siglip2-base-patch16-224-ONNX"] = repositories.siglip(tmp_path / "siglip2")
    hub.repositories["AdamCodd/vit-base-nsfw-detector"] = repositories.classifier(tmp_path / "nsfw")
    for name in ("clip", "clip-multilingual", "siglip2", "nsfw"):
        assert vision("install", name).stdout.startswith(f"{name} is installed in {models_dir / name}\n")
        assert "is already installed" in vision("install", name).stdout
    rows = {row["name"]: row for row in json.loads(vision("models", "--json").stdout)}
    assert rows["clip"]["licence"] == "MIT"
    assert rows["clip-multilingual"]["source"] == (
        "Xenova/clip-vit-base-patch32 + canavar/clip-ViT-B-32-multilingual-v1-ONNX"
    )
    siglip2 = json.loads((models_dir / "siglip2" / "manifest.json").read_text())
    assert (siglip2["activation"], round(siglip2["logit_bias"], 2)) == ("sigmoid", -16.77)
    vision("verify", "clip", "clip-multilingual", "siglip2", "nsfw")
    here = {row["name"] for row in json.loads(vision("models", "--all", "--json").stdout) if row["installed"]}
    assert here == {"clip", "clip-multilingual", "siglip2", "nsfw"}


def test_a_conversion_that_is_gone(models_dir: Path, hub: Hub) -> None:
    message = vision("install", "clip", code=9).stderr
    assert f"{hub.url}: Xenova/clip-vit-base-patch32 (main): not found" in message
    assert "The original can be exported: datasette vision install openai/clip-vit-base-patch32 --name clip" in message


def test_install_without_a_network(models_dir: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = vision("install", "clip", code=10).stderr
    assert "http://127.0.0.1:9: Xenova/clip-vit-base-patch32 (main): the download failed: " in message
    assert "datasette vision install FOLDER --name NAME" in message


def test_verify(models_dir: Path, source: Path) -> None:
    vision("install", str(source))
    lines = vision("verify", "my-clip").stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("my-clip: 3 files are what they were (")
    path = models_dir / "my-clip" / "text.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = vision("verify", "my-clip", code=5)
    assert f"my-clip: {path}: expected the SHA-256" in result.stderr
    assert "no model 'other' is installed" in vision("verify", "other", code=4).stderr
    # One that is damaged does not keep the others from being checked.
    vision("install", str(source), "--name", "sound")
    result = vision("verify", "my-clip", "sound", code=5)
    assert result.stdout.startswith("sound: 3 files")


def test_remove(models_dir: Path, source: Path) -> None:
    vision("install", str(source))
    result = vision("remove", "my-clip", typed="n\n", code=1)
    assert f"Remove my-clip, in {models_dir / 'my-clip'}? [y/N]" in result.output
    assert (models_dir / "my-clip").is_dir()
    assert vision("remove", "my-clip", typed="y\n").output.endswith("my-clip is removed\n")
    assert not (models_dir / "my-clip").exists()
    vision("install", str(source))
    assert vision("remove", "my-clip", "--yes").stdout == "my-clip is removed\n"
    assert "Error: no model 'my-clip' is installed" in vision("remove", "my-clip", "--yes", code=4).stderr
    assert "tiny-emoji is bundled with the package" in vision("remove", "tiny-emoji", "--yes", code=2).stderr


def test_models(models_dir: Path, source: Path) -> None:
    vision("install", str(source))
    (models_dir / "broken").mkdir()
    (models_dir / "broken" / "manifest.json").write_text("{")
    lines = vision("models").stdout.splitlines()
    assert lines[0].split() == ["name", "task", "dim", "precision", "MB", "default"]
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == ["broken", "my-clip", "tiny-emoji"]
    assert "    " + str(models_dir / "broken")[:20] in "\n".join(lines)
    rows = json.loads(vision("models", "--json").stdout)
    assert [row["name"] for row in rows] == ["broken", "my-clip", "tiny-emoji"]
    assert set(rows[0]) == {"name", "error"}
    assert rows[1]["dimensions"] == 8
    assert rows[2]["default"]


@pytest.mark.parametrize(("overflow", "way"), [(False, "native"), (True, "widened")])
def test_models_say_how_products_are_computed(models_dir: Path, overflow: bool, way: str) -> None:
    assert PRODUCTS[overflow].startswith(f"{way}, ")
    assert [row["products"] for row in _installed(ModelStore(models_dir), overflow)] == [way]
    assert vision("models").stderr == f"8-bit products: {PRODUCTS[products_overflow()]}\n"


def test_the_catalogue_fits_80_columns(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = vision("models", "--all").stdout
    assert max(len(line) for line in output.splitlines()) <= 80
    for row in CATALOG:
        assert f"\n{row.name} " in output
        assert row.description[:50] in output
    assert [row["name"] for row in json.loads(vision("models", "--all", "--json").stdout)] == [
        row.name for row in CATALOG
    ]
