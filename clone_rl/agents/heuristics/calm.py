"""CALM: leave once the confidence passes a bar calibrated with a guarantee; race to idle, or pace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.baseline import Baseline, Parameter, Parameters, pacing_space
from clone_rl.agents.heuristics.exit_bars import Decoded
from clone_rl.agents.heuristics.learn_then_test import calibrate
from clone_rl.agents.heuristics.pace import PaceRule
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import ODDS_SCALE


@dataclass(frozen=True)
class Calm(RuleController):
    """CALM's exit (arXiv 2207.07061) on a bar of ``learn_then_test.calibrate``; its confidence is the probe's agreement.

    Attributes:
        points: Operating points of the chip.
        agree_odds: Exit where the probe's log-odds of agreement are at least this; above 6 never.
        boost: Points above the lowest feasible one.
        floor: Lowest point used; the top one races to idle.
        certified: How many bars the calibration certified; 0 means that full depth was all that it could vouch for.
        name: Shown in results.
    """

    points: int
    agree_odds: float
    boost: int = 0
    floor: int = 0
    certified: int = 0
    name: str = "calm-pace"
    kind: ClassVar[str] = "layer"
    probes: ClassVar[bool] = True

    @property
    def macs(self) -> int:
        """One latency estimate per operating point; none where it races."""
        return 0 if self.floor == self.points - 1 else self.points

    @property
    def rule(self) -> PaceRule:
        """That of ``Pace`` without a bar on KL."""
        return PaceRule(self.points - 1, self.agree_odds / ODDS_SCALE, math.inf, self.boost, self.floor)

    def describe(self) -> dict[str, Any]:
        """Bar and pacing."""
        return {
            "agree_odds": self.agree_odds,
            "boost": self.boost,
            "floor": self.floor,
            "certified": self.certified,
        }


class CalmPaceBaseline(Baseline):
    """The calibrated exit with pacing."""

    name = "calm-pace"
    source = "CALM (arXiv 2207.07061), Learn then Test (arXiv 2110.01052); VoltanaLLM (arXiv 2509.04827) for V/f"

    def space(self, control: Control) -> dict[str, Parameter]:
        """The pacing alone: a bar that was searched would have no guarantee."""
        return pacing_space(control.points)

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """The lowest feasible point."""
        return {"boost": 0, "floor": 0}

    def fit(self, control: Control, limits: Limits, seed: int, chosen: Parameters) -> dict[str, Any]:  # noqa: ARG002
        """Calibrate the bar."""
        found = calibrate(Decoded.of(control.traces, "train"), limits)
        return {"agree_odds": found.odds, "certified": found.certified, **chosen}

    def make(self, control: Control, settings: Mapping[str, Any]) -> Calm:
        """From bar and pacing."""
        return Calm(control.points, name=self.name, **settings)


class CalmRaceBaseline(CalmPaceBaseline):
    """The calibrated exit at the top point, then idle."""

    name = "calm-race"
    source = "CALM (arXiv 2207.07061), Learn then Test (arXiv 2110.01052)"

    def space(self, control: Control) -> dict[str, Parameter]:  # noqa: ARG002
        """Nothing is left to search."""
        return {}

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """Nothing is left to search."""
        return {}

    def fit(self, control: Control, limits: Limits, seed: int, chosen: Parameters) -> dict[str, Any]:
        """Calibrate the bar; race."""
        return {**super().fit(control, limits, seed, chosen), "boost": 0, "floor": control.points - 1}
