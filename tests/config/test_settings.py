"""config/settings.py: each key's good and bad values, and what is said about the bad ones."""

from __future__ import annotations

import dataclasses
import datetime
import math
from typing import Any

import pytest

from datasette_vision.config.settings import CONFIG_KEYS, MODEL_KEYS, AutoEmbed, Config, ModelConfig, RateLimits
from datasette_vision.errors import ConfigError

WHERE = "plugins.datasette-vision"


def error(mapping: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.from_mapping(mapping)
    return str(caught.value)


def test_defaults() -> None:
    assert Config.from_mapping({}) == Config.from_mapping(None) == Config()
    assert {key: value for key, value in vars(Config()).items() if key != "models"} == {
        "models_dir": None,
        "default_model": "tiny-emoji",
        "default_classifier": None,
        "preload": (),
        "threads": None,
        "providers": None,
        "replicas": 1,
        "max_batch_size": 32,
        "max_queue": 1024,
        "unload_after": None,
        "cache_mb": 64,
        "max_image_mb": 20,
        "max_image_megapixels": 100,
        "image_memory_mb": None,
        "max_text_chars": 100_000,
        "max_labels": 1000,
        "max_request_mb": 32,
        "max_inputs": 1000,
        "rate_limit": None,
        "trusted_proxies": None,
        "allow": None,
        "allow_metrics": None,
        "shutdown_seconds": 9,
        "auto_embed": None,
    }
    assert dict(Config().models) == {}


def test_the_table_of_keys_is_the_fields() -> None:
    assert [key.name for key in CONFIG_KEYS] == [field.name for field in dataclasses.fields(Config)]
    assert [key.name for key in MODEL_KEYS] == [field.name for field in dataclasses.fields(ModelConfig)]
    for key in CONFIG_KEYS:
        assert key.meaning
        assert key.expected.startswith(("a ", "an ", "the "))


WHOLE = [True, False, "5", 5.0, 0.5, None, [], {}, math.nan]
SIZE = [0, -1, 2000.1, True, "20", None, [], math.nan, math.inf]
# key -> (good values, bad values, what is expected)
VALUES: dict[str, tuple[list[Any], list[Any], str]] = {
    "models_dir": (["/models", "~/models", "é"], ["", " ", 1, None, ["/models"], True], "a path"),
    "default_model": (["clip"], ["", "\t", 1, None, ["clip"]], "the name of a model"),
    "default_classifier": (["resnet"], ["", " ", 1, None, ["resnet"]], "the name of a model"),
    "preload": (
        [[], ["clip"], ["a", "b"]], ["clip", [""], [1], [None], {"clip": 1}, None, True], "a list of names of models"
    ),
    "threads": ([1, 2, 256], [0, 257, -1, *WHOLE], "a whole number from 1 to 256"),
    "providers": (
        [[], ["CUDAExecutionProvider", "CPUExecutionProvider"]], ["CPUExecutionProvider", [""], [1], {"a": 1}, None],
        "a list of names of execution providers",
    ),
    "replicas": ([1, 64], [0, 65, -1, *WHOLE], "a whole number from 1 to 64"),
    "max_batch_size": ([1, 4096], [0, 4097, *WHOLE], "a whole number from 1 to 4096"),
    "max_queue": ([1, 1_000_000], [0, 1_000_001, *WHOLE], "a whole number from 1 to 1000000"),
    "unload_after": (
        [0.5, 60, 1_000_000], [0, -1, 1_000_001, True, "60", None, math.nan], "a number above 0, at most 1000000"
    ),
    "cache_mb": ([0, 1_000_000], [-1, 1_000_001, *WHOLE], "a whole number from 0 to 1000000"),
    "max_image_mb": ([0.001, 1, 20.5, 2000], SIZE, "a number above 0, at most 2000"),
    "max_image_megapixels": ([0.001, 1, 2000], SIZE, "a number above 0, at most 2000"),
    "image_memory_mb": ([1, 1_000_000], [0, 1_000_001, *WHOLE], "a whole number from 1 to 1000000"),
    "max_text_chars": ([1, 10_000_000], [0, 10_000_001, *WHOLE], "a whole number from 1 to 10000000"),
    "max_labels": ([1, 100_000], [0, 100_001, *WHOLE], "a whole number from 1 to 100000"),
    "max_request_mb": ([0.001, 32, 2000], SIZE, "a number above 0, at most 2000"),
    "max_inputs": ([1, 1_000_000], [0, 1_000_001, *WHOLE], "a whole number from 1 to 1000000"),
    "rate_limit": (
        [1, 1_000_000],
        [0, 1_000_001, *(value for value in WHOLE if value != {})],
        "a whole number from 1 to 1000000, or an object of images, texts and burst_seconds",
    ),
    "trusted_proxies": (
        [1, 10, ["10.0.0.0/8"], ["127.0.0.1", "::1", "fd00::/8"], "fly"],
        [0, 11, True, None, "flyio", [], [""], ["proxy"], ["10.0.0.1/8"], "127.0.0.1", {}],
        'a whole number from 1 to 10, a list of networks, or "fly"',
    ),
    **dict.fromkeys(("allow", "allow_metrics"), (
        [True, False, {}, {"id": "root"}, {"id": ["a", "b"], "unauthenticated": True}],
        [None, "root", 1, [], ["root"], {1: 2}],
        "an allow block of Datasette: true, false or an object",
    )),
    "shutdown_seconds": ([2.5, 9, 3600], [2, 0, -1, 3601, True, "9", None, math.nan], "a number above 2, at most 3600"),
    "auto_embed": (
        [],
        [None, 1, "photos/photos", ["photos"], ["/photos"], ["photos/"], [1], [""]],
        'a list of "database/table", true (all), false, or an object of tables and interval (seconds, 2)',
    ),
    "models": ([{}], [[], "clip", None, 1, {1: {}}, {"": {}}, {None: {}}], "an object of names of models"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (False, None),
        (True, AutoEmbed()),
        ([], AutoEmbed(())),
        (["photos/photos", "a/b/c"], AutoEmbed(("photos/photos", "a/b/c"))),
        ({}, AutoEmbed()),
        ({"interval": 0.5}, AutoEmbed(None, 0.5)),
        ({"tables": True, "interval": 60}, AutoEmbed(None, 60)),
        ({"tables": ["photos/photos"]}, AutoEmbed(("photos/photos",))),
    ],
)
def test_auto_embed(value: Any, expected: AutoEmbed | None) -> None:
    assert Config.from_mapping({"auto_embed": value}).auto_embed == expected


def test_bad_values_within_auto_embed() -> None:
    where = f"{WHERE}.auto_embed"
    assert error({"auto_embed": {"table": []}}) == f'{where}: unknown key "table"; did you mean tables?'
    assert error({"auto_embed": {"interval": 0}}).startswith(f"{where}.interval: expected a number above 0")
    message = f'{where}.tables: expected a list of "database/table", or true (all), found false'
    assert error({"auto_embed": {"tables": False}}) == message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, RateLimits()),
        ({"images": 600}, RateLimits(images=600)),
        ({"images": 600, "texts": 3600, "burst_seconds": 0.5}, RateLimits(600, 3600, 0.5)),
    ],
)
def test_rate_limits_by_kind(value: Any, expected: RateLimits) -> None:
    assert Config.from_mapping({"rate_limit": value}).rate_limit == expected


def test_bad_values_within_rate_limit() -> None:
    where = f"{WHERE}.rate_limit"
    assert error({"rate_limit": {"image": 5}}) == f'{where}: unknown key "image"; did you mean images?'
    assert error({"rate_limit": {"texts": 0}}) == f"{where}.texts: expected a whole number from 1 to 1000000, found 0"
    assert error({"rate_limit": {"burst_seconds": 0}}).startswith(f"{where}.burst_seconds: expected a number above 0")


def test_every_key_is_tested() -> None:
    assert [key.name for key in CONFIG_KEYS] == list(VALUES)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (good, _, _) in VALUES.items() for value in good])
def test_good_values(key: str, value: Any) -> None:
    found = getattr(Config.from_mapping({key: value}), key)
    assert found == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [(key, value, expected) for key, (_, bad, expected) in VALUES.items() for value in bad],
)
def test_bad_values(key: str, value: Any, expected: str) -> None:
    assert error({key: value}).startswith(f"{WHERE}.{key}: expected {expected}, found ")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"threads": "4"}, f'{WHERE}.threads: expected a whole number from 1 to 256, found "4"'),
        ({"threads": None}, f"{WHERE}.threads: expected a whole number from 1 to 256, found null"),
        ({"replicas": True}, f"{WHERE}.replicas: expected a whole number from 1 to 64, found true"),
        ({"cache_mb": -1}, f"{WHERE}.cache_mb: expected a whole number from 0 to 1000000, found -1"),
        ({"preload": "x" * 70}, f'{WHERE}.preload: expected a list of names of models, found "{"x" * 59}…'),
        ({"max_image_mb": math.nan}, f"{WHERE}.max_image_mb: expected a number above 0, at most 2000, found NaN"),
        ({"models_dir": datetime.date(2025, 1, 2)}, f'{WHERE}.models_dir: expected a path, found "2025-01-02"'),
        (
            {"preload": {datetime.date(2025, 1, 2): 1}},
            f"{WHERE}.preload: expected a list of names of models, found {{datetime.date(2025, 1, 2): 1}}",
        ),
        ({"thread": 4}, f'{WHERE}: unknown key "thread"; did you mean threads?'),
        ({"default-model": "clip"}, f'{WHERE}: unknown key "default-model"; did you mean default_model?'),
        ({"max_image_megabytes": 4}, f'{WHERE}: unknown key "max_image_megabytes"; did you mean max_image_megapixels?'),
        (
            {"colour": "red"},
            f'{WHERE}: unknown key "colour"; allowed are models_dir, default_model, default_classifier, preload, '
            "threads, providers, replicas, max_batch_size, max_queue, unload_after, cache_mb, max_image_mb, "
            "max_image_megapixels, image_memory_mb, max_text_chars, max_labels, max_request_mb, max_inputs, "
            "rate_limit, trusted_proxies, allow, allow_metrics, shutdown_seconds, auto_embed, models",
        ),
        ({"models": {"clip": {"thread": 1}}}, f'{WHERE}.models.clip: unknown key "thread"; did you mean threads?'),
        (
            {"models": {"clip": {"cache_mb": 1}}},
            f'{WHERE}.models.clip: unknown key "cache_mb"; allowed are threads, providers, replicas, max_batch_size,'
            " max_queue, unload_after",
        ),
        (
            {"models": {"clip": {"threads": 0}}},
            f"{WHERE}.models.clip.threads: expected a whole number from 1 to 256, found 0",
        ),
        ({"models": {"clip": None}}, f"{WHERE}.models.clip: expected an object, found null"),
        ({"models": {"clip": 4}}, f"{WHERE}.models.clip: expected an object, found 4"),
        ({"models": ["clip"]}, f'{WHERE}.models: expected an object of names of models, found ["clip"]'),
        ({"models": {7: {}}}, f'{WHERE}.models: expected an object of names of models, found {{"7": {{}}}}'),
    ],
)  # fmt: skip
def test_messages(mapping: dict[str, Any], message: str) -> None:
    assert error(mapping) == message


@pytest.mark.parametrize(("value", "shown"), [([], "[]"), ("", '""'), (0, "0"), (False, "false"), ("clip", '"clip"')])
def test_what_is_not_an_object(value: object, shown: str) -> None:
    assert error(value) == f"{WHERE}: expected an object, found {shown}"


@pytest.mark.parametrize("key", [1, None, datetime.date(2025, 1, 2), ("a", "b")])
def test_a_key_that_is_no_string(key: object) -> None:
    assert error({key: 1}).startswith(f"{WHERE}: unknown key ")


def test_it_is_frozen() -> None:
    config = Config.from_mapping({"models": {"clip": {"threads": 2}}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.threads = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.models["other"] = ModelConfig()  # type: ignore[index]
    with pytest.raises(TypeError):
        Config().models["other"] = ModelConfig()  # type: ignore[index]


def test_what_is_given_is_not_kept() -> None:
    given = {"preload": ["clip"], "models": {"clip": {"threads": 2}}}
    config = Config.from_mapping(given)
    given["preload"].append("other")
    given["models"]["other"] = {}
    assert config.preload == ("clip",)
    assert list(config.models) == ["clip"]


def test_settings_of_one_model() -> None:
    config = Config.from_mapping(
        {"threads": 2, "max_queue": 7, "models": {"clip": {"threads": 8, "replicas": 3, "max_batch_size": 4}, "b": {}}}
    )
    assert config.for_model("clip") == ModelConfig(threads=8, replicas=3, max_batch_size=4, max_queue=7)
    for name in ("b", "unnamed"):
        assert config.for_model(name) == ModelConfig(threads=2, replicas=1, max_batch_size=32, max_queue=7)
    assert Config().for_model("x") == ModelConfig(threads=None, replicas=1, max_batch_size=32, max_queue=1024)


def test_the_models_that_are_named() -> None:
    assert Config().named_models() == ("tiny-emoji",)
    config = Config.from_mapping(
        {"default_model": "a", "preload": ["b", "a", "b"], "models": {"c": {}, "b": {}}, "default_classifier": "d"}
    )
    assert config.named_models() == ("a", "b", "c", "d")
