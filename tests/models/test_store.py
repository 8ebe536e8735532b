"""models/store.py: models are found by name, nothing outside is touched, and damage is named."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from datasette_vision.errors import ModelCorrupt, UnknownModel
from datasette_vision.models.store import BUNDLED, ModelStore, default_models_dir
from tests import fakes


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of three models."""
    root = tmp_path / "models"
    for name in ("beta", "alpha", "gamma"):
        fakes.make_dual_encoder(root, name)
    return root


@pytest.fixture
def store(models: Path, tmp_path: Path) -> ModelStore:
    return ModelStore(models, tmp_path / "nothing bundled")


# Finding


def test_names_are_sorted(store: ModelStore) -> None:
    assert store.names() == ["alpha", "beta", "gamma"]


def test_find(store: ModelStore, models: Path) -> None:
    model = store.find("beta")
    assert model.manifest.name == "beta"
    assert model.folder == models / "beta"
    for file in model.manifest.files:
        assert model.path(file.path) == models / "beta" / file.path


def test_a_model_of_the_user_comes_before_a_bundled_one(models: Path, tmp_path: Path) -> None:
    bundled = tmp_path / "bundled"
    fakes.make_dual_encoder(bundled, "alpha", 12)
    fakes.make_dual_encoder(bundled, "delta", 12)
    store = ModelStore(models, bundled)
    assert store.names() == ["alpha", "beta", "delta", "gamma"]
    assert store.find("alpha").folder == models / "alpha"
    assert store.find("delta").folder == bundled / "delta"
    # Not even when it is damaged: another model under the same name would answer with other numbers.
    (models / "alpha" / "manifest.json").write_text("{}")
    with pytest.raises(ModelCorrupt, match=r"alpha/manifest\.json: format"):
        store.find("alpha")


def test_the_bundled_model_is_always_there(tmp_path: Path) -> None:
    bundled = sorted(path.parent.name for path in BUNDLED.glob("*/manifest.json"))
    assert ModelStore(tmp_path / "missing").names() == bundled
    (tmp_path / "a file").touch()
    assert ModelStore(tmp_path / "a file").names() == bundled


def test_a_folder_that_cannot_be_looked_at_hides_nothing(tmp_path: Path) -> None:
    """A name too long for the file system fails as a folder does that belongs to another user."""
    fakes.make_dual_encoder(tmp_path, "fake")
    store = ModelStore(tmp_path / ("x" * 300), tmp_path)
    assert store.names() == ["fake"]
    assert store.find("fake").folder == tmp_path / "fake"
    with pytest.raises(UnknownModel):
        store.find("other")


def test_an_unknown_model(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(UnknownModel) as caught:
        store.find("delta")
    assert str(caught.value) == "no model 'delta' is installed; installed are: alpha, beta, gamma"
    with pytest.raises(UnknownModel) as caught:
        ModelStore(tmp_path / "missing", tmp_path / "missing too").find("x" * 65)
    assert str(caught.value) == f"no model '{'x' * 64}…' is installed; installed are: none"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../outside",
        "alpha/../../outside",
        "alpha/",
        "/etc",
        "~",
        "Alpha",
        "alpha\0",
        "alpha\n",
        "\ud800",
    ],
    ids=ascii,
)
def test_a_name_never_leads_outside(store: ModelStore, tmp_path: Path, name: str) -> None:
    """There is a good model at ../outside, and one at the absolute path."""
    fakes.make_dual_encoder(tmp_path, "outside")
    for given in (name, str(tmp_path / "outside")):
        with pytest.raises(UnknownModel, match="installed are: alpha, beta, gamma"):
            store.find(given)


def test_what_is_not_a_model_is_no_name(store: ModelStore, models: Path) -> None:
    (models / "a file").touch()
    (models / "afile").touch()
    (models / "empty").mkdir()
    (models / ".alpha-installing").mkdir()
    (models / ".alpha-installing" / "manifest.json").write_text("{}")
    (models / "Upper").mkdir()
    (models / "Upper" / "manifest.json").write_text("{}")
    (models / "folder").mkdir()
    (models / "folder" / "manifest.json").mkdir()
    assert store.names() == ["alpha", "beta", "gamma"]


def test_the_name_of_the_folder_is_the_name_of_the_model(store: ModelStore, models: Path) -> None:
    (models / "alpha").rename(models / "delta")
    with pytest.raises(ModelCorrupt) as caught:
        store.find("delta")
    assert str(caught.value) == f"{models / 'delta' / 'manifest.json'}: name: expected delta, found alpha"


def test_a_damaged_model_hides_no_other(store: ModelStore, models: Path) -> None:
    (models / "beta" / "manifest.json").write_bytes(b"\x00")
    assert store.names() == ["alpha", "beta", "gamma"]
    with pytest.raises(ModelCorrupt, match=r"beta/manifest\.json: expected JSON"):
        store.find("beta")
    assert store.find("gamma").manifest.name == "gamma"
    with pytest.raises(UnknownModel, match="alpha, beta, gamma"):
        store.find("delta")


# Files


def damaged(store: ModelStore, name: str) -> str:
    model = store.find("alpha")
    with pytest.raises(ModelCorrupt) as caught:
        model.path(name)
    prefix = f"{model.folder / name}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx", "tokenizer.json"])
def test_a_missing_file(store: ModelStore, models: Path, name: str) -> None:
    (models / "alpha" / name).unlink()
    assert damaged(store, name) == "cannot be read: No such file or directory"


def test_a_truncated_file(store: ModelStore, models: Path) -> None:
    path = models / "alpha" / "tokenizer.json"
    content = path.read_bytes()
    assert len(content) > 1000
    path.write_bytes(content[:-1])
    assert damaged(store, "tokenizer.json") == f"expected {len(content):,} bytes, found {len(content) - 1:,}"
    path.write_bytes(b"")
    assert damaged(store, "tokenizer.json") == f"expected {len(content):,} bytes, found 0"


def test_one_altered_bit(store: ModelStore, models: Path) -> None:
    path = models / "alpha" / "image.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    digests = {
        file["path"]: file["sha256"] for file in json.loads((models / "alpha/manifest.json").read_text())["files"]
    }
    found = damaged(store, "image.onnx")
    assert found.startswith(f"expected the SHA-256 {digests['image.onnx'][:12]}…, found ")
    assert found.endswith("…")


def test_a_folder_in_place_of_a_file(store: ModelStore, models: Path) -> None:
    path = models / "alpha" / "text.onnx"
    path.unlink()
    path.mkdir()
    damaged(store, "text.onnx")


@pytest.mark.parametrize(("graph", "data"), [("image.onnx", "image.onnx.data"), ("int8/a.onnx", "int8/weights")])
def test_weights_kept_apart_are_checked_with_their_graph(tmp_path: Path, graph: str, data: str) -> None:
    folder = fakes.make_dual_encoder(tmp_path, "apart")
    (folder / graph).parent.mkdir(exist_ok=True)
    (folder / graph).write_bytes((folder / "image.onnx").read_bytes())
    (folder / data).write_bytes(b"weights")
    files = [
        {"path": path.relative_to(folder).as_posix(), "size": len(content), "sha256": sha256(content).hexdigest()}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
        for content in [path.read_bytes()]
    ]
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files, "image": {"file": graph}}))
    model = ModelStore(tmp_path, tmp_path).find("apart")
    assert model.path(graph) == folder / graph
    (folder / data).write_bytes(b"wrights")
    with pytest.raises(ModelCorrupt, match=f"{data}: expected the SHA-256"):
        model.path(graph)
    assert model.path("text.onnx") == folder / "text.onnx"


def test_a_damaged_file_is_found_when_it_is_used(store: ModelStore, models: Path) -> None:
    """Reading a manifest reads no weights: 150 MB at every start would be too slow."""
    (models / "alpha" / "image.onnx").unlink()
    assert store.find("alpha").path("text.onnx").exists()


# The folder


def test_the_folder_of_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATASETTE_VISION_MODELS", str(tmp_path))
    assert default_models_dir() == tmp_path
    assert ModelStore().models_dir == tmp_path
    assert ModelStore().bundled == BUNDLED
    assert ModelStore(tmp_path / "x").models_dir == tmp_path / "x"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATASETTE_VISION_MODELS", "~/models")
    assert default_models_dir() == tmp_path / "models"


@pytest.mark.parametrize("value", [None, ""])
def test_the_folder_by_default(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("DATASETTE_VISION_MODELS")
    else:
        monkeypatch.setenv("DATASETTE_VISION_MODELS", value)
    found = default_models_dir()
    assert found.is_absolute()
    assert found.parts[-2:] == ("datasette-vision", "models")
