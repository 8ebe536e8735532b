"""bake: PyTorch models become folders that answer as they do. Needs the extra `bake`; skipped without it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers

    from tests import tinytorch

from datasette_vision.bake import calibration
from datasette_vision.bake.bake import bake
from datasette_vision.engine.classifier import ImageClassifier
from datasette_vision.engine.encoder import DualEncoder, load_on
from datasette_vision.errors import InstallFailed, InvalidArgument, SourceNotFound
from datasette_vision.install import samples
from datasette_vision.models import manifest as manifests
from datasette_vision.models.store import InstalledModel

# What torch, transformers and sentence-transformers say to each other is not this package's.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

TEXTS = (
    *samples.SAMPLE_TEXTS,
    "<|startoftext|> and <|endoftext|> in the middle",
    "tabs\tand\nlines",
    "▁underscore▁ of SentencePiece",
    "x" * 500,
    "ＦＵＬＬ ｗｉｄｔｈ",  # noqa: RUF001
    "İstanbul ŒUVRE ẞ",
    "\u200bzero width\u00a0space",
)


def finish(draft: dict[str, Any], folder: Path) -> InstalledModel:
    """Write the manifest as an install does, and read it back."""
    files = [
        {"path": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
    ]
    source = {"location": "tests", "revision": None, "licence": "Apache-2.0"}
    value = {**draft, "name": folder.name, "files": files, "source": source}
    (folder / "manifest.json").write_text(json.dumps(value))
    return InstalledModel(manifests.read_manifest(folder), folder)


Baked = Callable[..., InstalledModel]


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Baked:
    """Bake a source and return the installed model."""

    def make(source: Path, **options: Any) -> InstalledModel:
        folder = tmp_path_factory.mktemp("baked")
        return finish(bake(source, folder, **options), folder)

    return make


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few pictures to calibrate with: the bundled ones take longer than the tiny models."""
    folder = tmp_path_factory.mktemp("few")
    for number, picture in enumerate(list(samples.sample_images())[::6]):
        picture.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinytorch.make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentencepiece")
    return tinytorch.make_siglip(tmp_path_factory.mktemp("siglip") / "model")


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def embed_texts(model: InstalledModel, texts: tuple[str, ...]) -> np.ndarray:
    """As the server does, one by one."""
    encoder = DualEncoder(model, load_on(1))
    return np.concatenate([encoder.encode_tokens([encoder.tokenizer.get().encode(text)]) for text in texts])


def embed_images(model: InstalledModel) -> np.ndarray:
    pixels = np.stack([model.manifest.preprocess(image) for image in samples.sample_images()])
    return DualEncoder(model, load_on(1)).encode_pixels(pixels)


def original_texts(folder: Path, texts: tuple[str, ...], **padding: Any) -> np.ndarray:
    """As transformers does, with its own tokenizer and model."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for text in texts:
            inputs = tokenizer(text, truncation=True, return_tensors="pt", **padding)
            rows.append(model.get_text_features(input_ids=inputs["input_ids"]).pooler_output[0].numpy())
    return np.stack(rows)


def original_images(folder: Path) -> np.ndarray:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.no_grad():
        inputs = processor(list(samples.sample_images()), return_tensors="pt")
        return model.get_image_features(**inputs).pooler_output.numpy()


@pytest.mark.parametrize("eos_token_id", [2, "real"])
def test_clip_of_transformers(baked: Baked, tmp_path: Path, eos_token_id: int | str) -> None:
    eos = tinytorch.clip_tokenizer().eos_token_id if eos_token_id == "real" else eos_token_id
    source = tinytorch.make_clip(tmp_path, eos_token_id=eos)
    model = baked(source, precision="fp32")
    assert model.manifest.precision == "fp32"
    assert model.manifest.text is not None
    assert (model.manifest.text.padding, model.manifest.text.context_length) == ("longest", tinytorch.CONTEXT)
    assert model.manifest.logit_scale == pytest.approx(np.exp(2.6592), rel=1e-4)
    expected = original_texts(source, TEXTS, max_length=tinytorch.CONTEXT)
    np.testing.assert_allclose(embed_texts(model, TEXTS), expected, atol=1e-4)
    np.testing.assert_allclose(embed_images(model), original_images(source), atol=1e-3)


def test_padding_changes_nothing_in_clip(baked: Baked, clip: Path) -> None:
    """A text in a batch with longer ones is the text alone, in int8 too: activations are quantised row by row."""
    for precision in ("fp32", "int8"):
        encoder = DualEncoder(baked(clip, precision=precision), load_on(1))
        tokens = [encoder.tokenizer.get().encode(text) for text in TEXTS[:12]]
        together = encoder.encode_tokens(tokens)
        alone = np.concatenate([encoder.encode_tokens([each]) for each in tokens])
        np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())
        pixels = np.random.default_rng(0).standard_normal((5, 3, 64, 64)).astype(np.float32)
        alone = np.concatenate([encoder.encode_pixels(each[None]) for each in pixels])
        np.testing.assert_allclose(encoder.encode_pixels(pixels), alone, atol=1e-5 * np.abs(alone).max())


def test_clip_int8_is_smaller_close_and_reported(baked: Baked, clip: Path) -> None:
    said: list[str] = []
    model = baked(clip, precision="int8", on_progress=said.append)
    assert "int8" in model.manifest.precision
    plain = baked(clip, precision="fp32")
    for file in ("image.onnx.data", "text.onnx.data"):
        assert model.manifest.file(file).size < 0.5 * plain.manifest.file(file).size
    for tower in ("image", "text"):
        report = model.manifest.parity[tower]
        assert report["kept"] in ("int8", "int8-blocks")
        assert 0.99 < report["worst_cosine"] <= report["mean_cosine"] <= 1
        exact, quantised = report["candidates"][:2]
        assert [candidate["name"] for candidate in report["candidates"]] == ["fp32", "int8", "int8-blocks"]
        assert exact["worst_cosine"] > 0.99999
        assert exact["norm_difference"] < 0.001
        assert {"milliseconds", "size", "mean_cosine"} <= set(quantised)
        assert report["samples"] >= 30
    assert model.manifest.parity["image"]["rank_agreement"] > 0.95
    assert "rank_agreement" not in model.manifest.parity["text"]
    assert cosines(embed_images(model), embed_images(plain)).min() > 0.99
    assert cosines(embed_texts(model, TEXTS), embed_texts(plain, TEXTS)).min() > 0.99
    assert any("kept int8" in line for line in said)
    assert model.manifest.made_with["torch"] == torch.__version__


def test_clip_of_sentence_transformers(baked: Baked, clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    source = tinytorch.make_sentence_transformer(tmp_path / "st", clip)
    model = baked(source, precision="fp32")
    original = SentenceTransformer(str(source))
    expected = np.stack([original.encode(text) for text in TEXTS])
    np.testing.assert_allclose(embed_texts(model, TEXTS), expected, atol=1e-4)
    images = np.stack([original.encode(image) for image in samples.sample_images()])
    np.testing.assert_allclose(embed_images(model), images, atol=1e-3)


def test_clip_of_older_sentence_transformers(clip: Path, tmp_path: Path, baked: Baked, few: Path) -> None:
    """The layout of the published clip-ViT-B-32: the model in a folder of its own."""
    (tmp_path / "st").mkdir()
    (tmp_path / "st" / "0_CLIPModel").symlink_to(clip)
    entry = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (tmp_path / "st" / "modules.json").write_text(json.dumps([entry]))
    assert baked(tmp_path / "st", precision="fp32", calibration=few).manifest.dimensions == 48


def test_siglip(baked: Baked, siglip: Path) -> None:
    model = baked(siglip, precision="fp32")
    manifest = model.manifest
    assert manifest.text is not None
    assert (manifest.text.padding, manifest.text.context_length) == ("max_length", 16)
    assert (manifest.activation, manifest.logit_bias) == ("sigmoid", -3.0)
    assert manifest.logit_scale == pytest.approx(np.exp(2))
    expected = original_texts(siglip, TEXTS, padding="max_length", max_length=16)
    np.testing.assert_allclose(embed_texts(model, TEXTS), expected, atol=1e-4)
    np.testing.assert_allclose(embed_images(model), original_images(siglip), atol=1e-3)


@pytest.mark.parametrize("kind", tinytorch.CLASSIFIERS)
def test_classifiers(baked: Baked, tmp_path: Path, few: Path, kind: str) -> None:
    source = tinytorch.make_classifier(tmp_path, kind)
    model = baked(source, precision="fp32", calibration=few)
    manifest = model.manifest
    assert [label.label for label in manifest.labels] == ["ant", "bee", "cat"]
    assert manifest.text is None
    pictures = list(samples.sample_images(few))
    scores = ImageClassifier(model, load_on(1)).classify_pixels(np.stack([manifest.preprocess(p) for p in pictures]))
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
    original = transformers.AutoModelForImageClassification.from_pretrained(source).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil")
    with torch.no_grad():
        expected = original(**processor(pictures, return_tensors="pt")).logits.softmax(-1).numpy()
    np.testing.assert_allclose(scores, expected, atol=0.02)  # pictures are resized to within 1 of 255


def test_a_classifier_of_several_labels(baked: Baked, tmp_path: Path, few: Path) -> None:
    source = tinytorch.make_classifier(tmp_path, "vit")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    assert baked(source, precision="fp32", calibration=few).manifest.activation == "sigmoid"


def test_static_int8_of_convolutions(baked: Baked, tmp_path: Path, few: Path) -> None:
    model = baked(tinytorch.make_classifier(tmp_path, "resnet"), precision="int8", calibration=few)
    assert model.manifest.precision == "int8-static"


@pytest.mark.parametrize("factor", [20, 100])
def test_outlier_channels_are_kept_in_8_bits(baked: Baked, tmp_path: Path, few: Path, factor: float) -> None:
    """As trained models have them: some channels of what each normalisation gives are that many times the rest."""
    source = tinytorch.plant_outliers(tinytorch.make_clip(tmp_path / "clip"), factor)
    manifest = baked(source, calibration=few).manifest
    for tower in ("image", "text"):
        report = manifest.parity[tower]
        assert report["kept"] in ("int8", "int8-blocks")
        assert [each["worst_cosine"] > 0.995 for each in report["candidates"]] == [True] * 3


def test_what_finds_the_ranges_proves_nothing() -> None:
    assert not set(calibration.calibration_texts()) & set(samples.SAMPLE_TEXTS)
    proving = {picture.tobytes() for picture in samples.sample_images()}
    ranges = {picture.tobytes() for picture in calibration.calibration_images()}
    assert len(proving) == len(ranges) == samples.DRAWING_COUNT + 2 * len(samples.SIZES)
    assert not proving & ranges


def test_calibration_folder(clip: Path, tmp_path: Path, few: Path, baked: Baked) -> None:
    count = len(list(few.iterdir()))
    (few / "notes.txt").write_text("not a picture")
    assert baked(clip, precision="fp32", calibration=few).manifest.parity["image"]["samples"] == count
    with pytest.raises(InvalidArgument, match=r"--calibration: .*: no readable image"):
        bake(clip, tmp_path, calibration=clip)


def test_what_cannot_be_baked(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"expected a folder with config\.json"):
        bake(tmp_path, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    with pytest.raises(InstallFailed, match=r"expected a dual encoder \(clip, .*found BertModel"):
        bake(tmp_path, tmp_path)
    with pytest.raises(InstallFailed, match="found CLIPModel"):
        bake(clip, tmp_path, task="image-classification")
    with pytest.raises(InvalidArgument, match="precision: expected one of auto, fp32, int8"):
        bake(clip, tmp_path, precision="int4")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(InstallFailed, match="transformers cannot load it"):
        bake(tmp_path, tmp_path)


def test_a_sentence_transformer_without_an_image_tower(tmp_path: Path) -> None:
    entries = [{"path": "0_Transformer"}, {"path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(InstallFailed, match="2 modules"):
        bake(tmp_path, tmp_path)
