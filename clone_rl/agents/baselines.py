"""Controllers that nobody trained: the governors of operating systems, and pacing with a confidence exit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from clone_rl.agents.controller import RuleController
from clone_rl.agents.rule import rule
from clone_rl.envs.observation import OBSERVATION

_AGREE, _KL = OBSERVATION.index("agree"), OBSERVATION.index("kl")
_PHASE, _LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")
_LOWEST = OBSERVATION.index("lowest_feasible")


class FixedRule(NamedTuple):
    """One operating point, full depth."""

    point: int


@rule(FixedRule)
def _fixed(self: Any, observation: Any, memory: Any, action: Any) -> None:  # noqa: ARG001
    action[0] = self.point


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


@dataclass(frozen=True)
class Fixed(RuleController):
    """One operating point, full depth: Linux's ``performance`` and ``powersave`` governors.

    Attributes:
        name: ``performance`` or ``powersave``.
        point: Operating point.
    """

    name: str
    point: int
    kind: ClassVar[str] = "layer"
    macs: ClassVar[int] = 0
    probes: ClassVar[bool] = False

    @property
    def rule(self) -> FixedRule:
        """The same point, always."""
        return FixedRule(self.point)

    def describe(self) -> dict[str, Any]:
        """Its point."""
        return {"point": self.point}


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
        chance, kl = self.agree_bar, self.kl_bar
        sure = math.log(chance / (1.0 - chance)) / 6.0 if 0.0 < chance < 1.0 else math.copysign(math.inf, chance - 0.5)
        nats = math.log10(kl) / 3.0 + 1.0 if kl > 0.0 else -math.inf
        return PaceRule(self.points - 1, sure, nats, self.boost, self.floor)

    def describe(self) -> dict[str, Any]:
        """Its tuned settings."""
        return {"agree_bar": self.agree_bar, "kl_bar": self.kl_bar, "boost": self.boost, "floor": self.floor}
