"""The plugin's configuration: takes a mapping, returns a frozen and checked object.

Imports nothing heavy, because it runs when Datasette starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from datasette_vision.config import values
from datasette_vision.config.values import Allow, Proxies
from datasette_vision.errors import ConfigError

BUNDLED_MODEL = "tiny-emoji"


@dataclass(frozen=True)
class ModelConfig:
    """The settings for one model. They override the general ones."""

    threads: int | None = None
    providers: tuple[str, ...] | None = None
    replicas: int | None = None
    max_batch_size: int | None = None
    max_queue: int | None = None
    unload_after: float | None = None


@dataclass(frozen=True)
class AutoEmbed:
    """Which tables to keep in sync with their embeddings, as "database/table" (None: all), and how often to check."""

    tables: tuple[str, ...] | None = None
    interval: float = 2


@dataclass(frozen=True)
class RateLimits:
    """Images and texts per minute for each client (None: unlimited), and for how many seconds a client can save them
    up.
    """

    images: int | None = None
    texts: int | None = None
    burst_seconds: float = 60


@dataclass(frozen=True)
class Config:
    """The whole configuration. Every field has a working default."""

    models_dir: str | None = None
    default_model: str = BUNDLED_MODEL
    default_classifier: str | None = None
    preload: tuple[str, ...] = ()
    threads: int | None = None
    providers: tuple[str, ...] | None = None
    replicas: int = 1
    max_batch_size: int = 32
    max_queue: int = 1024
    unload_after: float | None = None
    cache_mb: int = 64
    max_image_mb: float = 20
    max_image_megapixels: float = 100
    image_memory_mb: int | None = None
    max_text_chars: int = 100_000
    max_labels: int = 1000
    max_request_mb: float = 32
    max_inputs: int = 1000
    rate_limit: int | RateLimits | None = None
    trusted_proxies: Proxies | None = None
    allow: Allow | None = None
    allow_metrics: Allow | None = None
    shutdown_seconds: float = 9
    auto_embed: AutoEmbed | None = None
    models: Mapping[str, ModelConfig] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def from_mapping(cls, mapping: object) -> Config:
        """Read the configuration under plugins.datasette-vision.

        None, for a plugin without configuration, gives the defaults. Raises ConfigError for an unknown key or a bad
        value, naming the key and the allowed values.
        """
        return cls(**_read({} if mapping is None else mapping, CONFIG_KEYS, ""))

    def named_models(self) -> tuple[str, ...]:
        """Return the models that the configuration names. The server does not start if one is missing."""
        chosen = [self.default_model, *self.preload, *self.models]
        if self.default_classifier is not None:
            chosen.append(self.default_classifier)
        return tuple(dict.fromkeys(chosen))

    def for_model(self, name: str) -> ModelConfig:
        """Return the settings for a model: its own, or else the general ones."""
        own = self.models.get(name, ModelConfig())
        given = {key: value for key, value in dataclasses.asdict(own).items() if value is not None}
        common = ModelConfig(**{key.name: getattr(self, key.name) for key in MODEL_KEYS})
        return dataclasses.replace(common, **given)


@dataclass(frozen=True)
class ConfigKey:
    """One configuration key: what it means, and how its value is read."""

    name: str
    meaning: str
    expected: str
    read: Callable[[Any], Any]


def _tables(value: Any) -> tuple[str, ...] | None:
    if value is True:
        return None
    names = values.names(value)
    if not all(database and table for database, _, table in (name.partition("/") for name in names)):
        raise ValueError
    return names


def _auto_embed(value: Any) -> AutoEmbed | None:
    if value is False:
        return None
    if not isinstance(value, Mapping):
        return AutoEmbed(_tables(value))
    return AutoEmbed(**_read(value, AUTO_EMBED_KEYS, "auto_embed."))


def _rate_limit(value: Any) -> int | RateLimits:
    if not isinstance(value, Mapping):
        return PER_MINUTE.read(value)
    return RateLimits(**_read(value, RATE_LIMIT_KEYS, "rate_limit."))


def _models(value: Any) -> Mapping[str, ModelConfig]:
    if not isinstance(value, Mapping):
        raise ValueError
    return MappingProxyType(
        {values.name(name): ModelConfig(**_read(own, MODEL_KEYS, f"models.{name}.")) for name, own in value.items()}
    )


MODEL_NAME = values.Reader("the name of a model", values.name)
MODEL_NAMES = values.Reader("a list of names of models", values.names)
ALLOW_BLOCK = values.Reader("an allow block of Datasette: true, false or an object", values.allow)
PER_MINUTE = values.whole(1, 1_000_000)
TABLES = 'a list of "database/table"'
AUTO_EMBED_KEYS = (
    ConfigKey("tables", "the tables", f"{TABLES}, or true (all)", _tables),
    ConfigKey("interval", "seconds between checks", *values.positive(86_400)),
)
RATE_LIMIT_KEYS = (
    ConfigKey("images", "images a minute", *PER_MINUTE),
    ConfigKey("texts", "texts, labels and embeddings a minute", *PER_MINUTE),
    ConfigKey("burst_seconds", "seconds for which an idle client saves up inputs", *values.positive(86_400)),
)
MODEL_KEYS = (
    ConfigKey("threads", "cores that one inference uses; all of them by default", *values.whole(1, 256)),
    ConfigKey(
        "providers",
        "execution providers of ONNX Runtime, best first, such as CUDAExecutionProvider; the CPU by default",
        "a list of names of execution providers",
        values.names,
    ),
    ConfigKey("replicas", "batches that a model computes at the same time", *values.whole(1, 64)),
    ConfigKey("max_batch_size", "maximum number of inputs per batch", *values.whole(1, 4096)),
    ConfigKey("max_queue", "inputs that may wait for a model; more are refused", *values.whole(1, 1_000_000)),
    ConfigKey(
        "unload_after",
        "seconds without use after which a model is unloaded, until it is needed again; never by default",
        *values.positive(1_000_000),
    ),
)
CONFIG_KEYS = (
    ConfigKey(
        "models_dir",
        "folder of installed models; by default DATASETTE_VISION_MODELS, otherwise the user's cache directory",
        "a path",
        values.name,
    ),
    ConfigKey("default_model", "model to use if a function names none", *MODEL_NAME),
    ConfigKey(
        "default_classifier",
        "model for vision_classify() if none is named; by default default_model",
        *MODEL_NAME,
    ),
    ConfigKey("preload", "models to load in the background at start", *MODEL_NAMES),
    *MODEL_KEYS,
    ConfigKey("cache_mb", "memory for the cache of embeddings", *values.whole(0, 1_000_000)),
    ConfigKey("max_image_mb", "maximum size of an image file, in MB", *values.positive(2000)),
    ConfigKey(
        "max_image_megapixels",
        "maximum pixels of an image, in millions; a baseline JPEG, which is decoded at reduced size, may have"
        " 4 times as many",
        *values.positive(2000),
    ),
    ConfigKey(
        "image_memory_mb",
        "memory for decoding images, in MB; by default a third of the memory that the process may use, according to"
        " the container or the machine. An image that needs more is refused: at its peak, one of 12 megapixels"
        " takes 52 MB as PNG, 147 as WebP, 160 as AVIF, and hardly any as JPEG",
        *values.whole(1, 1_000_000),
    ),
    ConfigKey("max_text_chars", "maximum number of characters of a text", *values.whole(1, 10_000_000)),
    ConfigKey(
        "max_labels",
        "maximum number of labels of a zero-shot classification; each is embedded when it is first used",
        *values.whole(1, 100_000),
    ),
    ConfigKey("max_request_mb", "maximum size of an HTTP request, in MB", *values.positive(2000)),
    ConfigKey("max_inputs", "maximum number of inputs of an HTTP request", *values.whole(1, 1_000_000)),
    ConfigKey(
        "rate_limit",
        "inputs per minute over HTTP, including SQL, for each actor, or each address without one; as an"
        " object, images and"
        " texts count separately, and burst_seconds (60) is how long a client saves up; unlimited by default",
        f"{PER_MINUTE.expected}, or an object of images, texts and burst_seconds",
        _rate_limit,
    ),
    ConfigKey(
        "trusted_proxies",
        "proxies to trust for a client's address: their number, if each adds to X-Forwarded-For; their"
        ' networks, such as ["10.0.0.0/8"]; or Fly.io\'s, on a machine there; by default none, and headers are'
        " ignored",
        'a whole number from 1 to 10, a list of networks, or "fly"',
        values.proxies,
    ),
    ConfigKey(
        "allow",
        "who may run models (the permission vision-infer); by default everyone who may see the instance",
        *ALLOW_BLOCK,
    ),
    ConfigKey(
        "allow_metrics",
        "who may read the metrics (the permission vision-metrics); by default only root",
        *ALLOW_BLOCK,
    ),
    ConfigKey(
        "shutdown_seconds",
        "seconds that the server waits for work in progress when it is stopped; set it a little below"
        " the time that the platform waits (Docker and Cloud Run: 10)",
        "a number above 2, at most 3600",
        values.shutdown_seconds,
    ),
    ConfigKey(
        "auto_embed",
        "embedded tables to keep in sync while the server runs; none by default",
        f"{TABLES}, true (all), false, or an object of tables and interval (seconds, 2)",
        _auto_embed,
    ),
    ConfigKey(
        "models",
        "settings of one model, by name: " + ", ".join(key.name for key in MODEL_KEYS),
        "an object of names of models",
        _models,
    ),
)


def _read(mapping: object, keys: tuple[ConfigKey, ...], prefix: str) -> dict[str, Any]:
    where = f"plugins.datasette-vision.{prefix}".rstrip(".")
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected an object, found {_shown(mapping)}")
    known = {key.name: key for key in keys}
    result = {}
    for name, value in mapping.items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else "allowed are " + ", ".join(known)
            raise ConfigError(f"{where}: unknown key {_shown(name)}; {hint}")
        try:
            result[name] = known[name].read(value)
        except ValueError:
            raise ConfigError(f"{where}.{name}: expected {known[name].expected}, found {_shown(value)}") from None
    return result


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError):  # YAML allows a date as a key, and a list that contains itself
        text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
