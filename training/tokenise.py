"""The tokenizer: byte-level BPE trained on the captions, so that no text is ever unknown."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD, BEGIN, END = "<pad>", "<begin>", "<end>"
PAD_ID = 0
VOCABULARY = 8192


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A self-contained tokenizer: NFKC and lower case, cut at white space, then into bytes that are merged again."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("\ufe0f", ""),
            normalizers.Replace("\u0000", " "),
            normalizers.Replace("_", " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
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
