"""tokenizer.py on a tokenizer of one token a byte: lengths can be counted by hand."""

from __future__ import annotations

import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Reference

from datasette_vision.errors import ModelCorrupt
from datasette_vision.models.manifest import TextTower
from datasette_vision.tokenizer import Tokenizer
from tests import fakes
from tests.fakes import END, PAD, START


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    fakes.save_tokenizer(path)
    return path


def make(path: Path, context_length: int = 16, padding: str = "longest", pad_token_id: int = PAD) -> Tokenizer:
    return Tokenizer(path, TextTower("text.onnx", "tokenizer.json", context_length, padding, pad_token_id))


def read_back(path: Path, ids: list[int]) -> str:
    """The text that ids stand for."""
    return bytes_of(path, ids).decode()


def bytes_of(path: Path, ids: list[int]) -> bytes:
    assert ids[0] == START
    assert ids[-1] == END
    return bytes(byte_of_id(path)[token] for token in ids[1:-1])


@functools.cache
def byte_of_id(path: Path) -> dict[int, int]:
    """The byte that a token stands for: printable ones are themselves, the others follow from U+0100 in order."""
    ids = Reference.from_file(str(path)).get_vocab()
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    found = {ids[chr(byte)]: byte for byte in printable}
    return found | {ids[chr(0x100 + position)]: byte for position, byte in enumerate(others)}


# encode


@pytest.mark.parametrize("text", ["cat", "a b", "é", "", "\0", "a\0b", "😀", "\n\t ", "\ufeffx", "x" * 14])
def test_every_byte_is_there(path: Path, text: str) -> None:
    assert read_back(path, make(path).encode(text)) == text


def test_an_empty_text_is_its_special_tokens(path: Path) -> None:
    assert make(path).encode("") == [START, END]


@pytest.mark.parametrize(("context_length", "kept"), [(2, ""), (3, "a"), (5, "abc"), (8, "abcdef"), (100, "abcdef")])
def test_truncation_keeps_the_special_tokens(path: Path, context_length: int, kept: str) -> None:
    ids = make(path, context_length).encode("abcdef")
    assert read_back(path, ids) == kept
    assert len(ids) == min(context_length, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("x\udfff", "x\ufffd"),
        ("\ud83d\ude00", "😀"),
    ],
    ids=ascii,
)
def test_lone_surrogates_become_the_replacement_character(path: Path, text: str, expected: str) -> None:
    assert read_back(path, make(path).encode(text)) == expected


@pytest.mark.parametrize("text", ["x" * 1_000_000, "cat " * 25_000, "\ud800" * 30_000, "😀" * 25_000], ids=len)
def test_a_long_text(path: Path, text: str) -> None:
    ids = make(path).encode(text)
    assert len(ids) == 16
    assert ids[0] == START
    assert ids[-1] == END
    start = text[:20].replace("\ud800", "\ufffd").encode()[:14]
    assert bytes_of(path, ids) == start


def test_what_tokenizer_json_says_of_length_does_not_count(path: Path, tmp_path: Path) -> None:
    """Files from the hub come with padding and truncation of their own."""
    reference = Reference.from_file(str(path))
    reference.enable_padding(length=9, pad_id=PAD, pad_token="<pad>")
    reference.enable_truncation(max_length=3, stride=1, direction="left")
    reference.save(str(tmp_path / "tokenizer.json"))
    assert read_back(tmp_path / "tokenizer.json", make(tmp_path / "tokenizer.json", 6).encode("abcdef")) == "abcd"
    assert make(tmp_path / "tokenizer.json", 6).encode("") == [START, END]


def test_many_threads(path: Path) -> None:
    tokenizer = make(path, 40)
    texts = [f"text number {number}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(tokenizer.encode, texts * 5))
    assert [read_back(path, ids) for ids in found[:200]] == texts
    assert found == found[:200] * 5


# pad


def test_to_the_longest(path: Path) -> None:
    found = make(path).pad([[1, 2, 3], [4], [5, 6]])
    assert list(found) == ["input_ids", "attention_mask"]
    assert found["input_ids"].tolist() == [[1, 2, 3], [4, PAD, PAD], [5, 6, PAD]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert found["input_ids"].dtype == found["attention_mask"].dtype == np.int64


def test_to_the_length_of_the_model(path: Path) -> None:
    found = make(path, 4, "max_length", 0).pad([[7], [1, 2, 3, 4]])
    assert found["input_ids"].tolist() == [[7, 0, 0, 0], [1, 2, 3, 4]]
    assert found["attention_mask"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]


def test_a_pad_token_that_is_a_token_of_the_text_is_not_masked(path: Path) -> None:
    """CLIP pads with its end token."""
    found = make(path, 4, "max_length", 9).pad([[8, 9]])
    assert found["input_ids"].tolist() == [[8, 9, 9, 9]]
    assert found["attention_mask"].tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(("padding", "length"), [("longest", 1), ("max_length", 16)])
def test_nothing_to_pad(path: Path, padding: str, length: int) -> None:
    tokenizer = make(path, padding=padding)
    assert tokenizer.pad([])["input_ids"].shape == (0, length)
    found = tokenizer.pad([[]])
    assert found["input_ids"].tolist() == [[PAD] * length]
    assert found["attention_mask"].tolist() == [[0] * length]


# Loading


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b'{"version": "1.0", "model": {"type": "secret"}}', b"[]"], ids=ascii
)
def test_what_is_no_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with caplog.at_level(logging.ERROR), pytest.raises(ModelCorrupt) as caught:
        make(path)
    assert str(caught.value) == f"{path}: expected a tokenizer; the log says why it cannot be read"
    assert caught.value.__cause__ is None
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith(f"{path}: ")


def test_a_missing_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ModelCorrupt, match="expected a tokenizer"):
        make(tmp_path / "tokenizer.json")
    assert "No such file" in caplog.text
