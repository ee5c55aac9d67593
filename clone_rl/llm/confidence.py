"""Softmax confidence as an exit rule: the best-known signal, at its true price, one reading of the head per question."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.llm.stepper import Stepper

MEASURES = ("top1", "margin", "entropy")
"""Probability of the top token; its lead over the second; entropy in nats, which has to be small."""


class HeadConfidence:
    """Leave where the head is sure (the softmax response of CALM, arXiv 2207.07061); a rule for ``generate``.

    Args:
        stepper: Of the model.
        threshold: ``top1`` and ``margin`` (probabilities, 0 to 1) have to reach it; ``entropy`` (nats) has to be at most it.
        measure: One of ``MEASURES``.
        exits: Depths at which the head is read; None reads it at every one.

    Attributes:
        reads: Readings of the head so far; ``generate`` charges each of them as a HEAD.

    Raises:
        UnknownNameError: Unknown measure.
        BadValueError: A threshold below 0, or an exit that the model does not have.
    """

    def __init__(
        self, stepper: Stepper, threshold: float = 0.9, measure: str = "top1", exits: Collection[int] | None = None
    ) -> None:
        if measure not in MEASURES:
            raise UnknownNameError("measure", measure, MEASURES)
        if not threshold >= 0:
            raise BadValueError(f"threshold is {threshold}", "0 or more")
        self.stepper, self.threshold, self.measure = stepper, threshold, measure
        self.exits = frozenset(range(1, stepper.layers) if exits is None else exits)
        if wrong := [depth for depth in self.exits if not 1 <= depth < stepper.layers]:
            raise BadValueError(f"exit after layer {wrong[0]}", f"1 to {stepper.layers - 1}")
        self.reads = 0

    def __call__(self, layers: int, hidden: torch.Tensor) -> bool:
        """Whether to leave after so many layers with this state (1, 1, hidden)."""
        if layers not in self.exits:
            return False
        self.reads += 1
        value = self.value(self.stepper.logits(hidden))
        return value <= self.threshold if self.measure == "entropy" else value >= self.threshold

    def value(self, logits: torch.Tensor) -> float:
        """The measure of logits (vocabulary,)."""
        log: Any = logits.log_softmax(-1)
        if self.measure == "entropy":
            return float(-(log.exp() * log).sum())
        first, second = log.topk(2).values.exp()
        return float(first if self.measure == "top1" else first - second)
