"""Training windows without end: real text in random order, and generated prompts that are never seen twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from clone_rl.errors import BadFileError
from clone_rl.llm.prompts import KINDS, make_prompt, reserved_texts
from clone_rl.llm.recipe import Recipe

Encode = Callable[[list[str]], Iterable[list[int]]]
"""Tokens of each of several texts, without special tokens."""

_SEEDS_APART = 1_000_000
_PROMPTS_AT_ONCE = 256


def stream(encode: Encode, documents: list[str], start: int) -> NDArray[np.int64]:
    """All documents in one row of tokens, each after the token ``start``."""
    ids: list[int] = []
    for tokens in encode(documents):
        ids += [start, *tokens]
    return np.array(ids, dtype=np.int64)


class Windows:
    """Batches of ``recipe.batch`` windows of ``recipe.context + 1`` tokens.

    Args:
        recipe: Sizes, shares and the seed.
        encode: The tokeniser.
        start: Token ahead of every document.
        text: Tokens of the training text.

    Attributes:
        template_seed: Seed of the next generated prompt.

    Raises:
        BadFileError: The text is shorter than a window.
    """

    def __init__(self, recipe: Recipe, encode: Encode, start: int, text: NDArray[np.int64]) -> None:
        self.recipe, self.encode, self.start, self.text = recipe, encode, start, text
        if recipe.template_share < 1 and len(text) <= recipe.context + 1:
            raise BadFileError(
                f"the training text has {len(text)} tokens, fewer than a window of {recipe.context + 1}",
                "more text, or a shorter --context",
            )
        self.rng = np.random.default_rng(recipe.seed)
        self.template_seed = recipe.seed * _SEEDS_APART  # runs of other seeds see other prompts
        self._reserved = reserved_texts() if recipe.template_share else frozenset()
        self._templates: list[int] = []
        self._order: list[int] = []

    def _template_window(self) -> NDArray[np.int64]:
        size = self.recipe.context
        while len(self._templates) <= size:
            texts: list[str] = []
            while len(texts) < _PROMPTS_AT_ONCE:
                prompt = make_prompt(KINDS[1 + self.template_seed % 3], self.template_seed)
                self.template_seed += 1
                if prompt.text not in self._reserved:
                    texts.append(prompt.text + prompt.answer)
            for tokens in self.encode(texts):
                self._templates += [self.start, *tokens]
        window = np.array(self._templates[: size + 1])
        del self._templates[:size]
        return window

    def _text_window(self) -> NDArray[np.int64]:
        size = self.recipe.context
        last = len(self.text) - size - 1
        if not self._order:
            # Windows of a new pass start at another offset, so that no pass cuts the text at the same places.
            first = int(self.rng.integers(min(size, last + 1)))
            self._order = list(self.rng.permutation(np.arange(first, last + 1, size)))
        at = self._order.pop()
        return self.text[at : at + size + 1]

    def batch(self) -> torch.Tensor:
        """(batch, context + 1) tokens."""
        share = self.recipe.template_share
        rows = [
            self._template_window() if self.rng.random() < share else self._text_window() for _ in range(self.recipe.batch)
        ]
        return torch.from_numpy(np.stack(rows))
