"""Byte-level BPE with digits split, and one special token that starts and ends every document."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"
"""Token 0: before every document and after it, so it is at once start, separator and end of sequence."""

END_ID = 0


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Fit a tokenizer; every byte is representable, so no text is ever unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a ``tokenizer.json``."""
    return Tokenizer.from_file(str(path))
