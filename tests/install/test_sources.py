"""install/sources.py and manifest_drafts.py: folders as others publish them become models that answer."""

from __future__ import annotations

import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from datasette_vision.demo import demo
from datasette_vision.engine.classifier import ImageClassifier
from datasette_vision.engine.encoder import DualEncoder, load_on
from datasette_vision.errors import InstallFailed, InvalidArgument, ModelCorrupt, VisionError
from datasette_vision.images import decode as images
from datasette_vision.install import samples, trial
from datasette_vision.install.install import Installer
from datasette_vision.install.labels import labels_of, read_labels
from datasette_vision.install.origins import MAX_DEPTH, LocalFolder, OneGraph
from datasette_vision.install.requests import Request
from datasette_vision.install.sources import Classifier, Finished, Towers, Weights, needed_for_export, recognise
from datasette_vision.models.store import InstalledModel
from tests import fakes, pictures, repositories


class Machine:
    def __init__(self, root: Path) -> None:
        self.said: list[str] = []
        self.installer = Installer(root / "models", self.said.append)

    def install(self, source: Path, **wishes: Any) -> InstalledModel:
        model = self.installer.install(Request(str(source), **wishes)).model
        trial.verify(model)
        return model

    def fails(self, source: Path, **wishes: Any) -> str:
        with pytest.raises(VisionError) as caught:
            self.installer.install(Request(str(source), **wishes))
        assert isinstance(caught.value, (InstallFailed, InvalidArgument))
        return str(caught.value)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def nobody(location: str) -> LocalFolder:
    raise AssertionError(location)


# Recognising


def test_recognise(tmp_path: Path) -> None:
    def kind(folder: Path, task: str | None = None) -> type:
        return type(recognise(LocalFolder(folder), task, nobody))

    assert kind(repositories.xenova(tmp_path / "a")) is Towers
    assert kind(repositories.immich(tmp_path / "b")) is Towers
    assert kind(repositories.classifier(tmp_path / "c")) is Classifier
    assert kind(repositories.transformers(tmp_path / "d")) is Weights
    assert kind(fakes.make_dual_encoder(tmp_path, "e")) is Finished
    # Weights beside graphs: what needs no export is taken.
    for name in "ac":
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    assert kind(tmp_path / "a") is Towers
    assert kind(tmp_path / "c") is Classifier
    # Weights beside one graph of what has two towers.
    (tmp_path / "d" / "onnx").mkdir()
    (tmp_path / "d" / "onnx" / "model.onnx").write_bytes(b"")
    assert kind(tmp_path / "d") is Weights


def test_what_classifies_without_saying_so(tmp_path: Path) -> None:
    """A dual encoder may have labels in its configuration, too."""
    folder = repositories.classifier(tmp_path / "a", architectures=[])
    assert type(recognise(LocalFolder(folder), None, nobody)) is Classifier
    labelled = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "text_config": {}}
    repositories.write_json(folder / "config.json", labelled)
    with pytest.raises(InstallFailed, match="one graph of unknown kind"):
        recognise(LocalFolder(folder), None, nobody)


def test_the_text_tower_of_another_repository(tmp_path: Path) -> None:
    images, texts = repositories.xenova(tmp_path / "images"), repositories.qdrant(tmp_path)[1]
    found = recognise(LocalFolder(images), None, nobody, LocalFolder(texts))
    assert isinstance(found, Towers)
    assert found.image.by_precision == {"fp32": "onnx/vision_model.onnx"}
    assert found.text.by_precision == {"fp32": "model.onnx"}


def test_folders_are_looked_into_so_deep(tmp_path: Path) -> None:
    deepest = tmp_path.joinpath("model", *"abc")
    (deepest / "d").mkdir(parents=True)
    for folder in (deepest, deepest / "d"):
        (folder / "model.onnx").write_bytes(b"")
    assert LocalFolder(tmp_path / "model").names == {"a/b/c/model.onnx"}
    assert len(deepest.relative_to(tmp_path / "model").parts) == MAX_DEPTH


def test_nothing_to_recognise(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"")
    assert machine.fails(folder).startswith("photos: found nothing that can be installed: expected ONNX towers")
    assert machine.fails(folder).endswith("found cat.jpg")
    (folder / "vision_model.onnx").write_bytes(b"")
    assert machine.fails(folder) == "photos: found vision_model.onnx, but no text_model.onnx"
    (folder / "vision_model.onnx").rename(folder / "model.onnx")
    assert "model.onnx" not in machine.fails(folder).partition(":")[0]
    assert "one graph of unknown kind" in machine.fails(folder)


def test_what_an_export_reads(tmp_path: Path) -> None:
    folder = repositories.transformers(tmp_path / "x")
    (folder / "0_CLIPModel").mkdir()
    (folder / "0_CLIPModel" / "pytorch_model.bin").write_bytes(b"")
    (folder / "1_Dense").mkdir()
    for name in ("model.safetensors", "pytorch_model.bin"):  # the same weights twice
        (folder / "1_Dense" / name).write_bytes(b"")
    (folder / "openvino").mkdir()
    (folder / "openvino" / "config.json").write_bytes(b"")
    assert needed_for_export(LocalFolder(folder)) == [
        "0_CLIPModel/pytorch_model.bin",
        "1_Dense/model.safetensors",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]


# Two towers


def embeddings(model: InstalledModel) -> tuple[np.ndarray, np.ndarray]:
    """What an installed model makes of a picture and of two texts in one batch."""
    encoder = DualEncoder(model, load_on(1))
    pixels = np.stack([model.manifest.preprocess(picture) for picture in itertools.islice(samples.sample_images(), 3)])
    cutter = encoder.tokenizer.get()
    return encoder.encode_pixels(pixels), encoder.encode_tokens([cutter.encode(text) for text in ("a cat", "dogs!")])


@pytest.fixture
def reference(tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same graphs under the names of this package."""
    folder = fakes.make_dual_encoder(tmp_path / "reference")
    value = json.loads((folder / "manifest.json").read_text())
    processor = repositories.CLIP_PREPROCESSOR
    value["preprocess"] |= {"mean": processor["image_mean"], "std": processor["image_std"], "resample": "bicubic"}
    (folder / "manifest.json").write_text(json.dumps(value))
    return embeddings(Machine(tmp_path / "reference-machine").install(folder))


def same(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(np.allclose(left, right, atol=1e-6) for left, right in zip(first, second, strict=True))


def test_xenova(machine: Machine, tmp_path: Path, reference: tuple[np.ndarray, np.ndarray]) -> None:
    model = machine.install(repositories.xenova(tmp_path / "clip"))
    manifest = model.manifest
    assert manifest.text is not None
    assert (manifest.precision, manifest.dimensions, manifest.logit_scale) == ("fp32", 8, 100.0)
    assert (manifest.text.padding, manifest.text.context_length, manifest.text.pad_token_id) == (
        "longest",
        16,
        fakes.PAD,
    )
    assert (manifest.text.attention_mask, manifest.text.output) == (None, "text_embeds")
    assert manifest.image.output == "image_embeds"
    assert manifest.source.licence == "mit"
    assert same(embeddings(model), reference)


def test_one_file_for_all_processors(
    machine: Machine, tmp_path: Path, reference: tuple[np.ndarray, np.ndarray]
) -> None:
    """As transformers 5 writes it."""
    folder = repositories.xenova(tmp_path / "clip")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    assert same(embeddings(machine.install(folder)), reference)


def test_qdrant(machine: Machine, tmp_path: Path, reference: tuple[np.ndarray, np.ndarray]) -> None:
    vision, text = repositories.qdrant(tmp_path)
    for folder in (vision, text):
        model = machine.install(folder, force=True)
        assert model.manifest.name == "clip-vit-b-32"
        assert model.manifest.text is not None
        assert model.manifest.text.attention_mask == "attention_mask"
        assert same(embeddings(model), reference)


def test_immich(machine: Machine, tmp_path: Path) -> None:
    model = machine.install(repositories.immich(tmp_path / "clip"))
    assert model.manifest.text is not None
    assert (model.manifest.text.padding, model.manifest.text.context_length) == ("max_length", 16)
    assert (model.manifest.text.input_ids, model.manifest.image.input) == ("text", "image")
    assert [rows.shape for rows in embeddings(model)] == [(3, 8), (2, 8)]


def test_siglip(machine: Machine, tmp_path: Path) -> None:
    model = machine.install(repositories.siglip(tmp_path / "siglip2"))
    manifest = model.manifest
    assert manifest.text is not None
    assert (manifest.text.padding, manifest.text.context_length, manifest.text.output) == (
        "max_length",
        64,
        "pooler_output",
    )
    assert (manifest.activation, manifest.logit_scale) == ("softmax", 100.0)
    assert "its trained scale and bias are not in these files" in machine.said[0]
    cutter = DualEncoder(model, load_on(1)).tokenizer.get()
    assert cutter.encode("A Cat") == cutter.encode("a cat")
    assert manifest.parity == {"tokenizer": "lower-cases, as trained"}


def test_a_bidirectional_tower_is_always_padded(machine: Machine, tmp_path: Path) -> None:
    """Whatever it calls itself: padding changes what it answers, so it was trained with all of it."""
    folder = repositories.xenova(tmp_path / "clip")
    repositories.text_graph_without_mask(folder / "onnx" / "text_model.onnx", 8, ignores_padding=False)
    text = machine.install(folder).manifest.text
    assert text is not None
    assert text.padding == "max_length"


def test_weights_outside_of_the_graph(machine: Machine, tmp_path: Path) -> None:
    folder = repositories.xenova(tmp_path / "clip")
    path = folder / "onnx" / "vision_model.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="vision_model.onnx_data", size_threshold=0)
    assert (folder / "onnx" / "vision_model.onnx_data").exists()
    (folder / "onnx" / "vision_model.onnx_data").chmod(0o600)
    installed = machine.install(folder)
    data = installed.folder / "image" / "fp32" / "vision_model.onnx_data"
    assert data.stat().st_mode & 0o777 == (installed.folder / "manifest.json").stat().st_mode & 0o777
    assert {file.path for file in installed.manifest.files} == {
        "image/fp32/vision_model.onnx",
        "image/fp32/vision_model.onnx_data",
        "text.onnx",
        "tokenizer.json",
    }


def test_weights_outside_of_the_graph_are_checked_with_it(machine: Machine, tmp_path: Path) -> None:
    folder = repositories.xenova(tmp_path / "clip")
    path = folder / "onnx" / "vision_model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="vision_model.onnx_data", size_threshold=0)
    installed = machine.install(folder)
    data = installed.folder / "image" / "fp32" / "vision_model.onnx_data"
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    encoder = DualEncoder(installed, load_on(1))
    with pytest.raises(ModelCorrupt, match=r"vision_model\.onnx_data: expected the SHA-256"):
        encoder.encode_pixels(np.zeros((1, 3, 16, 16), dtype=np.float32))


def test_graphs_that_cannot_be_used(machine: Machine, tmp_path: Path) -> None:
    folder = repositories.xenova(tmp_path / "clip")
    vision, text = folder / "onnx" / "vision_model.onnx", folder / "onnx" / "text_model.onnx"
    good = vision.read_bytes(), text.read_bytes()

    repositories.rename(vision, {"image_embeds": "last_hidden_state"})
    assert machine.fails(folder) == (
        "image.onnx: expected an output of shape (n, d) named image_embeds or embedding; found last_hidden_state (?, 8)"
    )
    vision.write_bytes(good[1])
    assert "image.onnx: expected one input, of shape (n, 3, height, width); found input_ids (?, ?)" in machine.fails(
        folder
    )
    vision.write_bytes(good[0])
    text.write_bytes(good[0])
    assert machine.fails(folder).startswith("text.onnx: expected the inputs input_ids and, optionally, attention_mask")


def test_what_takes_no_pictures_alone_is_named(machine: Machine, tmp_path: Path) -> None:
    """Two inputs are both towers in one graph only where one of them takes pixels."""
    folder = repositories.xenova(tmp_path / "clip")
    path = folder / "onnx" / "vision_model.onnx"
    pixels, tokens = onnx.load(path), onnx.load(folder / "onnx" / "text_model.onnx")
    fakes.text_graph(path, 8)
    assert machine.fails(folder).endswith("found input_ids (?, ?), attention_mask (?, ?)")
    pixels.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    onnx.save(pixels, path)
    assert machine.fails(folder).endswith("found pixel_values (?, 3, 16, 16), scale (1)")
    pixels.graph.input[1].CopyFrom(tokens.graph.input[0])
    onnx.save(pixels, path)
    assert machine.fails(folder).endswith(
        "found pixel_values (?, 3, 16, 16), input_ids (?, ?): both towers in one graph: separate towers are needed"
    )


def test_a_length_that_the_graph_fixes_is_the_one_that_counts(machine: Machine, tmp_path: Path) -> None:
    folder = repositories.immich(tmp_path / "clip")
    repositories.write_json(folder / "config.json", {"embed_dim": 8, "text_cfg": {"context_length": 77}})
    settings = {**repositories.TOKENIZER_CONFIG, "model_max_length": 77}
    repositories.write_json(folder / "textual" / "tokenizer_config.json", settings)
    text = machine.install(folder).manifest.text
    assert text is not None
    assert text.context_length == 16


def test_pictures_with_channels_last(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "keras.onnx"
    fakes.save_graph(
        path,
        [helper.make_node("ReduceMean", ["x"], ["logits"], axes=[1, 2], keepdims=0)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 16, 3])],
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3]),
        {},
    )
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\n")
    found = machine.fails(path, task="image-classification", labels=labels, preprocess="half")
    assert found == (
        "image.onnx: expected pixels of shape (n, 3, height, width), found channels last: export it with channels first"
    )


# Precisions


@pytest.mark.parametrize(
    ("noise", "wanted", "expected"),
    [
        ({"vision": 0.001, "text": 0.001}, "auto", "int8"),
        ({"vision": 0.001, "text": 2.0}, "auto", "int8 image, fp32 text"),
        ({"vision": 2.0, "text": 2.0}, "auto", "fp32"),
        ({"vision": 2.0, "text": 2.0}, "int8", "int8"),
        ({"vision": 0.001, "text": 0.001}, "fp32", "fp32"),
        ({}, "auto", "fp32"),
    ],
)
def test_the_precision_is_proved(
    machine: Machine, tmp_path: Path, noise: dict[str, float], wanted: str, expected: str
) -> None:
    model = machine.install(repositories.xenova(tmp_path / "clip", noise=noise), precision=wanted)
    assert model.manifest.precision == expected
    assert {file.path for file in model.manifest.files} == {"image.onnx", "text.onnx", "tokenizer.json"}
    parity = model.manifest.parity
    assert set(parity) == ({"reference", "threshold", "image", "text"} if noise and wanted == "auto" else set())
    for report in (parity[tower] for tower in ("image", "text") if parity):
        assert report["kept"] in expected
        assert report["samples"] == (38 if report is parity["image"] else len(samples.SAMPLE_TEXTS))
        assert [each["name"] for each in report["candidates"]] == ["fp32", "int8"]
        for each in report["candidates"]:
            assert each["worst_cosine"] <= each["mean_cosine"] <= 1
            assert each["milliseconds"] >= 0


def test_a_precision_that_is_not_there(machine: Machine, tmp_path: Path) -> None:
    assert machine.fails(repositories.xenova(tmp_path / "clip"), precision="int8") == (
        "clip: no graph of precision int8; found onnx/vision_model.onnx"
    )


def test_calibration_by_ones_own_pictures(machine: Machine, tmp_path: Path) -> None:
    source = repositories.xenova(tmp_path / "clip", noise={"vision": 0.001})
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    assert "--calibration: " in machine.fails(source, calibration=pictures)
    with zipfile.ZipFile(Path(demo.__file__).parent / "emoji.zip") as archive:
        names = [name for name in archive.namelist() if images.sniff(archive.read(name))][:5]
        for number, name in enumerate(names):
            (pictures / f"{number}.img").write_bytes(archive.read(name))
    (pictures / "notes.txt").write_text("no picture")
    tried = machine.install(source, calibration=pictures).manifest.parity
    assert tried["image"]["samples"] == 5
    assert "text" not in tried  # there is one graph of it


# Classifiers


def scores(model: InstalledModel) -> np.ndarray:
    pixels = np.stack([model.manifest.preprocess(picture) for picture in itertools.islice(samples.sample_images(), 3)])
    return ImageClassifier(model, load_on(1)).classify_pixels(pixels)


def test_a_classifier(machine: Machine, tmp_path: Path) -> None:
    model = machine.install(repositories.classifier(tmp_path / "resnet-x", noise=0.0001))
    manifest = model.manifest
    assert (manifest.task, manifest.dimensions, manifest.precision) == ("image-classification", 3, "int8")
    assert [label.label for label in manifest.labels] == ["ant", "bee", "cat"]
    assert manifest.activation == "softmax"
    assert np.allclose(scores(model).sum(1), 1)


def test_a_classifier_of_many_labels_at_once(machine: Machine, tmp_path: Path) -> None:
    source = repositories.classifier(tmp_path / "tags", problem_type="multi_label_classification")
    model = machine.install(source)
    assert model.manifest.activation == "sigmoid"
    assert not np.allclose(scores(model).sum(1), 1)


def bare(tmp_path: Path) -> Path:
    path = tmp_path / "own" / "my-model.onnx"
    path.parent.mkdir()
    fakes.image_graph(path, 3, "scores")
    repositories.rename(path, {"pixel_values": "input.1"})
    return path


def test_a_bare_graph(machine: Machine, tmp_path: Path) -> None:
    path = bare(tmp_path)
    labels = tmp_path / "labels.txt"
    labels.write_text("ant\nbee\n\n  cat  \n")
    assert "one graph of unknown kind" in machine.fails(path)
    assert "the classes are unknown: pass --labels FILE" in machine.fails(path, task="image-classification")
    given: dict[str, Any] = {"task": "image-classification", "labels": labels}
    assert "specify the preprocessing with --preprocess (imagenet, clip" in machine.fails(path, **given)
    assert "expected one of imagenet, clip, siglip, half, unit, or a JSON file" in machine.fails(
        path, preprocess="imagnet", **given
    )
    model = machine.install(path, preprocess="imagenet", **given)
    assert model.manifest.name == "my-model"
    assert model.manifest.image.input == "input.1"
    assert model.manifest.preprocess.crop_height == 16
    assert model.manifest.preprocess.resize.shortest_edge == 18
    assert [label.label for label in model.manifest.labels] == ["ant", "bee", "cat"]
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(repositories.CLIP_PREPROCESSOR))
    assert machine.install(path, preprocess=str(spec), name="other", **given).manifest.preprocess.resample == "bicubic"
    labels.write_text("ant\nbee\n")
    assert machine.fails(path, preprocess="half", name="third", **given) == (
        "my-model.onnx: image.onnx returns 3 scores, but there are 2 labels"
    )


def test_a_graph_that_ends_with_its_own_softmax(machine: Machine, tmp_path: Path) -> None:
    path = bare(tmp_path)
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Softmax", ["before"], ["scores"], axis=1))
    onnx.save(model, path)
    labels = tmp_path / "labels.json"
    labels.write_text('{"1": "bee", "0": "ant", "2": "cat"}')
    installed = machine.install(path, task="image-classification", labels=labels, preprocess="half")
    assert installed.manifest.activation == "none"
    assert [label.label for label in installed.manifest.labels] == ["ant", "bee", "cat"]
    assert np.allclose(scores(installed).sum(1), 1)
    assert scores(installed).max() > 1 / 3


def test_a_graph_beside_others(tmp_path: Path) -> None:
    path = bare(tmp_path)
    (path.parent / "another.onnx").write_bytes(b"")
    (path.parent / "manifest.json").write_text("{}")
    (path.parent / "config.json").write_text("{}")
    assert OneGraph(path).names == {"my-model.onnx", "config.json"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\nb\n", ["a", "b"]),
        ("\ufeffa\r\n b \r\n\r\n", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ('{"1": "b", "0": "a"}', ["a", "b"]),
    ],
)
def test_labels(tmp_path: Path, content: str, expected: list[str]) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content.encode())
    assert read_labels(path) == expected


@pytest.mark.parametrize(
    "content", [b"[1, 2]", b'["a", ""]', b'{"0": "a", "2": "b"}', b'{"x": "a"}', b"[", b"\xff\xfe"]
)
def test_labels_with_a_flaw(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"--labels: .*: expected"):
        read_labels(path)


@pytest.mark.parametrize("labels", [None, {}, ["cat", "dog"], "cat", 1, {"x": "cat"}, {"1": "cat"}])
def test_a_configuration_without_labels_in_order(labels: object) -> None:
    assert labels_of({"id2label": labels}) == []


# The samples


def test_the_samples_are_always_the_same() -> None:
    picture = np.asarray(samples.canonical_picture())
    assert picture.shape == (120, 160, 3)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert int(picture.astype(np.int64).sum()) == 7062607
    different = [{np.asarray(each).tobytes() for each in samples.sample_images()} for _ in range(2)]
    assert len(different[0]) == 38
    assert different[0] == different[1]


def test_of_a_folder_so_many_images_are_samples(tmp_path: Path) -> None:
    for number in range(samples.MAX_SAMPLE_IMAGES + 1):
        (tmp_path / f"{number:02}.png").write_bytes(pictures.png(seed=number))
    (tmp_path / "00.txt").write_text("no picture")
    assert len(list(samples.sample_images(tmp_path))) == samples.MAX_SAMPLE_IMAGES
