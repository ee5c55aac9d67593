"""One operating point and one exit depth for everything, or one of each for prefill and decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from clone_rl.agents.controller import RuleController
from clone_rl.agents.heuristics.baseline import Baseline, Parameter
from clone_rl.agents.heuristics.exit_bars import fixed_depth
from clone_rl.agents.rule import rule
from clone_rl.envs.control import Control
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits

_PHASE, _LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")


class StaticRule(NamedTuple):
    """``Static`` with what it counts layers and points by."""

    top: int
    layers: int
    prefill: int
    decode: int
    depth: int


@rule(StaticRule)
def _static(self: Any, observation: Any, memory: Any, action: Any) -> None:  # noqa: ARG001
    if observation[_PHASE] == 0:
        action[0] = self.prefill
    elif observation[_LAYER] > 0 and int(np.rint(observation[_LAYER] * self.layers)) >= self.depth:
        action[0] = self.top + 1
    else:
        action[0] = self.decode


@dataclass(frozen=True)
class Static(RuleController):
    """A point for prefill, one for decoding, and the depth at which every decoded token leaves. It reads no signal.

    Attributes:
        points: Operating points of the chip.
        layers: Of the model.
        prefill, decode: Operating points.
        depth: Layers of a decoded token; ``layers`` is full depth.
        name: Shown in results.
    """

    points: int
    layers: int
    prefill: int
    decode: int
    depth: int
    name: str = "static"
    kind: ClassVar[str] = "layer"
    macs: ClassVar[int] = 0
    probes: ClassVar[bool] = False

    @property
    def rule(self) -> StaticRule:
        """The same, compiled."""
        return StaticRule(self.points - 1, self.layers, self.prefill, self.decode, self.depth)

    def describe(self) -> dict[str, Any]:
        """Points and depth."""
        return {"prefill": self.prefill, "decode": self.decode, "depth": self.depth}


class StaticBaseline(Baseline):
    """Best static: one point, one depth."""

    name = "static"
    source = "the best constant choice; the control group of every DVFS and early-exit study"

    def space(self, control: Control) -> dict[str, Parameter]:
        """Point and depth."""
        return {
            "point": Parameter(0, control.points - 1, whole=True),
            "depth": Parameter(1, control.traces.layers, whole=True),
        }

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:  # noqa: ARG002
        """The top point, and the least depth that holds the limits on quality."""
        return {"point": control.points - 1, "depth": fixed_depth(control.traces, "train", limits)}

    def make(self, control: Control, settings: Mapping[str, Any]) -> Static:
        """From point and depth, or from what ``Static.describe`` says."""
        own = dict(settings)
        if "point" in own:
            own["prefill"] = own["decode"] = own.pop("point")
        return Static(control.points, control.traces.layers, name=self.name, **own)


class StaticPhaseBaseline(StaticBaseline):
    """Best static per phase."""

    name = "static-phase"
    source = "FUSE (arXiv 2507.02135): one setting for prefill, one for decoding"

    def space(self, control: Control) -> dict[str, Parameter]:
        """A point for each phase, and the depth."""
        found = super().space(control)
        point = found.pop("point")
        return {"prefill": point, "decode": point, **found}

    def start(self, control: Control, limits: Limits, seed: int) -> dict[str, float]:
        """The top point, and the least depth that holds the limits on quality."""
        found = super().start(control, limits, seed)
        point = found.pop("point")
        return {"prefill": point, "decode": point, **found}
