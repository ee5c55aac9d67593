"""The model in the loop as a source of tokens: the same columns as a recorded trace, made while the request runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from clone_rl.envs.trace import TraceSet, blank_trace
from clone_rl.errors import BadValueError
from clone_rl.llm.documents import Document
from clone_rl.llm.exits import exit_statistics, hidden_statistics
from clone_rl.llm.model import LanguageModel
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.stepper import Stepper


class ModelSource:
    """A ``clone_rl.envs.source.TokenSource`` on the stepper.

    A document with a response is teacher-forced: its tokens are emitted whatever the exits would have said, which is what a
    recorded trace replays; with ``kv="exact"`` the two are the same request. A document that is a prompt alone is answered by
    the model itself, from the exits that the controller takes. Every exit is compared with the rest of the layers run on the
    same state; that reference is not charged.

    Args:
        lm: The model, with its probe.
        documents: What to answer.
        kv: What skipped layers get as keys and values, one of ``clone_rl.hw_emulator.ledger.KV``.
        max_new_tokens: Longest response of a prompt that stands alone.
        sampling: How its tokens are chosen.
        expected_tokens: Predicted length of a response, by kind of document; without one, the longest that it may become.
        stepper: The model's, where one is at hand already.

    Attributes:
        layers: Decoder layers.
        ended: Whether the token emitted last was the end of the response.
        tokens: The response so far.

    Raises:
        UnsupportedModelError: The model cannot be stepped.
        BadValueError: No documents, no probe, or a strategy that does not work with this model.
    """

    def __init__(
        self,
        lm: LanguageModel,
        documents: Sequence[Document],
        kv: str = "propagate",
        max_new_tokens: int = 80,
        sampling: Sampling | None = None,
        expected_tokens: dict[str, float] | None = None,
        stepper: Stepper | None = None,
    ) -> None:
        if not documents:
            raise BadValueError("no documents", "give at least one")
        if max_new_tokens < 1:
            raise BadValueError(f"max_new_tokens is {max_new_tokens}", "at least 1")
        self.lm, self.documents, self.stepper = lm, list(documents), stepper or Stepper(lm)
        self.kv, self.probe = self.stepper.check_strategy(kv), lm.need_probe()
        self.probe_dots = self.probe.dots
        self.max_new_tokens, self.sampling = max_new_tokens, sampling or Sampling()
        self.expected_tokens = expected_tokens or {}
        self.layers, self.ended = self.stepper.layers, False
        self.tokens: list[int] = []

    def __len__(self) -> int:
        return len(self.documents)

    def close(self) -> None:
        """Let go of the model."""
        self.stepper.detach()

    def start(self, document: int, seed: int) -> TraceSet:
        """Begin a request; see ``TokenSource``."""
        chosen = self.documents[document]
        prompt, self._given = list(chosen.ids[: chosen.prompt_tokens]), list(chosen.ids[chosen.prompt_tokens :])
        longest = len(self._given) or min(self.max_new_tokens, self.lm.shape.context - len(prompt))
        if longest < 1 or len(prompt) + len(self._given) > self.lm.shape.context + 1:
            raise BadValueError(
                f"a prompt of {len(prompt)} and a response of {len(self._given)} tokens do not fit the context of "
                f"{self.lm.shape.context}",
                "shorten it",
            )
        self._generator = torch.Generator().manual_seed(seed)
        self._prompt, self._cache = prompt, self.stepper.new_cache()
        self.tokens, self.ended = [], False
        self._trace = blank_trace(self.layers, len(prompt), longest)
        self._trace.card["expected_tokens"] = self.expected_tokens.get(chosen.kind, float(longest))
        return self._trace

    def run(self, layer: int) -> None:
        """The next layer of the token in flight; see ``TokenSource``."""
        if not self.tokens:
            if layer == 0:
                self._logits = self.stepper.prefill(torch.tensor([self._prompt]), self._cache)
            if layer == self.layers - 1:
                self._emit(self._logits, self.layers)
            return
        if layer == 0:
            self._hidden = self.stepper.plan(self.tokens[-1], self._cache)
        before = self._hidden
        self._hidden = self.stepper.run(layer, before, self._cache)
        if layer == self.layers - 1:
            self._emit(self.stepper.logits(self._hidden), self.layers)
            return
        token = len(self.tokens)
        self._trace.signal[token, layer] = _stored(self.probe.signals(self._hidden[0, -1], layer + 1))
        self._trace.hidden[token, layer] = _stored(hidden_statistics(before[0, -1], self._hidden[0, -1]))

    def leave(self, depth: int) -> None:
        """The token in flight leaves early; see ``TokenSource``."""
        deep = self.stepper.glimpse(self._cache, depth, self._hidden)
        self.stepper.fill(self._cache, depth, self._hidden, self.kv)
        self._emit(self.stepper.logits(self._hidden), depth, deep)

    def _emit(self, logits: torch.Tensor, depth: int, deep: torch.Tensor | None = None) -> None:
        at = len(self.tokens)
        token = self._given[at] if self._given else self.sampling.pick(logits, self._generator)
        self.tokens.append(token)
        self.ended = len(self.tokens) == len(self._given) if self._given else token in self.lm.end_ids
        trace = self._trace
        if deep is None:
            trace.margin[at, depth - 1], trace.entropy[at, depth - 1] = _stored(_margin_entropy(logits))
            return
        target = torch.tensor([token], device=self._hidden.device)
        found = exit_statistics(self.stepper.anatomy, [self._hidden[0], deep[0]], target)
        for name in ("agree", "kl", "dnll", "margin", "entropy"):
            getattr(trace, name)[at, depth - 1] = _stored(getattr(found, name)[0, 0])


def _margin_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Log-probability margin of the top two tokens, and entropy (nats): (2,)."""
    log = logits.log_softmax(-1)
    first, second = log.topk(2).values
    return torch.stack((first - second, -(log.exp() * log).sum()))


def _stored(values: torch.Tensor) -> Any:
    """Values as a trace set holds them: through float16."""
    return values.detach().cpu().to(torch.float16).to(torch.float32).numpy().astype(np.float32)
