"""The model in the loop as a source of tokens: the same columns as a recorded trace, made while the request runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from clone_rl.envs.trace import SIGNALS, TraceSet, blank_trace
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.workload import is_count
from clone_rl.llm.documents import Document
from clone_rl.llm.exits import exit_statistics, hidden_statistics
from clone_rl.llm.model import LanguageModel
from clone_rl.llm.probe import Probe
from clone_rl.llm.probe_reader import ProbeReader
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.stepper import Stepper


def _go_on(_token: int) -> None:
    """Ends no response."""


Signals = Callable[[torch.Tensor, int], Any]


class SteppedSource(ABC):
    """A ``clone_rl.envs.source.TokenSource`` on a stepper; how a token is chosen is left to its kinds.

    Args:
        stepper: The model's.
        probe: Its exit probe; None where nobody looks at what it says.
        kv: What skipped layers get as keys and values, one of ``clone_rl.hw_emulator.ledger.KV``.
        reference: Compare every exit with the rest of the layers run on the same state. That takes the time of full depth
            and is not charged; without it, what an exit did to quality is unknown, which is written as NaN.
        extras: Fill in the columns that ``clone_rl.envs.signals.EXTRA_SIGNALS`` are read from.
        on_token: Called with each token; True ends the response with it.

    Attributes:
        layers: Decoder layers.
        ended: Whether the token emitted last was the end of the response.
        tokens: The response so far.
        cache: Keys and values of the request.

    Raises:
        BadValueError: A strategy that does not work with this model.
    """

    def __init__(
        self,
        stepper: Stepper,
        probe: Probe | None,
        kv: str = "propagate",
        reference: bool = True,
        extras: bool = True,
        on_token: Callable[[int], bool | None] = _go_on,
    ) -> None:
        self.stepper, self.probe, self.kv = stepper, probe, stepper.check_strategy(kv)
        self.probe_dots = probe.dots if probe else len(SIGNALS)
        self.layers, self.ended = stepper.layers, False
        self.tokens: list[int] = []
        self._reference, self._extras, self._on_token = reference, extras, on_token
        self._signals: Signals | None = ProbeReader(probe) if isinstance(probe, Probe) else probe and probe.signals

    @abstractmethod
    def choose(self, logits: torch.Tensor) -> int:
        """The next token from logits (vocabulary,); sets ``ended`` where it is the last."""

    def close(self) -> None:
        """Let go of the model."""
        self.stepper.detach()

    def begin(self, prompt: Sequence[int], longest: int) -> TraceSet:
        """A request of so many tokens at most; gives the trace that will tell of it.

        Raises:
            BadValueError: It has no room in the model's context.
        """
        self._prompt, self.cache = list(prompt), self.stepper.new_cache()
        self.tokens, self.ended = [], False
        self._trace = blank_trace(self.layers, len(prompt), longest)
        self._trace.card["expected_tokens"] = float(longest)
        return self._trace

    def run(self, layer: int) -> None:
        """The next layer of the token in flight; see ``TokenSource``."""
        if not self.tokens:
            if layer == 0:
                ids = torch.tensor([self._prompt], device=self.stepper.anatomy.device)
                self._logits = self.stepper.prefill(ids, self.cache)
            if layer == self.layers - 1:
                self._emit(self._logits, self.layers)
            return
        if layer == 0:
            self._hidden = self.stepper.plan(self.tokens[-1], self.cache)
        before = self._hidden
        self._hidden = self.stepper.run(layer, before, self.cache)
        if layer == self.layers - 1:
            self._emit(self.stepper.logits(self._hidden), self.layers)
            return
        token = len(self.tokens)
        if self._signals:
            agree, kl = self._signals(self._hidden[0, -1], layer + 1)
            self._trace.signal[token, layer] = np.float16(agree), np.float16(kl)  # as a trace set holds them
        if self._extras:
            self._trace.hidden[token, layer] = _stored(hidden_statistics(before[0, -1], self._hidden[0, -1]))

    def leave(self, depth: int) -> None:
        """The token in flight leaves early; see ``TokenSource``."""
        deep = self.stepper.glimpse(self.cache, depth, self._hidden) if self._reference else None
        self.stepper.fill(self.cache, depth, self._hidden, self.kv)
        self._emit(self.stepper.logits(self._hidden), depth, deep)

    def _emit(self, logits: torch.Tensor, depth: int, deep: torch.Tensor | None = None) -> None:
        at, trace = len(self.tokens), self._trace
        with torch.inference_mode(False), torch.no_grad():  # others' code, which may keep the tensors that it makes
            token = self.choose(logits)
            self.tokens.append(token)
            self.ended |= self._on_token(token) is True
        if deep is not None:
            target = torch.tensor([token], device=self._hidden.device)
            found = exit_statistics(self.stepper.anatomy, [self._hidden[0], deep[0]], target)
            for name in ("agree", "kl", "dnll", "margin", "entropy"):
                getattr(trace, name)[at, depth - 1] = _stored(getattr(found, name)[0, 0])
            return
        if depth < self.layers:
            trace.agree[at, depth - 1] = trace.kl[at, depth - 1] = trace.dnll[at, depth - 1] = np.nan
        if self._extras:
            trace.margin[at, depth - 1], trace.entropy[at, depth - 1] = _stored(_margin_entropy(logits))


class ModelSource(SteppedSource):
    """Answers documents with a language model.

    A document with a response is teacher-forced: its tokens are emitted whatever the exits would have said, which is what a
    recorded trace replays; with ``kv="exact"`` the two are the same request. A document that is a prompt alone is answered by
    the model itself, from the exits that the controller takes.

    Args:
        lm: The model, with its probe.
        documents: What to answer.
        kv: As in ``SteppedSource``.
        max_new_tokens: Longest response of a prompt that stands alone.
        sampling: How its tokens are chosen.
        expected_tokens: Predicted length of a response, by kind of document; without one, the longest that it may become.
        stepper: The model's, where one is at hand already.
        probes: Whether the probe is read.
        reference, extras, on_token: As in ``SteppedSource``.

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
        probes: bool = True,
        reference: bool = True,
        extras: bool = True,
        on_token: Callable[[int], bool | None] = _go_on,
    ) -> None:
        if not documents:
            raise BadValueError("no documents", "give at least one")
        if not is_count(max_new_tokens) or max_new_tokens < 1:
            raise BadValueError(f"max_new_tokens is {max_new_tokens!r}", "a whole number, at least 1")
        super().__init__(stepper or Stepper(lm), lm.need_probe() if probes else None, kv, reference, extras, on_token)
        self.lm, self.documents = lm, list(documents)
        self.max_new_tokens, self.sampling = max_new_tokens, sampling or Sampling()
        self.expected_tokens = expected_tokens or {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has no request in flight and a stepper of its own."""
        given = self.documents, self.kv, self.max_new_tokens, self.sampling, self.expected_tokens
        how = None, self.probe is not None, self._reference, self._extras, self._on_token
        return type(self), (self.lm, *given, *how)

    def __len__(self) -> int:
        return len(self.documents)

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
        trace = self.begin(prompt, longest)
        trace.card["expected_tokens"] = self.expected_tokens.get(chosen.kind, float(longest))
        return trace

    def choose(self, logits: torch.Tensor) -> int:
        """The document's own next token, or one that is sampled."""
        at = len(self.tokens)
        if self._given:
            self.ended = at + 1 == len(self._given)
            return self._given[at]
        token = self.sampling.pick(logits, self._generator)
        self.ended = token in self.lm.end_ids
        return token


def _margin_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Log-probability margin of the top two tokens, and entropy (nats): (2,)."""
    log = logits.log_softmax(-1)
    first, second = log.topk(2).values
    return torch.stack((first - second, -(log.exp() * log).sum()))


def _stored(values: torch.Tensor) -> Any:
    """Values as a trace set holds them: through float16."""
    return values.detach().cpu().to(torch.float16).to(torch.float32).numpy().astype(np.float32)
