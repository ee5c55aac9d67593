"""Choosing a token: greedy, or seeded sampling from the top of the distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import torch

from clone_rl.errors import BadValueError

_GREEDY = 1e-4
"""Temperatures below this take the most probable token: dividing by them would overflow."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the most probable token.
        top_k: Most probable tokens that may be drawn; 0, -1 or None takes all, and is kept as 0.

    Raises:
        BadValueError: A negative temperature, or a ``top_k`` that is no whole number, or below -1.

    >>> Sampling(top_k=-1) == Sampling(top_k=None) == Sampling(top_k=0)
    True
    """

    temperature: float = 0.8
    top_k: int | None = 40

    def __post_init__(self) -> None:
        given = self.temperature
        if isinstance(given, bool) or not isinstance(given, int | float | Integral) or not 0 <= given < math.inf:
            raise BadValueError(f"temperature is {given!r}", "0 (greedy) or more")
        top_k = 0 if self.top_k is None else self.top_k
        if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < -1:
            raise BadValueError(f"top_k is {top_k!r}", "a whole number, at least 1; 0 or -1 takes all tokens")
        object.__setattr__(self, "top_k", max(0, int(top_k)))

    def pick(self, logits: torch.Tensor, generator: torch.Generator) -> int:
        """One token from logits (vocabulary,)."""
        if self.temperature < _GREEDY:
            return int(logits.argmax())
        if not self.top_k:
            return int(torch.multinomial((logits / self.temperature).softmax(-1), 1, generator=generator))
        values, ids = logits.topk(min(self.top_k, len(logits)))
        return int(ids[torch.multinomial((values / self.temperature).softmax(-1), 1, generator=generator)])
