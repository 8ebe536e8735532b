"""SigLIP's tokenizer, which transformers has only in Python, as tokenizer.json."""

from __future__ import annotations

import string
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers.convert_slow_tokenizer import import_protobuf

from datasette_vision.errors import InstallFailed

UNIGRAM = 1  # TrainerSpec.ModelType of sentencepiece_model.proto
SPACE = "▁"


def backend(tokenizer: Any) -> Tokenizer:
    """Return the implementation behind a tokenizer of transformers, rebuilt if it is written in Python.

    Raises InstallFailed if it cannot be rebuilt.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        return fast
    if type(tokenizer).__name__ == "SiglipTokenizer":
        return _from_siglip(tokenizer)
    raise InstallFailed(f"{type(tokenizer).__name__} exists in Python only, and there is no tokenizer.json")


def _from_siglip(tokenizer: Any) -> Tokenizer:
    """Build an equivalent of transformers' tokenization_siglip.py: its canonicalize_text(), then SentencePiece, then
    </s>.

    Only texts that contain special tokens literally ("</s>") are tokenised differently there.
    """
    model = import_protobuf().ModelProto.FromString(tokenizer.sp_model.serialized_model_proto())
    if model.trainer_spec.model_type != UNIGRAM:
        raise InstallFailed("spiece.model: expected a unigram model")
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    fast = Tokenizer(Unigram(pieces, unk_id=model.trainer_spec.unk_id, byte_fallback=model.trainer_spec.byte_fallback))
    steps: list[Any] = [normalizers.Replace(SPACE, " ")]
    if tokenizer.do_lower_case:
        steps.append(normalizers.Lowercase())
    punctuation = "".join("\\" + character for character in string.punctuation)
    steps += [normalizers.Replace(Regex(f"[{punctuation}]"), ""), normalizers.Replace(Regex(r"\s+"), " ")]
    steps.append(normalizers.Strip())
    if model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    fast.normalizer = normalizers.Sequence(steps)
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    end = str(tokenizer.eos_token)
    fast.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return fast
