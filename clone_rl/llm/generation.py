"""Generation with any exit rule, for any decoder-only model: ``transformers``' ``generate`` with a decision at every layer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, overload

import torch

from clone_rl.agents.controller import Decision
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.ledger import Ledger
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.stepper import Stepper

Rule = Callable[[int, torch.Tensor], "bool | Decision"]
"""Asked at each layer boundary of each token after the first: layers run so far (0 to L - 1) and the state (1, 1, hidden).

It answers whether to leave here, or a ``Decision`` of operating point and exit. An exit before layer 1 has run is not taken.
A rule that reads the head counts that in an attribute ``reads`` (see ``HeadConfidence``), and every reading is charged.
"""

GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class GenerateOutput:
    """What ``generate`` found.

    Attributes:
        sequences: (1, P + n) prompt and response.
        depths: For each token of the response, the layers that ran.
        ledger: What ran, as shapes: price it with ``ledger.total(emulator)``.
    """

    sequences: torch.Tensor
    depths: list[int]
    ledger: Ledger


def _checked(input_ids: Any, attention_mask: Any, max_new_tokens: Any, stepper: Stepper) -> torch.Tensor:
    anatomy = stepper.anatomy
    try:
        ids = torch.as_tensor(input_ids, device=anatomy.device)
    except (TypeError, ValueError, RuntimeError):
        raise BadValueError(f"input_ids are a {type(input_ids).__name__}", "give token ids: (1, tokens)") from None
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise BadValueError(f"input_ids of shape {tuple(ids.shape)}", "one sequence at a time: (1, tokens)")
    if ids.shape[1] < 1:
        raise BadValueError("input_ids are empty", "give at least one token")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise BadValueError(f"input_ids of type {ids.dtype}", "token ids are whole numbers")
    if attention_mask is not None:
        mask = torch.as_tensor(attention_mask)
        if mask.numel() != ids.numel():
            raise BadValueError(f"attention_mask of shape {tuple(mask.shape)}", f"{tuple(ids.shape)}, as input_ids")
        if not bool(mask.bool().all()):
            raise BadValueError("attention_mask hides tokens", "one sequence needs no padding: drop the padded tokens")
    for token in (int(ids.min()), int(ids.max())):
        if not 0 <= token < anatomy.tokens:
            raise BadValueError(f"token {token} in input_ids", f"the model has tokens 0 to {anatomy.tokens - 1}")
    wanted = int(max_new_tokens) if isinstance(max_new_tokens, Integral) and not isinstance(max_new_tokens, bool) else 0
    if wanted < 1:
        raise BadValueError(f"max_new_tokens is {max_new_tokens!r}", "a whole number, at least 1")
    room = anatomy.context - ids.shape[1]
    if wanted > room:
        raise BadValueError(
            f"a prompt of {ids.shape[1]} tokens and {wanted} new ones exceed the context of {anatomy.context}",
            f"ask for at most {max(0, room)} new tokens",
        )
    return ids.long()


def _end_ids(model: Any) -> frozenset[int]:
    settings = getattr(model, "generation_config", None)
    end = getattr(settings, "eos_token_id", None)
    return frozenset() if end is None else frozenset(end if isinstance(end, list | tuple) else [end])


@overload
def generate(
    model: Any,
    input_ids: Any,
    controller: Rule | None = ...,
    kv: str = ...,
    max_new_tokens: int = ...,
    *,
    sampling: Sampling = ...,
    seed: int = ...,
    attention_mask: Any = ...,
    end_ids: Collection[int] | None = ...,
    on_token: Callable[[int], None] = ...,
    return_dict_in_generate: Literal[False] = ...,
) -> torch.Tensor: ...
@overload
def generate(
    model: Any,
    input_ids: Any,
    controller: Rule | None = ...,
    kv: str = ...,
    max_new_tokens: int = ...,
    *,
    sampling: Sampling = ...,
    seed: int = ...,
    attention_mask: Any = ...,
    end_ids: Collection[int] | None = ...,
    on_token: Callable[[int], None] = ...,
    return_dict_in_generate: Literal[True],
) -> GenerateOutput: ...
def generate(
    model: Any,
    input_ids: Any,
    controller: Rule | None = None,
    kv: str = "propagate",
    max_new_tokens: int = 20,
    *,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    attention_mask: Any = None,
    end_ids: Collection[int] | None = None,
    on_token: Callable[[int], None] = lambda _: None,
    return_dict_in_generate: bool = False,
) -> torch.Tensor | GenerateOutput:
    """Generate with a decision at every layer boundary; without one it is ``model.generate``, token for token.

    Penalties and forced tokens of the model's ``generation_config`` are not applied.

    Args:
        model: A ``transformers`` causal language model, a ``LanguageModel``, or a ``Stepper`` (which saves the self-test).
        input_ids: (1, P) or (P,) tokens of the prompt, which runs at full depth.
        controller: The exit rule; None never leaves early.
        kv: What skipped layers get as keys and values, one of ``clone_rl.hw_emulator.ledger.KV``.
        max_new_tokens: Longest response.
        sampling: How tokens are chosen; greedy unless told.
        seed: Of the sampling.
        attention_mask: All ones, or None.
        end_ids: Tokens that end the response; the model's own unless told.
        on_token: Called with each new token.
        return_dict_in_generate: Return depths and ledger as well.

    Returns:
        (1, P + n) tokens, or a ``GenerateOutput``.

    Raises:
        UnsupportedModelError: The model cannot be stepped.
        BadValueError: More than one sequence, padding, too long for the context, or a strategy that the model cannot serve.
        UnknownNameError: Unknown strategy.

    >>> from clone_rl.llm import generate, load_model
    >>> lm = load_model("default")
    >>> out = generate(lm, lm.encode("The king"), lambda layers, hidden: layers == 6, max_new_tokens=8,
    ...                return_dict_in_generate=True)
    >>> out.depths
    [10, 6, 6, 6, 6, 6, 6, 6]
    """
    stepper = model if isinstance(model, Stepper) else Stepper(model)
    stepper.check_strategy(kv)
    if controller is not None and not callable(controller):
        raise BadValueError(f"controller {controller!r}", "a rule: a function of (layers run, hidden state), or None")
    ids = _checked(input_ids, attention_mask, max_new_tokens, stepper)
    ends = _end_ids(stepper.model) if end_ids is None else frozenset(end_ids)
    loop = _Loop(stepper, controller, kv, int(ids.shape[1]))
    generator = torch.Generator().manual_seed(seed)
    logits, tokens = loop.prefill(ids), []
    while True:
        tokens.append(sampling.pick(logits.cpu(), generator))
        on_token(tokens[-1])
        if len(tokens) == max_new_tokens or tokens[-1] in ends:
            break
        logits = loop.decode(tokens[-1])
    sequences = torch.cat([ids, torch.tensor([tokens], device=ids.device)], 1)
    return GenerateOutput(sequences, loop.depths, loop.ledger) if return_dict_in_generate else sequences


class _Loop:
    """The decode loop of one response."""

    def __init__(self, stepper: Stepper, controller: Rule | None, kv: str, prompt_tokens: int) -> None:
        self.stepper, self.controller, self.kv = stepper, controller, kv
        self.cache, self.ledger = stepper.new_cache(), Ledger(stepper.layers, kv)
        self.ledger.start(prompt_tokens)
        self.depths: list[int] = []
        self.point: int | None = None  # the top one, until a decision names another

    def prefill(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.stepper.prefill(ids, self.cache)
        for layer in range(self.stepper.layers):
            self.ledger.layer(layer, self.point)
        return self.emit(logits, self.stepper.layers)

    def emit(self, logits: torch.Tensor, depth: int, read: bool = False) -> torch.Tensor:
        self.ledger.head(self.point, read)
        self.depths.append(depth)
        return logits

    def decode(self, token: int) -> torch.Tensor:
        stepper = self.stepper
        hidden = stepper.plan(token, self.cache)
        for layer in range(stepper.layers):
            reads = getattr(self.controller, "reads", 0)
            leaves = self.controller is not None and self.leaves(self.controller, layer, hidden)
            read = getattr(self.controller, "reads", 0) - reads
            for _ in range(read):
                self.ledger.read_head(self.point)
            if leaves:
                stepper.fill(self.cache, layer, hidden, self.kv)
                self.ledger.leave(layer, self.point)
                return self.emit(stepper.logits(hidden), layer, bool(read))
            hidden = stepper.run(layer, hidden, self.cache)
            self.ledger.layer(layer, self.point)
        return self.emit(stepper.logits(hidden), stepper.layers)

    def leaves(self, controller: Rule, layer: int, hidden: torch.Tensor) -> bool:
        answer = controller(layer, hidden)
        if not isinstance(answer, Decision):
            return bool(answer) and layer > 0
        self.ledger.policy(self.point)
        if not answer.exit and answer.operating_point != self.point:
            self.ledger.switch(self.point, answer.operating_point)
            self.point = answer.operating_point
        return answer.exit and layer > 0
