"""Lowest point that meets the due time at full depth, and a calibrated confidence exit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.baseline import Baseline, Parameter, Parameters, pacing_space
from clone_rl.agents.heuristics.exit_bars import exit_bars
from clone_rl.agents.rollout import charged_for, run_requests
from clone_rl.agents.rule import rule
from clone_rl.envs.control import Control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import ODDS_SCALE, shown_agreement, shown_kl

_AGREE, _KL = OBSERVATION.index("agree"), OBSERVATION.index("kl")
_PHASE, _LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")
_LOWEST = OBSERVATION.index("lowest_feasible")

LOG_ODDS = Parameter(-1.0, 6.5)
"""Range of a bar on the probe's log-odds of agreement, which are shown up to 6: a higher bar is never passed."""


class PaceRule(NamedTuple):
    """``Pace`` with its bars as they are observed."""

    top: int
    agree_bar: float
    kl_bar: float
    boost: int
    floor: int


@rule(PaceRule)
def _pace(self: Any, observation: Any, memory: Any, action: Any) -> None:  # noqa: ARG001
    sure = observation[_AGREE] >= self.agree_bar and observation[_KL] <= self.kl_bar
    if sure and observation[_PHASE] > 0 and observation[_LAYER] > 0:
        action[0] = self.top + 1
        return
    point = int(np.rint(observation[_LOWEST] * self.top)) + self.boost
    action[0] = min(max(point, self.floor), self.top)


def log_odds(chance: float) -> float:
    """A bar on the probability of agreement on the scale that is searched, within ``LOG_ODDS``."""
    return min(max(ODDS_SCALE * shown_agreement(chance), LOG_ODDS.low), LOG_ODDS.high)


def chance_of(odds: float) -> float:
    """A bar on the probability from one that was searched; 2 above what is ever shown."""
    return 1.0 / (1.0 + math.exp(-odds)) if odds <= ODDS_SCALE else 2.0


@dataclass(frozen=True)
class Pace(RuleController):
    """Lowest point that meets the due time at full depth, and a calibrated confidence exit.

    The pacing rule is VoltanaLLM's (arXiv 2509.04827: lowest frequency whose predicted latency meets the target), the exit
    rule CALM's (arXiv 2207.07061: leave once the confidence passes a calibrated bar).

    Attributes:
        points: Operating points of the chip.
        agree_bar: Exit where the probe's probability of agreement is at least this; above 1 never.
        kl_bar: And its predicted KL (nats) is at most this.
        boost: Points above the lowest feasible one, a margin.
        floor: Lowest point used: below it leakage may cost more than the voltage saves.
    """

    points: int
    agree_bar: float = 2.0
    kl_bar: float = 0.0
    boost: int = 0
    floor: int = 0
    name: str = "pace"
    kind: ClassVar[str] = "layer"
    probes: ClassVar[bool] = True

    @property
    def macs(self) -> int:
        """One latency estimate per operating point."""
        return self.points

    @property
    def rule(self) -> PaceRule:
        """The bars on the observation's scale, see ``clone_rl.envs.trace.scaled_signals``."""
        agreement, nats = shown_agreement(self.agree_bar), shown_kl(self.kl_bar)
        return PaceRule(self.points - 1, agreement, nats, self.boost, self.floor)

    def describe(self) -> dict[str, Any]:
        """Its tuned settings."""
        return {"agree_bar": self.agree_bar, "kl_bar": self.kl_bar, "boost": self.boost, "floor": self.floor}


def tune_pace(
    control: Control,
    limits: Limits | None = None,
    seed: int = 0,
    progress: Callable[[Sequence[tuple[int, int]]], Iterable[tuple[int, int]]] = iter,
) -> Pace:
    """The pacing baseline with the least energy within the limits on the training split, bars and pacing one after the other.

    Where no setting holds the miss rate, the one with the fewest misses. ``clone_rl.agents.tune`` searches on from here.

    Args:
        control: The scenario.
        limits: What has to hold; the scenario's if None.
        seed: Of service levels and interference.
        progress: Wraps the settings to be tried (a progress bar).
    """
    limits = limits or control.scenario.limits
    agree_bar, kl_bar = exit_bars(control.traces, "train", limits)
    documents = control.traces.documents("train")
    base = Pace(control.points, agree_bar, kl_bar)
    control = charged_for(control, base, "train")  # the overheads are the same for every setting
    scored = []
    for boost, floor in progress([(b, f) for b in range(3) for f in range(max(1, base.points - 3))]):
        pace = replace(base, boost=boost, floor=floor)
        result = run_requests(control, pace, "train", documents, seed)
        miss = result["late"].sum() / result["tokens"].sum()
        scored.append((max(0.0, miss - limits.miss), result["energy_j"].sum(), pace))
    return min(scored, key=lambda entry: entry[:2])[2]


class PaceBaseline(Baseline):
    """``Pace`` with bars and pacing searched together."""

    name = "pace"
    source = "VoltanaLLM (arXiv 2509.04827) for V/f, CALM (arXiv 2207.07061) for exits"

    def space(self, control: Control) -> dict[str, Parameter]:
        """Both bars and the pacing."""
        return {"agree_odds": LOG_ODDS, "kl_bar": Parameter(0.003, 2.0, log=True), **pacing_space(control.points)}

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:
        """What ``tune_pace`` finds."""
        found = tune_pace(control, limits, seed)
        low = max(found.kl_bar, 0.003)
        return {"agree_odds": log_odds(found.agree_bar), "kl_bar": low, "boost": found.boost, "floor": found.floor}

    def fit(self, control: Control, limits: Limits, seed: int, chosen: Parameters) -> dict[str, Any]:  # noqa: ARG002
        """The bar on agreement as a probability."""
        settings = dict(chosen)
        return {"agree_bar": chance_of(settings.pop("agree_odds")), **settings}

    def make(self, control: Control, settings: Mapping[str, Any]) -> Pace:
        """From bars and pacing."""
        return Pace(control.points, **settings)
