"""engine/tokenizer.py on a tokenizer of one token a byte: lengths can be counted by hand."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import datasette_vision
from datasette_vision.engine.tokenizer import Tokenizer
from datasette_vision.errors import ModelCorrupt
from datasette_vision.models.manifest import TextTower
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
    """The byte that a token stands for."""
    ids = json.loads(path.read_text("utf-8"))["model"]["vocab"]
    return {ids[letter]: byte for byte, letter in enumerate(fakes.byte_letters())}


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
    content = json.loads(path.read_text("utf-8"))
    content["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": PAD,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    content["truncation"] = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 1}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
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
    assert str(caught.value) == f"{path}: expected a tokenizer; see the log"
    assert caught.value.__cause__ is None
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith(f"{path}: ")


def test_a_missing_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ModelCorrupt, match="expected a tokenizer"):
        make(tmp_path / "tokenizer.json")
    assert "No such file" in caplog.text


# Both lines of the tokenizers library


def test_a_word_that_does_not_end_as_the_file_says_is_an_error_and_never_another_token(tmp_path: Path) -> None:
    """tokenizers 1.0.0rc3 forgets the suffix of words of one letter: CLIP has one."""
    path = tmp_path / "tokenizer.json"
    fakes.save_tokenizer(path)
    content = json.loads(path.read_text("utf-8"))
    content["model"]["end_of_word_suffix"] = "</w>"
    content["model"]["vocab"] |= {letter + "</w>": 300 + byte for byte, letter in enumerate(fakes.byte_letters())}
    path.write_text(json.dumps(content), "utf-8")
    try:
        ids = make(path).encode("x")
    except ModelCorrupt as error:
        library = f"tokenizers {tokenizers.__version__}"
        assert tokenizers.__version__.startswith("1.")
        assert f"expected the word 'a' to be the token {300 + ord('a')}, and {library} gives [" in str(error)  # noqa: PT017
        assert str(error).endswith("pip install 'tokenizers<1'")  # noqa: PT017
    else:
        assert ids == [START, 300 + ord("x"), END]


# The bundled tokenizer

BUNDLED = Path(datasette_vision.__file__).parent / "models" / "bundled" / "tiny-emoji" / "tokenizer.json"
# SHA-256 of all ids of odd_texts(), found with the tokenizer.json of 0.1, which cut at white space and had
# ByteLevel(add_prefix_space=True), and tokenizers 0.23.3.
IDS_OF_0_1 = "574b4ffa34c4756c39ac04be38818860c12f0783a1b95fff64f4b626fe5c890b"
ODD = """
cat|don't|'s|'S|x'll've| |  |\t|\xa0|\u2003|\u3000|\u2028|\x85|\x1c|\x1f|\x0b|\x0c|_|__|\0|\ufe0f
<pad>|<begin>|<end>| <end> |<END>|123|4²|½|Ⅷ|é|e\u0301|ﬁ|İ|ß|ΣΑΣ|ς
日本語|ひらがな|한국어|עברית|العربية|हिन्दी|ไทย|😀|👩\u200d👧|🏳️\u200d🌈
\u200b|\u200d|\ufeff|\ufffd|\ue000|!|!!|...|--|(|)|/|\\|"|$|€|A_b|the face of a cat|\u1680|\u200e|¨|\xb4|⁇|\r
"""
PIECES = ODD.split("|")
# Of these ranges, both lines of tokenizers know the same letters; they differ in the Unicode version that they follow.
RANGES = ((0x20, 0x500), (0x900, 0x980), (0x2000, 0x2400), (0x3000, 0x3100), (0x4E00, 0x9FA0), (0x1F300, 0x1F650))


def odd_texts() -> Iterator[str]:
    """Texts of joined pieces and single characters: the same at every run."""
    yield from ("", *PIECES)
    numbers = random.Random(11)
    for _ in range(6000):
        yield "".join(
            PIECES[numbers.randrange(len(PIECES))] if numbers.random() < 0.8 else chr(numbers.randrange(*range_))
            for range_ in (RANGES[numbers.randrange(len(RANGES))] for _ in range(numbers.randrange(1, 12)))
        )
    for low, high in RANGES[:4]:
        yield from (f"a{chr(point)}b {chr(point)}" for point in range(low, high))


def tiny_emoji(path: Path = BUNDLED) -> Tokenizer:
    return Tokenizer(path, TextTower("text.onnx", "tokenizer.json", 512, "longest", 0))


def test_the_bundled_tokenizer_gives_the_tokens_of_0_1() -> None:
    """Embeddings that are stored stay comparable, and the model sees what it was trained on."""
    tokenizer = tiny_emoji()
    found = hashlib.sha256()
    for text in odd_texts():
        found.update(json.dumps(tokenizer.encode(text)).encode())
    assert found.hexdigest() == IDS_OF_0_1


def test_the_bundled_tokenizer_is_the_one_that_cuts_at_white_space_first(tmp_path: Path) -> None:
    """How training wrote it in 0.1. tokenizers 1.0 cannot load that."""
    if hasattr(tokenizers, "Truncation"):
        pytest.skip("tokenizers 1.0 does not know add_prefix_space")
    content = json.loads(BUNDLED.read_text("utf-8"))
    steps = content["normalizer"]["normalizers"]
    assert [step["type"] for step in steps[-3:]] == ["Replace", "Strip", "Prepend"]
    content["normalizer"]["normalizers"] = [*steps[:-3], steps[-2]]
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, {**content["pre_tokenizer"], "add_prefix_space": True}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    before, now = tiny_emoji(tmp_path / "tokenizer.json"), tiny_emoji()
    for text in odd_texts():
        assert now.encode(text) == before.encode(text), text


# No more of a text is looked at than is read


def save_merging_tokenizer(path: Path) -> None:
    """Merged byte pairs, a normaliser, special tokens, and numbers that are cut into threes from their end."""
    if tokenizers.__version__.startswith("1."):
        pytest.skip("tokenizers 1.0 trains none")
    from tokenizers import Regex, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}(?=(\d{3})*(?!\d))"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<start>", "<end>", "<a long special token>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(
        ["the cat and the hat; aaaa aaaaaaaa abab abababab 123 456 élan ... !!! " * 9], trainer
    )
    start, end = (tokenizer.token_to_id(token) for token in special[:2])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merging") / "tokenizer.json"
    save_merging_tokenizer(path)
    return path


@functools.cache
def reference(path: Path, context_length: int) -> Any:
    found: Any = tokenizers.Tokenizer.from_file(str(path))
    if hasattr(tokenizers, "Truncation"):  # 1.0
        found.truncation = tokenizers.Truncation(context_length)
    else:
        found.enable_truncation(max_length=context_length)
    return found


def whole(path: Path, context_length: int, text: str) -> list[int]:
    """Return the tokens as the library truncates them, after it has tokenised the whole text."""
    return reference(path, context_length).encode(text).ids


LENGTHS = (300, 3000, 30_000)
FRAGMENTS = [
    *(" ", "  ", "\n", "\t", " " * 50, " " * 300, "\u00a0", "\u200d"),
    *("a", "b", "ab", "the", "cat", "Hat", "x" * 60, "aaaa", "1", "12", "1" * 77, "456"),
    *("<start>", "<end>", "<|endoftext|>", "<", "<a long special token>", "<a long", "...", "!", "-", "'s"),
    *("é", "e\u0301", "\u0301", "\u0323", "ﬁ", "ß", "İ", "Ⅷ", "漢字", "😀", "👩\u200d👧"),
]


@pytest.mark.parametrize("context_length", [4, 16, 77])
@pytest.mark.parametrize("seed", range(3))
def test_the_tokens_are_those_of_the_whole_text(path: Path, merging: Path, context_length: int, seed: int) -> None:
    generator = random.Random(seed)
    for tokenizer_path in (path, merging, BUNDLED):
        tokenizer = make(tokenizer_path, context_length)
        for _ in range(60):
            some = generator.sample(FRAGMENTS, generator.choice([1, 2, 3, len(FRAGMENTS)]))
            text = "".join(generator.choices(some, k=generator.choice([10, 100, 1000])))[: generator.choice(LENGTHS)]
            assert tokenizer.encode(text) == whole(tokenizer_path, context_length, text), (some, len(text))


@pytest.mark.parametrize("text", ["word " * 20_000, "x" * 100_000, "1" * 100_000, "漢" * 100_000, "<start>" * 14_000])
def test_a_long_text_costs_what_is_read_of_it(path: Path, text: str) -> None:
    tokenizer = make(path, 77)
    looked_at: list[int] = []
    content = tokenizer._content
    tokenizer._content = lambda part: looked_at.append(len(part)) or content(part)  # type: ignore[func-returns-value,method-assign]
    assert tokenizer.encode(text) == whole(path, 77, text)
    assert sum(looked_at) < 2000


def test_spaces_are_passed_over_in_growing_parts(merging: Path) -> None:
    tokenizer = make(merging, 77)
    looked_at: list[int] = []
    content = tokenizer._content
    tokenizer._content = lambda part: looked_at.append(len(part)) or content(part)  # type: ignore[func-returns-value,method-assign]
    text = " " * 80_000 + "the cat " * 2500
    assert tokenizer.encode(text) == whole(merging, 77, text)
    assert sum(looked_at) < 2.4 * len(text)


def test_what_comes_last_may_change_what_comes_first(merging: Path) -> None:
    """Where a number is cut depends on its length; accents are brought into an order before all else."""
    tokenizer = make(merging, 16)
    tokens = {tuple(tokenizer.encode("1" + "23" * 5000 + "4" * count)) for count in range(3)}
    assert len(tokens) == 3
    accents = "e" + "\u0301" * 3000
    assert tokenizer.encode(accents) != tokenizer.encode(accents + "\u0323")
    for text in ("1" + "23" * 5000, accents, accents + "\u0323"):
        assert tokenizer.encode(text) == whole(merging, 16, text)


def test_a_tokenizer_without_tokens_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    content = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    path.write_text(json.dumps(content))
    # tokenizers 1.0 panics when it reads such a file.
    expected = r"expected a tokenizer( that has tokens for one of a, 1|; see the log)"
    with pytest.raises(ModelCorrupt, match=expected):
        make(path)


def test_a_library_that_panics_is_an_error_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A BaseException would pass by all that answers for an input, and end the thread that works for everybody."""

    class PanicException(BaseException):
        pass

    class Panicking:
        def encode(self, text: str, **options: object) -> None:
            raise PanicException("unwrap on a None value")

    tokenizer = make(BUNDLED)
    monkeypatch.setattr(tokenizer, "_tokenizer", Panicking())
    with pytest.raises(RuntimeError, match="unwrap on a None value"):
        tokenizer.encode("a")
