"""models/manifest.py: a good manifest is read as it stands, and of a bad one the file and the key are named."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from datasette_vision.errors import ModelCorrupt
from datasette_vision.images.preprocess import Preprocess, Size
from datasette_vision.models import manifest
from datasette_vision.models.manifest import (
    ImageTower,
    Label,
    Manifest,
    ModelFile,
    ModelSource,
    TextTower,
    read_manifest,
)
from datasette_vision.models.store import BUNDLED

DIGEST = "0123456789abcdef" * 4
GOOD: dict[str, Any] = {
    "format": 1,
    "name": "clip",
    "task": "dual-encoder",
    "description": "CLIP ViT-B/32",
    "source": {"location": "openai/clip-vit-base-patch32", "revision": "3d74acf9", "licence": "MIT"},
    "precision": "int8",
    "dimensions": 512,
    "logit_scale": 100,
    "logit_bias": -1.5,
    "activation": "sigmoid",
    "image": {"file": "onnx/image.onnx"},
    "text": {
        "file": "text.onnx",
        "tokenizer": "tokenizer.json",
        "context_length": 77,
        "padding": "longest",
        "pad_token_id": 49407,
    },
    "preprocess": {
        "resize": {"shortest_edge": 224},
        "resample": "bicubic",
        "crop": {"height": 224, "width": 223},
        "mean": [0.1, 0.2, 0],
        "std": [0.4, 1, 0.6],
    },
    "labels": [{"label": "x"}, {"label": "y", "prompt": "a y", "group": "g"}, {"label": "y", "group": None}],
    "canonical": {"text": "a cat"},
    "files": [
        {"path": "onnx/image.onnx", "size": 5, "sha256": DIGEST},
        {"path": "text.onnx", "size": 0, "sha256": DIGEST},
        {"path": "tokenizer.json", "size": 7, "sha256": DIGEST},
    ],
    "parity": {"worst": 0.99},
    "made_with": {"onnx": "1.23"},
}
CLASSIFIER: dict[str, Any] = {
    **{key: value for key, value in GOOD.items() if key not in {"text", "logit_scale", "logit_bias"}},
    "task": "image-classification",
    "dimensions": 3,
}


def changed(path: str, value: Any, good: dict[str, Any] = GOOD) -> dict[str, Any]:
    """A copy of a manifest with the value at a dotted path replaced, or dropped when it is `...`."""
    result = copy.deepcopy(good)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner: Any = result
    for part in parents:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return result


def read_value(folder: Path, value: Any) -> Manifest:
    (folder / "manifest.json").write_text(json.dumps(value))
    return read_manifest(folder)


def message(folder: Path, value: Any) -> str:
    """What is said about a manifest, without the path that it must begin with."""
    with pytest.raises(ModelCorrupt) as caught:
        read_value(folder, value)
    start = f"{folder / 'manifest.json'}: "
    assert str(caught.value).startswith(start)
    return str(caught.value)[len(start) :]


# Good ones


def test_a_dual_encoder(tmp_path: Path) -> None:
    found = read_value(tmp_path, GOOD)
    assert found == Manifest(
        name="clip",
        task="dual-encoder",
        description="CLIP ViT-B/32",
        source=ModelSource("openai/clip-vit-base-patch32", "3d74acf9", "MIT"),
        precision="int8",
        dimensions=512,
        logit_scale=100.0,
        logit_bias=-1.5,
        activation="sigmoid",
        image=ImageTower("onnx/image.onnx", "pixel_values", "embedding"),
        text=TextTower("text.onnx", "tokenizer.json", 77, "longest", 49407),
        preprocess=Preprocess(Size(shortest_edge=224), 224, 223, "bicubic", (0.1, 0.2, 0.0), (0.4, 1.0, 0.6)),
        labels=(Label("x", "x", None), Label("y", "a y", "g"), Label("y", "y", None)),
        files=(
            ModelFile("onnx/image.onnx", 5, DIGEST),
            ModelFile("text.onnx", 0, DIGEST),
            ModelFile("tokenizer.json", 7, DIGEST),
        ),
        canonical={"text": "a cat"},
        parity={"worst": 0.99},
        made_with={"onnx": "1.23"},
        identity=hashlib.sha256(json.dumps(GOOD).encode()).hexdigest(),
    )
    assert found.file("text.onnx").size == 0


def test_a_classifier_has_no_text_tower(tmp_path: Path) -> None:
    found = read_value(tmp_path, CLASSIFIER)
    assert found.text is None
    assert (found.logit_scale, found.logit_bias) == (1.0, 0.0)
    assert [label.label for label in found.labels] == ["x", "y", "y"]


def test_what_may_be_left_out(tmp_path: Path) -> None:
    value = copy.deepcopy(GOOD)
    for key in ("canonical", "parity", "made_with", "logit_bias"):
        del value[key]
    del value["source"]["revision"]
    found = read_value(tmp_path, value)
    assert (found.canonical, found.parity, found.made_with) == ({}, {}, {})
    assert found.logit_bias == 0.0
    assert found.source.revision is None


def test_graphs_with_names_of_their_own(tmp_path: Path) -> None:
    value = copy.deepcopy(GOOD)
    value["image"] |= {"input": "pixels", "output": "image_embeds"}
    value["text"] |= {"input_ids": "text", "attention_mask": None, "output": "text_embeds"}
    found = read_value(tmp_path, value)
    assert found.image == ImageTower("onnx/image.onnx", "pixels", "image_embeds")
    assert found.text == TextTower(
        "text.onnx", "tokenizer.json", 77, "longest", 49407, input_ids="text", attention_mask=None, output="text_embeds"
    )
    named = read_value(tmp_path, changed("text.attention_mask", "mask"))
    assert named.text is not None
    assert named.text.attention_mask == "mask"
    assert read_value(tmp_path, CLASSIFIER).image.output == "logits"
    assert read_value(tmp_path, changed("image.output", "scores", CLASSIFIER)).image.output == "scores"


def test_a_fixed_size(tmp_path: Path) -> None:
    found = read_value(tmp_path, changed("preprocess.resize", {"height": 384, "width": 380}))
    assert found.preprocess.resize == Size(height=384, width=380)


def test_identity_changes_with_every_byte(tmp_path: Path) -> None:
    first = read_value(tmp_path, GOOD).identity
    assert read_value(tmp_path, GOOD).identity == first
    assert read_value(tmp_path, changed("parity.worst", 0.98)).identity != first


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in BUNDLED.glob("*/manifest.json")), ids=lambda p: p.name
)
def test_the_bundled_one(folder: Path) -> None:
    found = read_manifest(folder)
    assert found.name == folder.name
    assert {file.path for file in found.files} <= {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    }


# Bad ones: (path, key as it is named, values that are refused, what is expected instead)

TEXT = "a string that is not empty"
NUMBERS = "three numbers in range, one per channel"
FLAWS: list[tuple[str, str, list[Any], str]] = [
    ("name", "name", [..., None, 1, "", "Clip", "../x", "a/b", ".x", "-x", "é", "x" * 65, "x\n", "x y"],
     "a name of lower-case letters, digits, '.', '_' and '-'"),
    ("task", "task", [..., None, 1, "", "captioning", ["dual-encoder"]],
     "one of dual-encoder, image-classification"),
    ("description", "description", [..., None, 1, "", []], TEXT),
    ("source.location", "source: location", [..., None, 1, ""], TEXT),
    ("source.revision", "source: revision", [1, "", [], True], TEXT),
    ("source.licence", "source: licence", [..., None, 1, ""], TEXT),
    ("precision", "precision", [..., None, 8, ""], TEXT),
    ("dimensions", "dimensions", [..., None, 0, -1, True, "512", 512.0, [], 10**6 + 1, 10**30],
     "a whole number from 1 to 1000000"),
    ("logit_scale", "logit_scale", [..., None, "100", True, [], float("nan"), float("inf"), 1e9, -1e9, 10**400],
     "a number"),
    ("logit_bias", "logit_bias", ["0", True, [], float("nan"), float("-inf"), 1e9], "a number"),
    ("activation", "activation", [..., None, 1, "", "relu"], "one of softmax, sigmoid"),
    ("image.file", "image: file", [..., None, 1], "a relative path"),
    ("image.input", "image: input", [None, 1, "", []], TEXT),
    ("image.output", "image: output", [None, 1, "", []], TEXT),
    ("text.input_ids", "text: input_ids", [None, 1, "", []], TEXT),
    ("text.attention_mask", "text: attention_mask", [1, "", [], False], TEXT),
    ("text.output", "text: output", [None, 1, "", []], TEXT),
    ("text.file", "text: file", [..., None, 1], "a relative path"),
    ("text.tokenizer", "text: tokenizer", [..., None, 1], "a relative path"),
    ("text.context_length", "text: context_length", [..., None, 1, 0, -5, 77.0, "77", True, 100_001, 10**30],
     "a whole number from 2 to 100000"),
    ("text.padding", "text: padding", [..., None, "", "left", True], "one of longest, max_length"),
    ("text.pad_token_id", "text: pad_token_id", [..., None, -1, 1.0, "0", True, 10**7 + 1, 10**30],
     "a whole number from 0 to 10000000"),
    ("preprocess.resize.shortest_edge", "preprocess: resize: shortest_edge",
     [None, 0, -1, 1.5, "224", True, 10_001], "a whole number from 1 to 10000"),
    ("preprocess.resize", "preprocess: resize: height",
     [{"height": value, "width": 5} for value in (None, 0, 5.0, "5", True, 10_001)] + [{}, {"width": 5}],
     "a whole number from 1 to 10000"),
    ("preprocess.resize", "preprocess: resize: width",
     [{"height": 5, "width": value} for value in (None, 0, 5.0, "5", True, 10_001)] + [{"height": 5}],
     "a whole number from 1 to 10000"),
    ("preprocess.resample", "preprocess: resample", [..., None, 3, "", "cubic"],
     "one of nearest, bilinear, bicubic, lanczos"),
    ("preprocess.crop.height", "preprocess: crop: height", [..., None, 0, 2.0, "2", True, 10_001],
     "a whole number from 1 to 10000"),
    ("preprocess.crop.width", "preprocess: crop: width", [..., None, 0, 2.0, "2", True, 10_001],
     "a whole number from 1 to 10000"),
    ("preprocess.mean", "preprocess: mean",
     [..., None, 0.5, [], [0.5] * 2, [0.5] * 4, [0.5, 0.5, "0"], [0, 0, None], [0, 0, True], [0, 0, 10.1],
      [0, 0, float("nan")], [0, 0, float("-inf")]], NUMBERS),
    ("preprocess.std", "preprocess: std",
     [..., None, 0.5, [0.5] * 2, [0.5] * 4, [1, 1, "1"], [1, 1, True], [1, 1, 0], [1, -1, 1], [1, 1, 10.1],
      [1, 1, float("nan")], [1, 1, float("inf")]], NUMBERS),
    ("labels", "labels", [..., None, {}, "x", 1], "an array"),
    ("labels.1.label", "labels[1]: label", [..., None, 1, ""], TEXT),
    ("labels.1.prompt", "labels[1]: prompt", [1, "", [], True], TEXT),
    ("labels.1.group", "labels[1]: group", [1, "", [], True], TEXT),
    ("canonical", "canonical", [None, [], "x", 1], "an object"),
    ("parity", "parity", [None, [], "x", 1], "an object"),
    ("made_with", "made_with", [None, [], "x", 1], "an object"),
    ("files", "files", [..., None, {}, "x"], "an array"),
    ("files.2.path", "files[2]: path", [..., None, 1], "a relative path"),
    ("files.2.size", "files[2]: size", [..., None, -1, 1.0, "1", True, 10**30],
     "a whole number from 0 to 1099511627776"),
    ("files.2.sha256", "files[2]: sha256", [..., None, 1, "", DIGEST[1:], DIGEST + "0", DIGEST.upper(), DIGEST + "\n"],
     "64 hexadecimal digits"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "key", "value", "expected"),
    [(path, key, value, expected) for path, key, values, expected in FLAWS for value in values],
)
def test_a_bad_value_is_named(tmp_path: Path, path: str, key: str, value: Any, expected: str) -> None:
    found = message(tmp_path, changed(path, value))
    assert found.startswith(f"{key}: expected {expected}, found ")
    assert len(found) <= len(f"{key}: expected {expected}, found ") + 60


def test_the_message_to_the_letter(tmp_path: Path) -> None:
    assert message(tmp_path, changed("dimensions", "x" * 100)) == (
        f'dimensions: expected a whole number from 1 to 1000000, found "{"x" * 59}'
    )
    assert message(tmp_path, changed("precision", ...)) == "precision: expected a string that is not empty, found null"


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("source", "source"),
        ("image", "image"),
        ("text", "text"),
        ("preprocess", "preprocess"),
        ("preprocess.resize", "preprocess: resize"),
        ("preprocess.crop", "preprocess: crop"),
        ("labels.1", "labels[1]"),
        ("files.0", "files[0]"),
    ],
)
@pytest.mark.parametrize("value", [None, [], "x", 1, True])
def test_what_must_be_an_object(tmp_path: Path, path: str, named: str, value: Any) -> None:
    assert message(tmp_path, changed(path, value)) == f"{named}: expected an object"


def test_every_key_is_tested() -> None:
    """A key added to the manifest needs a line in FLAWS."""
    tested = {path for path, *_ in FLAWS} | {"format", "source", "image", "text", "preprocess"}
    assert set(GOOD) <= tested
    for key in ("source", "image", "text", "preprocess"):
        assert {f"{key}.{inner}" for inner in GOOD[key]} <= tested | {"preprocess.crop"}


OUTSIDE = [
    "", ".", "./", "..", "../x", "a/../../x", "a/..", "/etc/passwd", "//x", "..\\x", "a\\b", "\\x", "C:x", "C:/x",
    "a\0b", "a\nb", "\ud800", "\x7f",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE, ids=ascii)
@pytest.mark.parametrize("key", ["image.file", "text.file", "text.tokenizer", "files.1.path"])
def test_a_path_that_leads_outside_is_refused(tmp_path: Path, path: str, key: str) -> None:
    found = message(tmp_path, changed(key, path))
    named = key.replace("files.1.", "files[1]: ").replace(".", ": ")
    assert found == f"{named}: expected a relative path, found {json.dumps(path)}"


@pytest.mark.parametrize("found", [..., None, 0, 2, "1", True, 1.5, [1], "x" * 100])
def test_another_format(tmp_path: Path, found: Any) -> None:
    shown = "null" if found is ... else json.dumps(found)[:60]
    assert message(tmp_path, changed("format", found)) == (
        f"format: expected 1, found {shown}: another version of datasette-vision made it"
    )


def test_another_format_is_said_before_all_else(tmp_path: Path) -> None:
    assert message(tmp_path, {"format": 2}).startswith("format: expected 1, found 2")


@pytest.mark.parametrize("path", ["onnx/image.onnx", "text.onnx", "tokenizer.json"])
def test_a_file_that_is_used_but_not_listed(tmp_path: Path, path: str) -> None:
    files = [file for file in GOOD["files"] if file["path"] != path]
    assert message(tmp_path, changed("files", files)) == f"files: expected {path} among them"


def test_a_file_that_is_listed_twice(tmp_path: Path) -> None:
    files = [*GOOD["files"], {**GOOD["files"][0], "size": 6}]
    assert message(tmp_path, changed("files", files)) == "files: expected each path once"


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_classifier_has_a_label_for_each_output(tmp_path: Path, count: int) -> None:
    labels = [{"label": str(number)} for number in range(count)]
    assert message(tmp_path, changed("labels", labels, CLASSIFIER)) == f"labels: expected 3, found {count}"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"PK\x03\x04", b"[" * 100_000, b'{"format": 1' + b"0" * 5000 + b"}"],
    ids=ascii,
)
def test_what_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ModelCorrupt) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'manifest.json'}: expected JSON, found something else"


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_json_that_is_not_an_object(tmp_path: Path, value: Any) -> None:
    assert message(tmp_path, value) == "expected an object"


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'manifest.json'}: cannot be read: No such file or directory"
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ModelCorrupt) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'manifest.json'}: cannot be read: Is a directory"


@pytest.mark.parametrize("name", ["clip", "a", "0", "clip-vit-b32_int8.v1", "x" * 64])
def test_names(name: str) -> None:
    assert manifest.NAME_PATTERN.fullmatch(name)
