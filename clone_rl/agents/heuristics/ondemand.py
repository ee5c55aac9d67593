"""Linux's ``ondemand`` governor: the clock follows utilisation over a sampling window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.baseline import Baseline, Parameter
from clone_rl.agents.heuristics.chip_table import ChipTable
from clone_rl.agents.rule import rule
from clone_rl.envs.control import Control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits, TargetScale

_PHASE, _LAYER, _BUSY = OBSERVATION.index("phase"), OBSERVATION.index("layer"), OBSERVATION.index("busy")
_TPOT = OBSERVATION.index("tpot")

UP_THRESHOLD = 80
"""Per cent; DEF_FREQUENCY_UP_THRESHOLD of drivers/cpufreq/cpufreq_ondemand.c, which takes 1 to 100. (With micro-accounting
of idle time the kernel starts at MICRO_FREQUENCY_UP_THRESHOLD, 95.)"""

_POINT, _LOAD, _TOKENS = range(3)  # of memory


class OndemandRule(NamedTuple):
    """``Ondemand``, with utilisation as shares."""

    table: ChipTable
    threshold: float
    window: int
    bias: float


@rule(OndemandRule)
def _ondemand(self: Any, observation: Any, memory: Any, action: Any) -> None:
    table = self.table
    top = len(table.head_s) - 1
    if observation[_PHASE] == 0:
        memory[_POINT] = top  # prefill keeps the chip busy all the time
        action[0] = top
        return
    target_s, stretch = observation[_TPOT] * table.tpot_s, table.slowdown if observation[_BUSY] > 0 else 1.0
    if observation[_LAYER] == 0:
        if memory[_TOKENS] >= self.window:
            load = min(1.0, memory[_LOAD] / memory[_TOKENS])
            lowest = table.frequency[0]
            wanted = 1.0 if load > self.threshold else lowest + load * (1.0 - lowest)
            wanted *= self.bias
            nearest = 0
            for point in range(1, top + 1):
                if abs(table.frequency[point] - wanted) < abs(table.frequency[nearest] - wanted):
                    nearest = point
            memory[_POINT], memory[_LOAD], memory[_TOKENS] = nearest, 0.0, 0.0
        memory[_TOKENS] += 1.0
        memory[_LOAD] += table.head_s[int(memory[_POINT])] * stretch / target_s
    memory[_LOAD] += table.layer_s[1, int(memory[_POINT])] * stretch / target_s
    action[0] = int(memory[_POINT])


@dataclass(frozen=True)
class Ondemand(RuleController):
    """Full depth at the clock that utilisation asks for; it knows no due times.

    Utilisation is the time that tokens took over the time that they may take: tokens of a window, each with its TPOT target
    as period. Above the threshold the clock goes to its maximum, otherwise to ``f_min + load (f_max - f_min)``, rounded
    to the nearest point (``od_update`` and CPUFREQ_RELATION_C of drivers/cpufreq/cpufreq_ondemand.c). ``bias`` lowers either
    by so many thousandths (its powersave_bias, without dithering between two points).

    Attributes:
        table: The chip.
        up_threshold: Per cent.
        window: Tokens between two samples.
        bias: Thousandths, 0 to 1000.
        name: Shown in results.
    """

    table: ChipTable
    up_threshold: int = UP_THRESHOLD
    window: int = 1
    bias: int = 0
    name: str = "ondemand"
    kind: ClassVar[str] = "layer"
    macs: ClassVar[int] = 2
    probes: ClassVar[bool] = False

    @property
    def scale(self) -> TargetScale:
        """That of the chip table, by which it reads targets."""
        return self.table.scale

    @property
    def rule(self) -> OndemandRule:
        """The same, compiled."""
        return OndemandRule(self.table, self.up_threshold / 100.0, self.window, 1.0 - self.bias / 1000.0)

    def memory(self, rows: int) -> NDArray[np.float64]:
        """(rows, 3) the point, the load and the tokens of the window so far."""
        return np.zeros((rows, 3))

    def describe(self) -> dict[str, Any]:
        """The governor's tunables."""
        return {"up_threshold": self.up_threshold, "window": self.window, "bias": self.bias}


class OndemandBaseline(Baseline):
    """The governor with its tunables searched."""

    name = "ondemand"
    source = "Linux, drivers/cpufreq/cpufreq_ondemand.c"

    def space(self, control: Control) -> dict[str, Parameter]:  # noqa: ARG002
        """The kernel's ranges; its sampling period in tokens."""
        return {
            "up_threshold": Parameter(1, 100, whole=True),
            "window": Parameter(1, 32, whole=True, log=True),
            "bias": Parameter(0, 1000, whole=True),
        }

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """The kernel's defaults."""
        return {"up_threshold": UP_THRESHOLD, "window": 1, "bias": 0}

    def make(self, control: Control, settings: Mapping[str, Any]) -> Ondemand:
        """From the tunables."""
        return Ondemand(ChipTable.of(control), **settings)
