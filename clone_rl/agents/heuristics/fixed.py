"""One operating point, full depth: Linux's ``performance`` and ``powersave`` governors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.baseline import Baseline
from clone_rl.agents.rule import rule
from clone_rl.envs.control import Control


class FixedRule(NamedTuple):
    """One operating point, full depth."""

    point: int


@rule(FixedRule)
def _fixed(self: Any, observation: Any, memory: Any, action: Any) -> None:  # noqa: ARG001
    action[0] = self.point


@dataclass(frozen=True)
class Fixed(RuleController):
    """One operating point, full depth.

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


class Performance(Baseline):
    """The top point."""

    name = "performance"
    source = "Linux, Documentation/admin-guide/pm/cpufreq.rst: performance"

    def make(self, control: Control, settings: Mapping[str, Any]) -> Fixed:  # noqa: ARG002
        """Nothing is set."""
        return Fixed(self.name, control.points - 1)


class Powersave(Baseline):
    """The lowest point."""

    name = "powersave"
    source = "Linux, Documentation/admin-guide/pm/cpufreq.rst: powersave"

    def make(self, control: Control, settings: Mapping[str, Any]) -> Fixed:  # noqa: ARG002
        """Nothing is set."""
        return Fixed(self.name, 0)
