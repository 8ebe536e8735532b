"""vectors/zero_shot.py: labels as people write them, and scores at the edges of what floats hold."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from datasette_vision.errors import InvalidLabels
from datasette_vision.vectors import zero_shot
from datasette_vision.vectors.zero_shot import LabelSet, parse_labels, scores, sigmoid, softmax, top_k

# Labels


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["cat", "dog"]', LabelSet(("cat", "dog"), ("cat", "dog"))),
        (' [ "cat" ] ', LabelSet(("cat",), ("cat",))),
        ('["Cat", "cat", " cat"]', LabelSet(("Cat", "cat", " cat"), ("Cat", "cat", " cat"))),
        ('["\\ud83d\\ude00"]', LabelSet(("😀",), ("😀",))),
        ('[{"label": "c", "prompt": "a cat"}, "dog"]', LabelSet(("c", "dog"), ("a cat", "dog"))),
        ('[{"label": "a", "prompt": "x"}, {"label": "b", "prompt": "x"}]', LabelSet(("a", "b"), ("x", "x"))),
        ('{"labels": ["cat"]}', LabelSet(("cat",), ("cat",))),
        ('{"labels": ["cat"], "template": "a photo of a {}."}', LabelSet(("cat",), ("a photo of a cat.",))),
        ('{"labels": ["{}", "a{b"], "template": "<{}>"}', LabelSet(("{}", "a{b"), ("<{}>", "<a{b>"))),
        (
            '{"labels": [{"label": "c", "prompt": "p"}, "dog"], "template": "a {}"}',
            LabelSet(("c", "dog"), ("p", "a dog")),
        ),
        ('{"labels": ["cat"], "multi_label": true}', LabelSet(("cat",), ("cat",), multi_label=True)),
        ('{"labels": ["cat"], "temperature": 2}', LabelSet(("cat",), ("cat",), temperature=2.0)),
        ('{"labels": ["cat"], "temperature": 1000}', LabelSet(("cat",), ("cat",), temperature=1000.0)),
        ('{"labels": ["cat"], "temperature": 0.001}', LabelSet(("cat",), ("cat",), temperature=0.001)),
    ],
)
def test_labels(text: str, expected: LabelSet) -> None:
    assert parse_labels(text) == expected


NEITHER = 'labels: expected each to be a string or {"label": …, "prompt": …}, number %d is neither'
TEMPLATE = 'labels: expected a template that contains {} once, such as "a photo of a {}"'
TEMPERATURE = "labels: expected temperature to be a number from 0.001 to 1000"
NOT_JSON = 'expected labels as a JSON array such as ["cat", "dog"], found '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", NOT_JSON + "''"),
        ("cat, dog", NOT_JSON + "'cat, dog'"),
        ("x" * 41, NOT_JSON + f"'{'x' * 40}'… (41 characters)"),
        ("[" * 100_000, NOT_JSON + f"'{'[' * 40}'… (100000 characters)"),
        ("\ud800", NOT_JSON + "'\\ud800'"),
        ('"cat"', "labels: expected a JSON array, found something else"),
        ("null", "labels: expected a JSON array, found something else"),
        ("1", "labels: expected a JSON array, found something else"),
        ("[]", "labels: expected at least one label, found an empty array"),
        ('["cat", 1]', NEITHER % 2),
        ("[null]", NEITHER % 1),
        ('[["cat"]]', NEITHER % 1),
        ('["a", "b", {"label": "c"}]', NEITHER % 3),
        ('[{"label": "c", "prompt": 1}]', NEITHER % 1),
        ('[{"label": null, "prompt": "x"}]', NEITHER % 1),
        ('[{"label": "c", "prompt": "x", "group": "y"}]', NEITHER % 1),
        ('["cat", ""]', "labels: number 2 is empty"),
        ('[" \\n"]', "labels: number 1 is empty"),
        ('[{"label": "c", "prompt": " "}]', "labels: number 1 is empty"),
        ('["cat", "\\ud800"]', "labels: number 2 contains a lone surrogate"),
        ('["cat", "dog", "cat"]', "labels: 'cat' occurs twice"),
        (f'["{"x" * 50}", "{"x" * 50}"]', f"labels: '{'x' * 40}'… (50 characters) occurs twice"),
        ("{}", 'labels: expected the key "labels" in the object, found none'),
        ('{"template": "a {}"}', 'labels: expected the key "labels" in the object, found none'),
        ('{"labels": {}}', "labels: expected a JSON array, found something else"),
        ('{"labels": null}', "labels: expected a JSON array, found something else"),
        ('{"labels": []}', "labels: expected at least one label, found an empty array"),
        (
            '{"labels": ["a"], "multilabel": true}',
            "labels: unknown key 'multilabel'; allowed are labels, template, multi_label, temperature",
        ),
        ('{"labels": ["a"], "template": "a photo"}', TEMPLATE),
        ('{"labels": ["a"], "template": "{} {}"}', TEMPLATE),
        ('{"labels": ["a"], "template": ""}', TEMPLATE),
        ('{"labels": ["a"], "template": null}', TEMPLATE),
        ('{"labels": ["a"], "template": ["{}"]}', TEMPLATE),
        ('{"labels": ["a"], "multi_label": 1}', "labels: expected multi_label to be true or false"),
        ('{"labels": ["a"], "multi_label": null}', "labels: expected multi_label to be true or false"),
        ('{"labels": ["a"], "temperature": 0}', TEMPERATURE),
        ('{"labels": ["a"], "temperature": 0.0009}', TEMPERATURE),
        ('{"labels": ["a"], "temperature": 1e-310}', TEMPERATURE),
        ('{"labels": ["a"], "temperature": -1}', TEMPERATURE),
        ('{"labels": ["a"], "temperature": 1000.1}', TEMPERATURE),
        ('{"labels": ["a"], "temperature": NaN}', TEMPERATURE),
        ('{"labels": ["a"], "temperature": Infinity}', TEMPERATURE),
        ('{"labels": ["a"], "temperature": true}', TEMPERATURE),
        ('{"labels": ["a"], "temperature": "1"}', TEMPERATURE),
        ('{"labels": ["a"], "temperature": null}', TEMPERATURE),
    ],
)
def test_labels_that_are_malformed(text: str, message: str) -> None:
    with pytest.raises(InvalidLabels) as caught:
        parse_labels(text)
    assert str(caught.value) == message


def test_number_of_labels() -> None:
    labels = [str(number) for number in range(1001)]
    assert len(parse_labels(json.dumps(labels[1:])).labels) == 1000
    with pytest.raises(InvalidLabels) as caught:
        parse_labels(json.dumps(labels))
    assert str(caught.value) == "labels: expected at most 1,000 labels (max_labels), found 1,001"
    assert len(parse_labels(json.dumps(labels), max_labels=1001).labels) == 1001


def test_length_of_labels() -> None:
    longest = '["' + "x" * (zero_shot.MAX_LABELS_CHARS - 4) + '"]'
    assert len(parse_labels(longest).labels[0]) == 1_999_996
    with pytest.raises(InvalidLabels) as caught:
        parse_labels(longest + " ")
    assert str(caught.value) == "expected at most 2,000,000 characters of labels, found 2,000,001"


# Scores


def test_softmax_known_values() -> None:
    np.testing.assert_allclose(softmax(np.log([1.0, 2.0, 5.0])), [0.125, 0.25, 0.625], atol=1e-15)
    np.testing.assert_array_equal(softmax(np.array([7.0])), [1.0])
    np.testing.assert_allclose(softmax(np.log([[1.0, 3.0], [1.0, 1.0]])), [[0.25, 0.75], [0.5, 0.5]], atol=1e-15)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1e30, -1e30, 0], [1, 0, 0]),
        ([-1e300, -1e300], [0.5, 0.5]),
        ([1000, 1000, 0], [0.5, 0.5, 0]),
        ([-math.inf, 0], [0, 1]),
    ],
)
def test_softmax_extremes(logits: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(softmax(np.array(logits)), expected)


def test_softmax_of_float32_is_float64() -> None:
    found = softmax(np.array([3e38, -3e38], dtype=np.float32))
    assert found.dtype == np.float64
    assert found.tolist() == [1.0, 0.0]


def test_sigmoid_known_values_and_extremes() -> None:
    np.testing.assert_allclose(sigmoid(np.array([0, math.log(3), -math.log(3)])), [0.5, 0.75, 0.25], atol=1e-15)
    extremes = np.array([-math.inf, -1e308, -1000, 1000, 1e308, math.inf])
    np.testing.assert_array_equal(sigmoid(extremes), [0, 0, 0, 1, 1, 1])
    assert sigmoid(np.array([-700.0]))[0] == pytest.approx(math.exp(-700), rel=1e-12, abs=0)


def test_scores_are_those_of_clip() -> None:
    similarities = np.array([0.30, 0.25, 0.10], dtype=np.float32)
    exponentials = [math.exp(100 * 0.30), math.exp(100 * 0.25), math.exp(100 * 0.10)]
    expected = [value / sum(exponentials) for value in exponentials]
    found = scores(similarities, logit_scale=100)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.sum() == pytest.approx(1, abs=1e-15)


def test_scores_are_those_of_siglip() -> None:
    found = scores(np.array([0.12, 0.10]), logit_scale=110.0, logit_bias=-12.9, multi_label=True)
    expected = [1 / (1 + math.exp(-(110 * 0.12 - 12.9))), 1 / (1 + math.exp(-(110 * 0.10 - 12.9)))]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_temperature_divides_the_logits() -> None:
    similarities = np.array([0.3, 0.1])
    np.testing.assert_allclose(
        scores(similarities, logit_scale=10, temperature=4), scores(similarities, logit_scale=2.5), rtol=1e-12
    )
    np.testing.assert_allclose(
        scores(similarities, logit_scale=10, logit_bias=-2, temperature=2, multi_label=True),
        sigmoid(np.array([0.5, -0.5])),
        rtol=1e-12,
    )


def test_the_smallest_temperature_decides_and_gives_no_nan() -> None:
    similarities = np.array([0.3, -0.2, 0.3, 0.0])
    assert scores(similarities, logit_scale=1e9, temperature=0.001).tolist() == [0.5, 0, 0.5, 0]
    each = scores(similarities, logit_scale=1e9, temperature=0.001, multi_label=True)
    assert each.tolist() == [1, 0, 1, 0.5]


# The best


def test_top_k() -> None:
    labels = ("a", "b", "c", "d")
    values = np.array([0.1, 0.4, 0.1, 0.4])
    everything = [
        {"label": "b", "score": 0.4},
        {"label": "d", "score": 0.4},
        {"label": "a", "score": 0.1},
        {"label": "c", "score": 0.1},
    ]
    assert top_k(labels, values) == everything
    for k in range(5):
        assert top_k(labels, values, k) == everything[:k]
    assert top_k(labels, values, 10**18) == everything


def test_ties_keep_the_order_of_many_labels() -> None:
    labels = tuple(map(str, range(1000)))
    values = np.tile([0.5, 1.0], 500)
    found = [entry["label"] for entry in top_k(labels, values)]
    assert found == [*labels[1::2], *labels[0::2]]


def test_scores_have_six_digits_and_are_json() -> None:
    found = top_k(("a", "b", "c"), np.array([2 / 3, 1.23456789e-20, 0.0]))
    assert json.dumps(found) == (
        '[{"label": "a", "score": 0.666667}, {"label": "b", "score": 1.23457e-20}, {"label": "c", "score": 0.0}]'
    )


def test_a_long_template_is_refused_before_it_is_repeated() -> None:
    template = "{}" + "x" * 1_000_000
    with pytest.raises(InvalidLabels, match=r"of at most 20,000 characters for 1,000 labels, found one of 1,000,002$"):
        parse_labels(json.dumps({"labels": [f"label {n}" for n in range(1000)], "template": template}))
    assert len(parse_labels(json.dumps({"labels": ["cat", "dog"], "template": template})).prompts[1]) == 1_000_003
