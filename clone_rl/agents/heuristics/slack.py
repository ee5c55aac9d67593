"""A token is slowed down by a share of its slack: the slack-proportional governor."""

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

_PHASE, _LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")
_PRESSURE, _SLACK = OBSERVATION.index("pressure"), OBSERVATION.index("slack")


class SlackRule(NamedTuple):
    """``Slack``, compiled."""

    table: ChipTable
    alpha: float
    most: float


@rule(SlackRule)
def _slack(self: Any, observation: Any, memory: Any, action: Any) -> None:
    if observation[_LAYER] == 0:
        left, needed = 2.0 * observation[_SLACK], observation[_PRESSURE]  # targets; share of what is left
        top = len(self.table.head_s) - 1
        memory[0] = top
        if left > 0.0 and needed < 1.0:
            delay = min(self.alpha * (1.0 - needed), self.most / left)
            memory[0] = lowest_point(self.table, int(observation[_PHASE]), needed, needed + delay)
    action[0] = int(memory[0])


@dataclass(frozen=True)
class Slack(RuleController):
    """Full depth; a token takes its time at the top point and a share of the slack on top of it.

    ``d = min(alpha (T_budget - t), d_max)`` is the delay per token of phase-aware-dvfs-llm (github.com/SreevatsaKolachana,
    src/run_adaptive_v2.py, with alpha 0.12 and d_max a tenth of the target), which sleeps for it; here the lowest
    point that takes no longer than ``t + d`` is used instead.

    Attributes:
        table: The chip.
        alpha: Share of the slack.
        most: Longest delay, in targets.
        name: Shown in results.
    """

    table: ChipTable
    alpha: float = 0.12
    most: float = 0.1
    name: str = "slack"
    kind: ClassVar[str] = "layer"
    probes: ClassVar[bool] = False

    @property
    def macs(self) -> int:
        """One latency estimate per operating point."""
        return len(self.table.head_s)

    @property
    def rule(self) -> SlackRule:
        """The same, compiled."""
        return SlackRule(self.table, self.alpha, self.most)

    def describe(self) -> dict[str, Any]:
        """Share and longest delay."""
        return {"alpha": self.alpha, "most": self.most}


class SlackBaseline(Baseline):
    """``Slack`` with both of its constants searched."""

    name = "slack"
    source = "phase-aware-dvfs-llm, src/run_adaptive_v2.py"

    def space(self, control: Control) -> dict[str, Parameter]:  # noqa: ARG002
        """Share and longest delay."""
        return {"alpha": Parameter(0.0, 1.0), "most": Parameter(0.01, 2.0, log=True)}

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """The source's constants."""
        return {"alpha": 0.12, "most": 0.1}

    def make(self, control: Control, settings: Mapping[str, Any]) -> Slack:
        """From share and longest delay."""
        return Slack(ChipTable.of(control), **settings)
