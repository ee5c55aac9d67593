"""Generation with a controller in the loop: the model emits real tokens, the kernel keeps the energy account.

Nothing in the account comes from wall-clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from clone_rl.agents.controller import Decision, LayerCost
from clone_rl.envs.live import LiveControl, LiveRequest
from clone_rl.envs.scenario import Scenario, ServiceLevel
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

    def observe(self, cost: LayerCost) -> None:
        """What the last decision took."""
        ...


@dataclass
class Generation:
    """A response and its account.

    Attributes:
        prompt, text: What was asked and what was generated.
        token_ids: The response's tokens.
        points: For each token, the operating point of each layer; -1 where the layer was skipped.
        emitted_s, due_s: For each token, when it left and when it was due, seconds from when the request was made.
        figures: Totals, see ``clone_rl.envs.figures.FIGURES``; times count the wait.
        slo: Name of the service level.
        ledger: What ran, as shapes.
        waited_s: How long the request had waited before.
        targets: ``ttft_s`` and ``tpot_s`` that held, seconds; of a level that was drawn, with the slack that was drawn.
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
    waited_s: float = 0.0
    targets: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The text, ``summarised`` figures, and the ``targets`` that held."""
        return {"text": self.text, **summarised(self.figures, self.slo, self.waited_s), "targets": self.targets}


def per_later_token(figures: Mapping[str, float]) -> float | None:
    """TPOT of a request, seconds; None for a single token, which has none."""
    return float(figures["tpot_s"]) if figures["tokens"] > 1 else None


def summarised(figures: Mapping[str, float], slo: str, waited_s: float = 0.0) -> dict[str, Any]:
    """The figures of a request that people ask for first.

    None stands for agreement and dNLL where nothing was compared, and for the TPOT of a single token.

    Args:
        figures: Totals, see ``clone_rl.envs.figures.FIGURES``.
        slo: Name of the service level.
        waited_s: How long the request had waited before.
    """
    f, tokens = figures, max(1, figures["tokens"])
    return {
        "tokens": int(f["tokens"]),
        "energy_per_token_j": f["energy_j"] / tokens,
        "energy_j": f["energy_j"],
        "avg_power_w": f["energy_j"] / (f["time_s"] - waited_s),
        "ttft_s": f["ttft_s"],
        "tpot_s": per_later_token(f),
        "deadline_misses": int(f["late"]),
        "mean_depth": f["depth"] / tokens,
        "agreement": _known(1 - f["disagree"] / tokens),
        "dnll": _known(f["dnll"] / tokens),
        "switches": int(f["switches"]),
        "slo": slo,
        "waited_s": waited_s,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


@torch.inference_mode()
def drive(request: LiveRequest, controller: Decider) -> None:
    """Let a controller decide until the response ends; in inference mode, as entering it at every layer takes time."""
    decide, step, observe, leaving = controller.decide, request.step, controller.observe, request.exit_action
    before_s, before_j = request.waited_s, 0.0  # the first decision's cost includes waking
    while not request.done:
        decision = decide(request.observation)
        step(leaving if decision.exit else decision.operating_point)
        clock_s, energy_j = request.clock_s, request.energy_j
        observe(LayerCost(clock_s - before_s, energy_j - before_j))
        before_s, before_j = clock_s, energy_j


class LiveSession:
    """A model attached to a scenario, ready to generate.

    Args:
        lm: The language model.
        scenario: Chip, service levels and rules; its overheads must be those of the controller.

    Raises:
        CloneRLError: The model cannot be stepped, does not fit the chip, or has no probe and the scenario reads it.
    """

    def __init__(self, lm: LanguageModel, scenario: Scenario) -> None:
        self.lm, self.scenario = lm, scenario
        self.stepper = Stepper(lm)
        probe = lm.need_probe() if scenario.probe else None
        self.emulator = build_emulators(scenario, lm.shape, *[probe.dots] if probe else [])[0]
        self._live = LiveControl(scenario, self.emulator)

    def close(self) -> None:
        """Detach from the model."""
        self.stepper.detach()

    def generate(
        self,
        prompt: str | Sequence[int],
        controller: Decider,
        max_new_tokens: int = 60,
        sampling: Sampling | None = None,
        seed: int = 0,
        on_token: Callable[[int], bool | None] = lambda _: None,
        slo: ServiceLevel | str | None = None,
        waited_s: float = 0.0,
        reference: bool = True,
    ) -> Generation:
        """Answer one prompt.

        Keys and values of skipped layers follow the scenario's ``kv``.

        Args:
            prompt: Text to continue, or its tokens, which are taken as they are.
            controller: Asked at every layer boundary.
            max_new_tokens: Longest response, the end token included; cut to what the context holds.
            sampling: How tokens are chosen.
            seed: Of the service level, the interference and the sampling.
            on_token: Called with each new token; True ends the response with it. What it raises ends the request, and the
                session goes on with the next.
            slo: A service level whose targets hold as they are, or the name of one of the scenario's classes; None draws one.
            waited_s: Seconds that the request has waited: its clock starts there, so TTFT and due times count it.
            reference: Compare each exit with the rest of the layers run on the same state, for agreement, KL and dNLL. That is
                not charged, but takes the time that the exit saves; without it those figures are not known.

        Raises:
            BadValueError: The prompt is empty, too long or holds a token that there is not, ``max_new_tokens`` is below 1, or
                a wait or a target is not a time that can be served.
            UnknownNameError: The scenario has no such service level.
        """
        if max_new_tokens < 1:
            raise BadValueError(f"max_new_tokens is {max_new_tokens}", "at least 1")
        ids = self.lm.encode_prompt(prompt) if isinstance(prompt, str) else self._given(prompt)
        document = Document("live", "test", tuple(ids), len(ids), sampled=True)
        budget = min(max_new_tokens, self.lm.shape.context - len(ids))
        source = ModelSource(
            self.lm,
            [document],
            self.scenario.kv,
            budget,
            sampling,
            stepper=self.stepper,
            probes=self.scenario.probe,
            reference=reference,
            extras=bool(self.scenario.signals),
            on_token=on_token,
        )
        request = LiveRequest(self._live, source, seed=seed, slo=slo, waited_s=waited_s)
        try:
            drive(request, controller)
        finally:
            self.stepper.detach()
        totals = request.figures()
        return Generation(
            prompt=prompt if isinstance(prompt, str) else self.lm.decode(ids),
            text=self.lm.decode([t for t in source.tokens if t not in self.lm.end_ids]),
            token_ids=source.tokens,
            points=request.points[: len(source.tokens)],
            emitted_s=request.emitted_s,
            due_s=request.due_s,
            figures=totals,
            slo=request.slo.name,
            ledger=request.ledger,
            waited_s=request.waited_s,
            targets=request.targets,
        )

    def _given(self, prompt: Sequence[int]) -> list[int]:
        """Tokens of a prompt, checked."""
        shape = self.lm.shape
        try:
            ids = [index(token) for token in prompt]
        except TypeError:
            raise BadValueError(f"a prompt of type {type(prompt).__name__}", "text, or a sequence of token ids") from None
        if not ids:
            raise BadValueError("the prompt is empty", "give at least one token")
        if wrong := [token for token in ids if not 0 <= token < shape.vocab_size]:
            raise BadValueError(f"token {wrong[0]} in the prompt", f"the model has tokens 0 to {shape.vocab_size - 1}")
        if len(ids) >= shape.context:
            raise BadValueError(
                f"the prompt has {len(ids)} tokens and the context {shape.context}",
                f"shorten it to at most {shape.context - 1} tokens",
            )
        return ids
