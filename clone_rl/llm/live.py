"""Generation with a controller in the loop: the model emits real tokens, the kernel keeps the energy account.

A live request is a trace of one document that is filled in as it goes: the same kernel, observations and charges as in
training. Nothing in the account comes from wall-clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from clone_rl.agents.controller import Decision
from clone_rl.envs.kernel import energy_j, may_exit
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.trace import blank_trace
from clone_rl.envs.world import build_emulator, build_world, figures
from clone_rl.errors import BadValueError
from clone_rl.llm.model import LanguageModel
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.stepper import Stepper
from clone_rl.llm.tokenizer import END_ID


class Decider(Protocol):
    """What generation asks of a controller; ``clone_rl.runtime.RuntimeController`` is one."""

    def decide(self, observation: NDArray[np.float32]) -> Decision:
        """What to do at this layer boundary."""
        ...

    def observe(self, latency_s: float, energy_j: float) -> None:
        """What the last decision took."""
        ...


@dataclass
class Generation:
    """A response and its account.

    Attributes:
        prompt, text: What was asked and what was generated.
        token_ids: The response's tokens.
        points: For each token, the operating point of each layer; -1 where the layer was skipped.
        emitted_s, due_s: For each token, when it left and when it was due, seconds from the request's start.
        figures: Totals, see ``clone_rl.envs.world.figures``.
        slo: Name of the service level.
    """

    prompt: str
    text: str
    token_ids: list[int]
    points: NDArray[np.int64]
    emitted_s: list[float]
    due_s: list[float]
    figures: dict[str, float]
    slo: str

    def summary(self) -> dict[str, Any]:
        """The figures that people ask for first."""
        f, tokens = self.figures, self.figures["tokens"]
        return {
            "text": self.text,
            "tokens": int(tokens),
            "energy_per_token_j": f["energy_j"] / tokens,
            "energy_j": f["energy_j"],
            "avg_power_w": f["energy_j"] / f["time_s"],
            "ttft_s": f["ttft_s"],
            "tpot_s": f["tpot_s"],
            "deadline_misses": int(f["late"]),
            "mean_depth": f["depth"] / tokens,
            "agreement": 1 - f["disagree"] / tokens,
            "dnll": f["dnll"] / tokens,
            "switches": int(f["switches"]),
            "slo": self.slo,
        }


class LiveSession:
    """A model attached to a scenario, ready to generate.

    Args:
        lm: The language model.
        scenario: Chip, service levels and rules; its overheads must be those of the controller.

    Raises:
        CloneRLError: The model cannot be stepped, or does not fit the chip.
    """

    def __init__(self, lm: LanguageModel, scenario: Scenario) -> None:
        self.lm, self.scenario = lm, scenario
        self.stepper = Stepper(lm.model)
        self.emulator = build_emulator(scenario, lm.shape)

    def close(self) -> None:
        """Detach from the model."""
        self.stepper.detach()

    def generate(
        self,
        prompt: str,
        controller: Decider,
        max_new_tokens: int = 60,
        sampling: Sampling | None = None,
        seed: int = 0,
        on_token: Callable[[int], None] = lambda _: None,
    ) -> Generation:
        """Answer one prompt.

        Keys and values of skipped layers are propagated from the exit state. Agreement, KL and dNLL compare each exit with
        the rest of the layers run on the same state; that reference is not charged.

        Args:
            prompt: Text to continue.
            controller: Asked at every layer boundary.
            max_new_tokens: Longest response, the end token included; cut to what the context holds.
            sampling: How tokens are chosen.
            seed: Of the service level, the interference and the sampling.
            on_token: Called with each new token.

        Raises:
            BadValueError: The prompt is empty or too long, or ``max_new_tokens`` is below 1.
        """
        if max_new_tokens < 1:
            raise BadValueError(f"max_new_tokens is {max_new_tokens}", "at least 1")
        ids = self.lm.encode_prompt(prompt)
        budget = min(max_new_tokens, self.lm.shape.context - len(ids))
        request = _Request(self, ids, budget, sampling or Sampling(), seed, controller)
        tokens = request.run(on_token)
        totals = {name: values[0].item() for name, values in figures(request.rows.state).items()}
        return Generation(
            prompt=prompt,
            text=self.lm.decode([t for t in tokens if t != END_ID]),
            token_ids=tokens,
            points=request.points[: len(tokens)],
            emitted_s=request.emitted_s,
            due_s=request.due_s,
            figures=totals,
            slo=self.scenario.slo[int(totals["slo"])].name,
        )


class _Request:
    """One response in the making."""

    def __init__(
        self, session: LiveSession, ids: list[int], budget: int, sampling: Sampling, seed: int, controller: Decider
    ) -> None:
        self.lm, self.stepper, self.controller = session.lm, session.stepper, controller
        self.layers, self.exit_action = self.lm.shape.layers, len(session.emulator.points)
        self.trace = blank_trace(self.layers, len(ids), budget)
        world = build_world(session.scenario, self.trace, "train", session.emulator)
        self.rows = Rows(world, 1)
        self.observation = self.rows.reset(np.array([seed]), np.zeros(1, np.int64))[0]
        self.state = self.rows.state[0]
        self.sampling, self.generator = sampling, torch.Generator().manual_seed(seed)
        self.ids, self.cache = ids, self.stepper.new_cache()
        self.points = np.full((budget, self.layers), -1)
        self.emitted_s: list[float] = []
        self.due_s: list[float] = []

    def decide(self) -> tuple[int, bool]:
        """Ask the controller; returns its action, and whether the kernel will take it for an exit."""
        decision = self.controller.decide(self.observation)
        action = self.exit_action if decision.exit else decision.operating_point
        taken = int(self.state["pending"]) if self.rows.world.rules[0]["delay"] else action
        return action, taken == self.exit_action and may_exit(self.state)

    def advance(self, action: int) -> None:
        """Let the kernel account for one decision."""
        token, layer = int(self.state["token"]), int(self.state["layer"])
        before_depth = float(self.state["depth"])
        before_s, before_j, due_s = float(self.state["clock_s"]), energy_j(self.state), float(self.state["due_s"])
        out = self.rows.step(np.array([[action]]))
        self.observation = out.observation[0]
        self.controller.observe(float(self.state["clock_s"]) - before_s, energy_j(self.state) - before_j)
        emitted = int(self.state["token"]) > token
        if not emitted or float(self.state["depth"]) - before_depth == layer + 1:
            self.points[token, layer] = self.state["point"]
        if emitted:
            self.due_s.append(due_s)
            self.emitted_s.append(float(self.state["last_s"]))

    def choose(self, logits: torch.Tensor) -> int:
        """Pick the next token; the end token ends the request."""
        token = self.sampling.pick(logits, self.generator)
        if token == END_ID:
            self.state["tokens"] = self.state["token"] + 1
        return token

    def prefill(self) -> int:
        """The prompt at full depth."""
        logits = self.stepper.prefill(torch.tensor([self.ids]), self.cache)
        for layer in range(self.layers):
            action, _ = self.decide()
            if layer == self.layers - 1:
                token = self.choose(logits)
            self.advance(action)
        return token

    def leave(self, hidden: torch.Tensor, depth: int) -> int:
        """Emit from an exit: measure it against full depth, then fill the skipped layers' caches from its state."""
        early = self.stepper.logits(hidden)
        deep = hidden
        for index in range(depth, self.layers):
            deep = self.stepper.run(index, deep)
            self.stepper.forget_last(self.cache, index)
        for index in range(depth, self.layers):
            self.stepper.write_kv(index, hidden)
        token = self.choose(early)
        full_log, early_log = F.log_softmax(self.stepper.logits(deep), -1), F.log_softmax(early, -1)
        at = (int(self.state["token"]), depth - 1)
        self.trace.agree[at] = float(full_log.argmax() == early_log.argmax())
        self.trace.kl[at] = float((full_log.exp() * (full_log - early_log)).sum().clamp_min(0))
        self.trace.dnll[at] = float(full_log[token] - early_log[token])
        return token

    def decode(self, last: int) -> int:
        """One token after the first."""
        hidden = self.stepper.plan(last, self.cache)
        for layer in range(self.layers):
            action, leaves = self.decide()
            if leaves:
                token = self.leave(hidden, layer)
                self.advance(action)
                return token
            hidden = self.stepper.run(layer, hidden)
            if layer < self.layers - 1:
                self.trace.signal[int(self.state["token"]), layer] = self.lm.probe.signals(hidden[0, -1], layer + 1).numpy()
            else:
                token = self.choose(self.stepper.logits(hidden))
            self.advance(action)
        return token

    def run(self, on_token: Callable[[int], None]) -> list[int]:
        """Tokens of the whole response."""
        tokens = [self.prefill()]
        on_token(tokens[-1])
        while not self.state["done"]:
            tokens.append(self.decode(tokens[-1]))
            on_token(tokens[-1])
        return tokens
