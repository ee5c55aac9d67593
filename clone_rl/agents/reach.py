"""Whether limits can be held at all, found out before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clone_rl.agents.heuristics.exit_bars import exit_bars
from clone_rl.agents.heuristics.fixed import Fixed
from clone_rl.agents.heuristics.pace import Pace
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError

_SPLITS = ("train", "validation")
_KEYS = {"miss": "miss_rate", "disagree": "disagreement", "dnll": "dnll"}


@dataclass(frozen=True)
class Reach:
    """The least that limits can ask for. Never exiting holds those on quality, so only lateness can be out of reach.

    Attributes:
        miss: For each split, the least share of late tokens among controllers that race at the top point: at full depth, and
            with calibrated exits within the limits on quality. A policy may do better, by exiting where it is late.
        floor: For each split, the share of late tokens when all of them leave after their first layer at the top point:
            no policy that reads the probe does better.
    """

    miss: Mapping[str, float]
    floor: Mapping[str, float]

    def check(self, limits: Limits, scenario: str) -> str:
        """A warning where the limits are out of reach of what is known, or nothing.

        Raises:
            BadValueError: Nothing can hold them.
        """
        split = max(_SPLITS, key=lambda name: self.floor[name])
        if limits.miss < self.floor[split]:
            raise BadValueError(
                f"max_miss is {limits.miss:g} and cannot be held in scenario {scenario!r}: with every layer at the top point "
                f"and every token leaving after the first one, {self.floor[split]:.4g} of the {split} tokens are late",
                f"ask for {self.best:.4g}, which is reached within the other limits, or loosen the service levels",
            )
        if limits.miss < self.best:
            return (
                f"max_miss is {limits.miss:g}, and the best reachable that is known in scenario {scenario!r} is "
                f"{self.best:.4g}, by racing at the top point: training goes as near as it can"
            )
        return ""

    @property
    def best(self) -> float:
        """The least share of late tokens that is known to be reached on both splits."""
        return max(self.miss.values())


def reach(control: Control, limits: Limits, seed: int = 0) -> Reach:
    """What can be reached in a scenario, by running its requests of the training and validation splits.

    Args:
        control: The scenario.
        limits: Of which those on quality say how much may exit.
        seed: Of service levels and interference.
    """
    top = control.points - 1
    bars = exit_bars(control.traces, "train", limits)
    racing = (Fixed("performance", top), Pace(control.points, *bars, floor=top))
    first = Pace(control.points, 0.0, math.inf, floor=top)

    def late(controller: Any, split: str) -> float:
        figures = run_requests(control, controller, split, control.traces.documents(split), seed)
        return float(figures["late"].sum() / figures["tokens"].sum())

    floor = {split: late(first, split) for split in _SPLITS}
    return Reach({split: max(floor[split], min(late(one, split) for one in racing)) for split in _SPLITS}, floor)


def verdict(limits: Limits, row: Mapping[str, Any], found: Reach) -> dict[str, dict[str, Any]]:
    """How a policy stands to its limits, by option of the command line.

    Args:
        limits: What was asked for.
        row: Its ``miss_rate``, ``disagreement`` and ``dnll``.
        found: What ``reach`` said.

    Returns:
        For each limit ``limit``, ``measured``, ``held`` and ``best_reachable``.
    """
    best = {"miss": found.best, "disagree": 0.0, "dnll": 0.0}
    return {
        f"max_{name}": {
            "limit": (limit := float(getattr(limits, name))),
            "measured": float(row[key]),
            "held": bool(row[key] <= limit),
            "best_reachable": best[name],
        }
        for name, key in _KEYS.items()
    }


def broken(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each limit of a ``verdict`` that is not held."""
    return [
        f"{name} {one['limit']:g} is not held: {one['measured']:.4g} (best reachable: {one['best_reachable']:.4g})"
        for name, one in found.items()
        if not one["held"]
    ]
