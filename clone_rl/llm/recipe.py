"""How a language model is trained for exits: every number that decides the result besides the text and the machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from clone_rl.errors import BadValueError


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Attributes:
        minutes: Wall-clock training time, minutes; the learning rate follows it.
        steps: Optimiser steps; above 0 they replace ``minutes``, and the result depends on the machine's speed no more.
        vocab_size: Tokens in the vocabulary.
        hidden_size: Width of the residual stream.
        layers: Decoder layers.
        heads: Query heads.
        kv_heads: Key/value heads.
        ff_size: Width of the feed-forward network.
        context: Tokens per training window, and longest context of a new model.
        batch: Windows per step.
        learning_rate: Peak, reached after ``warmup`` steps, flat for half of the run, then linear to 2 %.
        warmup: Steps over which the learning rate rises to its peak.
        exit_weight: Weight of each of the two rotating exit losses; 0 trains without exits.
        distil: Share of the exit loss that is KL(last layer || exit) instead of cross-entropy on the text.
        layer_drop: Highest probability of skipping a layer in training (the last layer's).
        template_share: Share of windows made of generated prompts with answers.
        quantised_from: Share of the run after which the forward pass uses quantised weights.
        seed: Seed of the initial weights, of the order of the text, and of the generated prompts.

    Raises:
        BadValueError: A number is out of range.
    """

    minutes: float = 60.0
    steps: int = 0
    vocab_size: int = 2048
    hidden_size: int = 256
    layers: int = 10
    heads: int = 4
    kv_heads: int = 2
    ff_size: int = 768
    context: int = 256
    batch: int = 16
    learning_rate: float = 2.5e-3
    warmup: int = 40
    exit_weight: float = 0.25
    distil: float = 0.0
    layer_drop: float = 0.1
    template_share: float = 0.4
    quantised_from: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "kv_heads", "ff_size", "hidden_size", "batch", "warmup"):
            if getattr(self, name) < 1:
                raise BadValueError(f"{name} is {getattr(self, name)}", "at least 1")
        for name in ("distil", "layer_drop", "template_share", "quantised_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadValueError(f"{name} is {getattr(self, name)}", "a share from 0 to 1")
        if not (self.minutes > 0 or self.steps > 0):
            raise BadValueError(f"minutes is {self.minutes}", "more than 0")
        if self.steps < 0:
            raise BadValueError(f"steps is {self.steps}", "0 (train by minutes) or more")
        if not self.learning_rate > 0:
            raise BadValueError(f"learning_rate is {self.learning_rate}", "more than 0")
        if self.exit_weight < 0:
            raise BadValueError(f"exit_weight is {self.exit_weight}", "0 or more")
        if self.context < 8:
            raise BadValueError(f"context is {self.context}", "at least 8 tokens")
        if self.layers < 2:
            raise BadValueError(f"layers is {self.layers}", "at least 2: an early exit needs a layer to skip")
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise BadValueError(
                f"hidden_size {self.hidden_size}, heads {self.heads}, kv_heads {self.kv_heads}",
                "heads divide hidden_size, and kv_heads divide heads",
            )
        if not 257 <= self.vocab_size <= 2**16:
            raise BadValueError(f"vocab_size is {self.vocab_size}", "257 (all bytes and the end token) to 65536")


FINE_TUNING: dict[str, Any] = {"learning_rate": 3e-4, "exit_weight": 1.0, "distil": 1.0, "template_share": 0.0}
"""Defaults that differ where a trained model is continued: gentle, and its exits learn from its own last layer."""

SIZES = ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "ff_size")
"""Settings that a continued model brings along."""


def recipe_from(given: dict[str, Any], continued: bool) -> Recipe:
    """A recipe from the settings that somebody gave.

    Args:
        given: Fields of ``Recipe``; those that are None were not given.
        continued: Whether a trained model is continued.

    Raises:
        BadValueError: A size is given for a continued model, or a number is out of range.
    """
    chosen = {f.name: given[f.name] for f in fields(Recipe) if given.get(f.name) is not None}
    if continued:
        for name in SIZES:
            if name in chosen:
                raise BadValueError(f"{name} is given for a model that has one", f"leave --{name.replace('_', '-')} out")
        chosen = FINE_TUNING | chosen
    return Recipe(**chosen)
