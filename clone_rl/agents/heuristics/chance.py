"""Random points and random exits: what any rule that reads something has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.baseline import Baseline, Parameter
from clone_rl.agents.rule import rule
from clone_rl.envs.control import Control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.randomness import uniform
from clone_rl.envs.scenario import Limits

_PHASE, _LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")
_TTFT, _TPOT, _CONTEXT = OBSERVATION.index("ttft"), OBSERVATION.index("tpot"), OBSERVATION.index("context")

_STREAM = 3  # beside those of ``envs.randomness``
_KEY, _DRAWN = range(2)  # of memory


class ChanceRule(NamedTuple):
    """``Chance``, compiled."""

    top: int
    exit_chance: float
    floor: int
    seed: int


@rule(ChanceRule)
def _chance(self: Any, observation: Any, memory: Any, action: Any) -> None:
    if memory[_DRAWN] == 0.0:  # what tells this request from others: its targets and the length of its prompt
        shown = (observation[_TTFT] + 31.0 * observation[_TPOT]) * (1.0 + observation[_CONTEXT])
        memory[_KEY] = float(int(abs(shown) * 1e9) % 2**40)
    memory[_DRAWN] += 2.0
    key, number = int(memory[_KEY]), int(memory[_DRAWN])
    leaves = uniform(self.seed, key, _STREAM, number) < self.exit_chance
    if leaves and observation[_PHASE] > 0 and observation[_LAYER] > 0:
        action[0] = self.top + 1
        return
    action[0] = self.floor + int(uniform(self.seed, key, _STREAM, number + 1) * (self.top + 1 - self.floor))


@dataclass(frozen=True)
class Chance(RuleController):
    """Uniform over operating points from ``floor`` up, and an exit with a fixed probability at every boundary.

    The draws are counter-based and keyed by the request's targets and prompt length: the same request gets the same ones.

    Attributes:
        points: Operating points of the chip.
        exit_chance: Probability of leaving at a boundary.
        floor: Lowest point drawn.
        seed: Of the draws.
        name: Shown in results.
    """

    points: int
    exit_chance: float = 0.0
    floor: int = 0
    seed: int = 0
    name: str = "random"
    kind: ClassVar[str] = "layer"
    macs: ClassVar[int] = 0
    probes: ClassVar[bool] = False

    @property
    def rule(self) -> ChanceRule:
        """The same, compiled."""
        return ChanceRule(self.points - 1, self.exit_chance, self.floor, self.seed)

    def memory(self, rows: int) -> NDArray[np.float64]:
        """(rows, 2) the request's key and the draws so far."""
        return np.zeros((rows, 2))

    def describe(self) -> dict[str, Any]:
        """Probability, lowest point and seed."""
        return {"exit_chance": self.exit_chance, "floor": self.floor, "seed": self.seed}


class ChanceBaseline(Baseline):
    """``Chance`` with both of its constants searched."""

    name = "random"
    source = "DESIGN: random exits at equal mean depth, random operating points"

    def space(self, control: Control) -> dict[str, Parameter]:
        """Probability of an exit, and the lowest point."""
        return {"exit_chance": Parameter(1e-4, 1.0, log=True), "floor": Parameter(0, control.points - 1, whole=True)}

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """Hardly any exits, any point."""
        return {"exit_chance": 1e-4, "floor": 0}

    def make(self, control: Control, settings: Mapping[str, Any]) -> Chance:
        """From probability and lowest point."""
        return Chance(control.points, **settings)
