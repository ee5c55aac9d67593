"""Text to tokens and back: of any model, and the byte-level BPE with digits split that this package trains."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from clone_rl.errors import BadValueError

END = "<|end|>"
"""Token 0: before every document and after it, so it is at once start, separator and end of sequence."""

END_ID = 0


class Text:
    """Text to tokens and back; special tokens are neither added nor shown.

    Args:
        backend: What does the work.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        backend.no_truncation()  # a file may ask for either
        backend.no_padding()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text.

        Raises:
            BadValueError: The text is not Unicode: it holds half of a surrogate pair, such as undecodable bytes leave.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadValueError(
                f"the text cannot be written as UTF-8: {error.reason}", f"see character {error.start}"
            ) from None
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of tokens."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    @cached_property
    def _fast(self) -> Any:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_object=self.backend)

    def __getattr__(self, name: str) -> Any:
        """What ``transformers`` asks of a tokenizer besides, as its ``StopStringCriteria`` does."""
        if name.startswith("__") or name == "backend":
            raise AttributeError(name)
        return getattr(self._fast, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        """Tokens of texts, as a tokenizer of ``transformers`` gives them."""
        return self._fast(text, **options)

    @property
    def size(self) -> int:
        """Tokens of the vocabulary proper, without those that were added to it."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=False).values(), default=-1)

    @cached_property
    def start_ids(self) -> tuple[int, ...]:
        """What the tokenizer itself puts before a text."""
        bare = self.backend.encode("a", add_special_tokens=False).ids
        full = self.backend.encode("a").ids
        found = (at for at in range(len(full)) if bare and full[at : at + len(bare)] == bare)
        return tuple(full[: next(found, 0)])


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
