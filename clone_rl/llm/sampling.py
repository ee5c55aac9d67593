"""Choosing a token: greedy, or seeded sampling from the top of the distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from clone_rl.errors import BadValueError

_GREEDY = 1e-4
"""Temperatures below this take the most probable token: dividing by them would overflow."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the most probable token.
        top_k: Most probable tokens that may be drawn.

    Raises:
        BadValueError: A negative temperature, or ``top_k`` below 1.
    """

    temperature: float = 0.8
    top_k: int = 40

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise BadValueError(f"temperature is {self.temperature}", "0 (greedy) or more")
        if self.top_k < 1:
            raise BadValueError(f"top_k is {self.top_k}", "at least 1")

    def pick(self, logits: torch.Tensor, generator: torch.Generator) -> int:
        """One token from logits (vocabulary,)."""
        if self.temperature < _GREEDY:
            return int(logits.argmax())
        values, ids = logits.topk(min(self.top_k, len(logits)))
        return int(ids[torch.multinomial((values / self.temperature).softmax(-1), 1, generator=generator)])
