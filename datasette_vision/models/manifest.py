"""A model's manifest.json as frozen dataclasses, with every value checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from datasette_vision.errors import ModelCorrupt
from datasette_vision.images.preprocess import RESAMPLE, Preprocess, Size
from datasette_vision.models.tasks import FORMS, Form

MANIFEST_FORMAT = 1
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

# Far above any existing model: a larger value is a mistake, and would only show as a lack of memory.
MAX_FILE_BYTES = 1 << 40
MAX_MODEL_DIMENSIONS = 1_000_000
MAX_CONTEXT_LENGTH = 100_000
MAX_TOKEN_ID = 10_000_000
MAX_PIXELS = 10_000

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFile:
    """A file of the model, by its path below the model's folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ImageTower:
    """How pixels become an embedding, or the logits of a classifier. `input` and `output` are the graph's names."""

    file: str
    input: str = "pixel_values"
    output: str = "embedding"


@dataclass(frozen=True)
class TextTower:
    """How text becomes an embedding. `input_ids`, `attention_mask` and `output` are the graph's names."""

    file: str
    tokenizer: str
    context_length: int
    padding: str  # "longest": to the longest text of the batch; "max_length": always to context_length
    pad_token_id: int
    input_ids: str = "input_ids"
    attention_mask: str | None = "attention_mask"  # None: the graph has no such input
    output: str = "embedding"


@dataclass(frozen=True)
class Label:
    """A class that an image can belong to. `prompt` is its text in a dual encoder."""

    label: str
    prompt: str
    group: str | None = None


@dataclass(frozen=True)
class ModelSource:
    """Where the model came from."""

    location: str
    revision: str | None
    licence: str


@dataclass(frozen=True)
class Manifest:
    """A model: its task, its files, and how to use them. `identity` changes whenever anything in it changes."""

    name: str
    task: str
    description: str
    source: ModelSource
    precision: str
    dimensions: int
    logit_scale: float
    logit_bias: float
    activation: str
    image: ImageTower
    text: TextTower | None
    preprocess: Preprocess
    labels: tuple[Label, ...]
    files: tuple[ModelFile, ...]
    canonical: dict[str, Any]
    parity: dict[str, Any]
    made_with: dict[str, Any]
    identity: str

    @property
    def form(self) -> Form:
        """The contents that manifests of this task must have."""
        return FORMS[self.task]

    def file(self, path: str) -> ModelFile:
        """Return the entry of a file. Its presence was checked when the manifest was read."""
        return next(file for file in self.files if file.path == path)


def read_manifest(folder: Path) -> Manifest:
    """Read folder/manifest.json. Raises ModelCorrupt, naming the file and the key, if anything is not as expected."""
    path = folder / "manifest.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelCorrupt(f"{path}: cannot be read: {error.strerror}") from None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise ModelCorrupt(f"{path}: expected JSON, found something else") from None
    return parse_manifest(value, str(path), hashlib.sha256(content).hexdigest())


def parse_manifest(value: Any, where: str, identity: str = "") -> Manifest:
    """Read a manifest that is not, or not yet, on disk. Raises ModelCorrupt, naming `where` and the key."""
    return _manifest(_Reader(value, where), identity)


def parse_preprocess(value: Any, where: str) -> Preprocess:
    """Read what a manifest has under `preprocess`. Raises ModelCorrupt, naming `where` and the key."""
    return _preprocess(_Reader(value, where))


class _Reader:
    """One JSON object of the manifest: returns values by key, and reports the position of a wrong one."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise ModelCorrupt(f"{where}: expected an object")
        self.value = value

    def get(self, key: str, kind: type[T] | tuple[type, ...], check: Callable[[Any], bool], expected: str) -> Any:
        found = self.value.get(key)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool) or not check(found):
            raise ModelCorrupt(f"{self.where}: {key}: expected {expected}, found {json.dumps(found)[:60]}")
        return found

    def text(self, key: str) -> str:
        return self.get(key, str, bool, "a string that is not empty")

    def text_or(self, key: str, default: str) -> str:
        return self.text(key) if key in self.value else default

    def optional_text(self, key: str) -> str | None:
        return None if self.value.get(key) is None else self.text(key)

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        return self.get(key, str, allowed.__contains__, "one of " + ", ".join(allowed))

    def count(self, key: str, minimum: int, maximum: int) -> int:
        return self.get(
            key, int, lambda number: minimum <= number <= maximum, f"a whole number from {minimum} to {maximum}"
        )

    def number(self, key: str, default: float | None = None) -> float:
        if default is not None and self.value.get(key) is None:
            return default
        return float(self.get(key, (int, float), lambda number: abs(number) < 1e9, "a number"))

    def path(self, key: str) -> str:
        return self.get(key, str, is_inside, "a relative path")

    def object(self, key: str) -> _Reader:
        return _Reader(self.value.get(key), f"{self.where}: {key}")

    def objects(self, key: str) -> list[_Reader]:
        items = self.get(key, list, lambda _: True, "an array")
        return [_Reader(item, f"{self.where}: {key}[{index}]") for index, item in enumerate(items)]

    def free(self, key: str) -> dict[str, Any]:
        return self.get(key, dict, _is_json, "an object") if key in self.value else {}


def _is_json(value: object) -> bool:
    """Whether a value is the same after it has been written as JSON: NaN is not."""
    try:
        return json.loads(json.dumps(value, allow_nan=False)) == value
    except ValueError:
        return False


def is_inside(path: str) -> bool:
    """Whether a relative path stays below its folder, on every system."""
    parts = PurePosixPath(path)
    # Not printable: NUL and lone surrogates, which no file system accepts. A colon: a drive in Windows.
    return bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts and _is_plain(path)


def _is_plain(path: str) -> bool:
    return path.isprintable() and not set("\\:") & set(path)


def _manifest(value: _Reader, identity: str) -> Manifest:
    found = value.value.get("format")
    if found != MANIFEST_FORMAT or isinstance(found, bool):
        raise ModelCorrupt(
            f"{value.where}: format: expected {MANIFEST_FORMAT}, found {json.dumps(found)[:60]}:"
            " another version of datasette-vision made it"
        )
    form = FORMS[value.choice("task", tuple(FORMS))]
    source = value.object("source")
    files = tuple(
        ModelFile(
            item.path("path"),
            item.count("size", 0, MAX_FILE_BYTES),
            item.get("sha256", str, re.compile(r"[0-9a-f]{64}").fullmatch, "64 hexadecimal digits"),  # type: ignore[arg-type]
        )
        for item in value.objects("files")
    )
    manifest = Manifest(
        name=value.get("name", str, NAME_PATTERN.fullmatch, "a name of lower-case letters, digits, '.', '_' and '-'"),  # type: ignore[arg-type]
        task=form.task,
        description=value.text("description"),
        source=ModelSource(source.text("location"), source.optional_text("revision"), source.text("licence")),
        precision=value.text("precision"),
        dimensions=value.count("dimensions", 1, MAX_MODEL_DIMENSIONS),
        logit_scale=value.number("logit_scale", None if form.needs_logit_scale else 1.0),
        logit_bias=value.number("logit_bias", 0.0),
        activation=value.choice("activation", form.activations),
        image=_image_tower(value.object("image"), form.output),
        text=_text_tower(value.object("text")) if form.has_text_tower else None,
        preprocess=_preprocess(value.object("preprocess")),
        labels=tuple(_label(item) for item in value.objects("labels")),
        files=files,
        canonical=value.free("canonical"),
        parity=value.free("parity"),
        made_with=value.free("made_with"),
        identity=identity,
    )
    listed = {file.path for file in files}
    if len(listed) != len(files):
        raise ModelCorrupt(f"{value.where}: files: expected each path once")
    needed = [manifest.image.file]
    if manifest.text is not None:
        needed += [manifest.text.file, manifest.text.tokenizer]
    for path in needed:
        if path not in listed:
            raise ModelCorrupt(f"{value.where}: files: expected {path} among them")
    if form.labels_the_output and len(manifest.labels) != manifest.dimensions:
        raise ModelCorrupt(f"{value.where}: labels: expected {manifest.dimensions}, found {len(manifest.labels)}")
    return manifest


def _image_tower(value: _Reader, output: str) -> ImageTower:
    return ImageTower(value.path("file"), value.text_or("input", "pixel_values"), value.text_or("output", output))


def _text_tower(value: _Reader) -> TextTower:
    has_mask = value.value.get("attention_mask", "") is not None
    return TextTower(
        file=value.path("file"),
        tokenizer=value.path("tokenizer"),
        context_length=value.count("context_length", 2, MAX_CONTEXT_LENGTH),
        padding=value.choice("padding", ("longest", "max_length")),
        pad_token_id=value.count("pad_token_id", 0, MAX_TOKEN_ID),
        input_ids=value.text_or("input_ids", "input_ids"),
        attention_mask=value.text_or("attention_mask", "attention_mask") if has_mask else None,
        output=value.text_or("output", "embedding"),
    )


def _label(value: _Reader) -> Label:
    label = value.text("label")
    return Label(label, value.optional_text("prompt") or label, value.optional_text("group"))


def _preprocess(value: _Reader) -> Preprocess:
    resize, crop = value.object("resize"), value.object("crop")
    if "shortest_edge" in resize.value:
        size = Size(shortest_edge=resize.count("shortest_edge", 1, MAX_PIXELS))
    else:
        size = Size(height=resize.count("height", 1, MAX_PIXELS), width=resize.count("width", 1, MAX_PIXELS))
    return Preprocess(
        resize=size,
        crop_height=crop.count("height", 1, MAX_PIXELS),
        crop_width=crop.count("width", 1, MAX_PIXELS),
        resample=value.choice("resample", tuple(RESAMPLE)),
        mean=_channels(value, "mean", lambda number: -10 <= number <= 10),
        std=_channels(value, "std", lambda number: 0 < number <= 10),
    )


def _channels(value: _Reader, key: str, check: Callable[[float], bool]) -> tuple[float, float, float]:
    def fits(numbers: list[object]) -> bool:
        return len(numbers) == 3 and all(
            isinstance(number, (int, float)) and not isinstance(number, bool) and check(number) for number in numbers
        )

    red, green, blue = value.get(key, list, fits, "three numbers in range, one per channel")
    return float(red), float(green), float(blue)
