"""Controllers that nobody trained: the governors of operating systems, and pacing with a confidence exit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clone_rl.agents.controller import Actions, Observations
from clone_rl.envs.observation import OBSERVATION

_AGREE, _KL = OBSERVATION.index("agree"), OBSERVATION.index("kl")
_PHASE, _LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")
_LOWEST = OBSERVATION.index("lowest_feasible")


@dataclass(frozen=True)
class Fixed:
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

    def act(self, observations: Observations) -> Actions:
        """The same point, always."""
        return np.full((len(observations), 1), self.point)

    def describe(self) -> dict[str, Any]:
        """Its point."""
        return {"point": self.point}


@dataclass(frozen=True)
class Pace:
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

    def act(self, observations: Observations) -> Actions:
        """Actions of layer control."""
        top = self.points - 1
        point = np.rint(observations[:, _LOWEST] * top).astype(np.int64) + self.boost
        point = np.clip(point, self.floor, top)
        agree = 1 / (1 + np.exp(-6 * observations[:, _AGREE].astype(float)))
        kl = 10 ** (3 * observations[:, _KL].astype(float) - 3)
        sure = (agree >= self.agree_bar) & (kl <= self.kl_bar)
        leave = sure & (observations[:, _PHASE] > 0) & (observations[:, _LAYER] > 0)
        return np.where(leave, self.points, point)[:, None]

    def describe(self) -> dict[str, Any]:
        """Its tuned settings."""
        return {"agree_bar": self.agree_bar, "kl_bar": self.kl_bar, "boost": self.boost, "floor": self.floor}
