"""Labels, manifests, and what else of a model is written by others."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example
from hypothesis import strategies as st

from datasette_vision.errors import InstallFailed, InvalidArgument, InvalidLabels, ModelCorrupt
from datasette_vision.install import labels as model_labels
from datasette_vision.install import preprocessors
from datasette_vision.models import manifest
from datasette_vision.vectors.zero_shot import parse_labels, scores, top_k
from tests.fuzz import strategies as own
from tests.fuzz.properties import assert_linear, fuzz
from tests.models.test_manifest import CLASSIFIER, GOOD

entries = st.lists(
    own.texts | st.fixed_dictionaries({"label": own.texts, "prompt": own.texts}) | own.json_values, max_size=5
)
label_objects = own.objects(
    labels=entries,
    template=st.sampled_from(["{}", "a {}", "{} {}", "{0}", "{}{", ""]),
    multi_label=st.booleans(),
    temperature=own.FLOATS | own.INTEGERS,
)


@fuzz(own.json_texts(entries | label_objects), weight=2)
@example('["' + "9" * 5000 + '"]')
@example('{"labels": ["a"], "temperature": ' + "9" * 400 + "}")
def test_labels(text: str) -> None:
    try:
        labels = parse_labels(text, 5)
    except InvalidLabels as reason:
        assert 10 < len(str(reason)) < 300
        return
    assert 1 <= len(labels.labels) <= 5
    assert len(labels.labels) == len(set(labels.labels)) == len(labels.prompts)
    assert all(label.strip() for label in (*labels.labels, *labels.prompts))
    # However they are written, they are the same; and what they give can be written.
    objects = [{"label": label, "prompt": prompt} for label, prompt in zip(labels.labels, labels.prompts, strict=True)]
    whole = {"labels": objects, "multi_label": labels.multi_label, "temperature": labels.temperature}
    for indent in (None, 2):
        assert parse_labels(json.dumps(whole, indent=indent)) == labels
    import numpy as np

    values = scores(
        np.linspace(-1, 1, len(labels.labels)),
        logit_scale=100.0,
        temperature=labels.temperature,
        multi_label=labels.multi_label,
    )
    assert ((values >= 0) & (values <= 1)).all()
    best = top_k(labels.labels, values, 3)
    json.dumps(best, allow_nan=False, ensure_ascii=False).encode()
    assert [each["score"] for each in best] == sorted((each["score"] for each in best), reverse=True)


@fuzz(st.lists(own.plain_texts.filter(str.strip), min_size=1, max_size=5, unique=True))
def test_good_labels_are_taken(labels: list[str]) -> None:
    found = parse_labels(json.dumps(labels))
    assert found.labels == found.prompts == tuple(labels)


@fuzz(
    st.sampled_from(["", "[", '["', '["a', '{"labels":[', '{"']),
    own.units,
    st.sampled_from(["", "]", '"]', "}"]),
    weight=0.5,
)
def test_reading_labels_takes_time_in_proportion(prefix: str, repeated: str, suffix: str) -> None:
    def work(count: int) -> None:
        with contextlib.suppress(InvalidLabels):
            parse_labels(prefix + repeated * count + suffix)

    assert_linear(work, 20_000 // len(repeated))


# Manifests


def check_manifest(value: Any) -> None:
    try:
        found = manifest.parse_manifest(value, "manifest.json")
    except ModelCorrupt as reason:
        assert str(reason).startswith("manifest.json: ")
        assert len(str(reason)) < 300
        return
    assert manifest.NAME_PATTERN.fullmatch(found.name)
    assert manifest.parse_manifest(json.loads(json.dumps(value)), "manifest.json") == found
    for file in found.files:
        assert (Path("/models/x") / file.path).resolve().is_relative_to("/models/x")
    found.preprocess  # noqa: B018


@pytest.mark.parametrize("good", [GOOD, CLASSIFIER], ids=["dual-encoder", "classifier"])
@fuzz(st.data(), weight=2)
def test_changed_manifests(good: dict[str, Any], data: st.DataObject) -> None:
    check_manifest(data.draw(own.changed(lambda: good)))


@fuzz(own.json_texts(own.json_values))
def test_manifests_of_any_json(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "manifest"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelCorrupt) as caught:
        manifest.read_manifest(folder)
    assert len(str(caught.value)) < len(str(folder)) + 300


@pytest.mark.parametrize("key", ["format", "name", "dimensions", "description", "labels"])
@fuzz(own.depths)
def test_deep_manifests(tmp_path_factory: pytest.TempPathFactory, key: str, depth: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "deep"
    folder.mkdir(exist_ok=True)
    text = json.dumps({**GOOD, key: "HERE"}).replace('"HERE"', own.nested(depth))
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ModelCorrupt):
        manifest.read_manifest(folder)


# What others write of their models

SIZES = (
    st.integers(0, 500)
    | own.objects(height=own.INTEGERS, width=own.INTEGERS, shortest_edge=own.INTEGERS)
    | st.lists(own.INTEGERS, max_size=3)
)
CONFIGS = own.objects(
    image_processor_type=st.sampled_from(
        ["CLIPImageProcessor", "ConvNextImageProcessor", "LevitImageProcessor", "ViT"]
    ),
    do_rescale=st.booleans(),
    rescale_factor=own.FLOATS,
    resample=own.INTEGERS,
    do_normalize=st.booleans(),
    image_mean=st.lists(own.FLOATS, max_size=4),
    image_std=st.lists(own.FLOATS, max_size=4),
    size=SIZES,
    crop_size=SIZES,
    crop_pct=own.FLOATS,
    do_center_crop=st.booleans(),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    resize_mode=st.sampled_from(["squash", "shortest", "longest"]),
    mean=st.lists(own.FLOATS, max_size=4),
    std=st.lists(own.FLOATS, max_size=4),
)


@fuzz(CONFIGS, weight=2)
def test_preprocessing_as_others_write_it(config: dict[str, Any]) -> None:
    try:
        spec = preprocessors.from_config(config, "preprocessor_config.json")
    except InstallFailed as reason:
        assert str(reason).startswith("preprocessor_config.json: ")
        assert len(str(reason)) < 300
        return
    check_manifest({**GOOD, "preprocess": spec})


@fuzz(own.json_texts(st.lists(own.texts, max_size=4) | st.dictionaries(st.integers(-1, 4).map(str), own.texts)))
@example("[" * 100_000)
def test_label_files(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "labels.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        found = model_labels.read_labels(path)
    except InvalidArgument as reason:
        assert str(reason).startswith("--labels: ")
    else:
        assert all(isinstance(label, str) and label for label in found)


@fuzz(own.objects(id2label=st.dictionaries(st.integers(-1, 4).map(str), own.json_values)))
@example({"id2label": ["cat", "dog"]})
def test_labels_of_a_configuration(config: dict[str, Any]) -> None:
    assert all(isinstance(label, str) for label in model_labels.labels_of(config))


@fuzz(own.json_texts(CONFIGS))
@example("[" * 100_000)
def test_preprocessing_files(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "preprocess.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        preprocessors.from_file(path)
    except (InvalidArgument, InstallFailed) as reason:
        assert len(str(reason)) < len(str(path)) + 300
