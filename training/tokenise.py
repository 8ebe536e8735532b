"""The tokenizer: byte-level BPE trained on the captions, so that no text is ever unknown."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD, BEGIN, END = "<pad>", "<begin>", "<end>"
PAD_ID = 0
VOCABULARY = 8192


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A self-contained tokenizer: NFKC and lower case, single spaces, then words of bytes that are merged again."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("\ufe0f", ""),
            normalizers.Replace("\u0000", " "),
            normalizers.Replace("_", " "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
            # Every word begins with a space, the first as well. ByteLevel(add_prefix_space=True) says the same, and
            # tokenizers 1.0 does not know it.
            normalizers.Prepend(" "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN)), (END, tokenizer.token_to_id(END))],
    )
    return tokenizer
