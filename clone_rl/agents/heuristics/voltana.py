"""Lowest feasible pacing without exits, once per token: VoltanaLLM's frequency selection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.baseline import Baseline, Parameter
from clone_rl.agents.heuristics.chip_table import ChipTable, lowest_point
from clone_rl.agents.rule import rule
from clone_rl.envs.control import Control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits

_PHASE, _LAYER, _PRESSURE = OBSERVATION.index("phase"), OBSERVATION.index("layer"), OBSERVATION.index("pressure")


class VoltanaRule(NamedTuple):
    """``Voltana``, compiled."""

    table: ChipTable
    share: float
    floor: int
    every_layer: bool


@rule(VoltanaRule)
def _voltana(self: Any, observation: Any, memory: Any, action: Any) -> None:
    if self.every_layer or observation[_LAYER] == 0:
        point = lowest_point(self.table, int(observation[_PHASE]), observation[_PRESSURE], self.share)
        memory[0] = max(point, self.floor)
    action[0] = int(memory[0])


@dataclass(frozen=True)
class Voltana(RuleController):
    """Full depth at the lowest point whose predicted latency meets the due time.

    VoltanaLLM (arXiv 2509.04827) takes, at every iteration, the lowest frequency whose predicted latency is at most the target
    less the time already waited, and the highest where none is.

    Attributes:
        table: The chip.
        margin: Share of the time left that is kept in reserve.
        floor: Lowest point used.
        every_layer: 1 to decide at every layer, 0 once per token as in the paper.
        name: Shown in results.
    """

    table: ChipTable
    margin: float = 0.0
    floor: int = 0
    every_layer: int = 0
    name: str = "voltana"
    kind: ClassVar[str] = "layer"
    probes: ClassVar[bool] = False

    @property
    def macs(self) -> int:
        """One latency estimate per operating point."""
        return len(self.table.head_s)

    @property
    def rule(self) -> VoltanaRule:
        """The same, compiled."""
        return VoltanaRule(self.table, 1.0 - self.margin, self.floor, bool(self.every_layer))

    def describe(self) -> dict[str, Any]:
        """Margin, floor and how often."""
        return {"margin": self.margin, "floor": self.floor, "every_layer": self.every_layer}


class VoltanaBaseline(Baseline):
    """``Voltana`` with its margin searched."""

    name = "voltana"
    source = "VoltanaLLM (arXiv 2509.04827)"

    def space(self, control: Control) -> dict[str, Parameter]:
        """Margin, floor and how often."""
        return {
            "margin": Parameter(0.0, 0.6),
            "floor": Parameter(0, control.points - 1, whole=True),
            "every_layer": Parameter(0, 1, whole=True),
        }

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """The paper's rule, with a tenth in reserve."""
        return {"margin": 0.1, "floor": 0, "every_layer": 0}

    def make(self, control: Control, settings: Mapping[str, Any]) -> Voltana:
        """From margin, floor and how often."""
        return Voltana(ChipTable.of(control), **settings)
