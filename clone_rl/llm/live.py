"""Generation with a controller in the loop: the model emits real tokens, the kernel keeps the energy account.

Nothing in the account comes from wall-clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Decision
from clone_rl.envs.live import LiveControl, LiveRequest
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.world import build_emulators
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.ledger import Ledger
from clone_rl.llm.documents import Document
from clone_rl.llm.model import LanguageModel
from clone_rl.llm.sampling import Sampling
from clone_rl.llm.source import ModelSource
from clone_rl.llm.stepper import Stepper


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
        figures: Totals, see ``clone_rl.envs.figures.FIGURES``.
        slo: Name of the service level.
        ledger: What ran, as shapes.
    """

    prompt: str
    text: str
    token_ids: list[int]
    points: NDArray[np.int64]
    emitted_s: list[float]
    due_s: list[float]
    figures: dict[str, float]
    slo: str
    ledger: Ledger

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
        self.stepper = Stepper(lm)
        self.emulator = build_emulators(scenario, lm.shape, lm.need_probe().dots)[0]
        self._live = LiveControl(scenario, self.emulator)

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

        Keys and values of skipped layers follow the scenario's ``kv``. Agreement, KL and dNLL compare each exit with the
        rest of the layers run on the same state; that reference is not charged.

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
        document = Document("live", "test", tuple(ids), len(ids), sampled=True)
        budget = min(max_new_tokens, self.lm.shape.context - len(ids))
        source = ModelSource(self.lm, [document], self.scenario.kv, budget, sampling, stepper=self.stepper)
        request = LiveRequest(self._live, source, seed=seed)
        emitted = 0
        while not request.done:
            decision = controller.decide(request.observation)
            before_s, before_j = request.clock_s, request.energy_j
            request.step(request.exit_action if decision.exit else decision.operating_point)
            controller.observe(request.clock_s - before_s, request.energy_j - before_j)
            if len(source.tokens) > emitted:
                emitted = len(source.tokens)
                on_token(source.tokens[-1])
        totals = request.figures()
        return Generation(
            prompt=prompt,
            text=self.lm.decode([t for t in source.tokens if t not in self.lm.end_ids]),
            token_ids=source.tokens,
            points=request.points[:emitted],
            emitted_s=request.emitted_s,
            due_s=request.due_s,
            figures=totals,
            slo=self.scenario.slo[int(totals["slo"])].name,
            ledger=request.ledger,
        )
