"""What tuning and training judge by: figures on the training requests, and by how much the limits are broken."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller, RuleController
from clone_rl.agents.heuristics.exit_bars import upper_mean
from clone_rl.agents.rollout import charged_for
from clone_rl.agents.runner import PolicyRunner
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits

SPLITS = ("train", "validation")

_FIGURES = {
    "energy_per_token_j": "energy_j",
    "miss_rate": "late",
    "disagreement": "disagree",
    "dnll": "dnll",
    "mean_depth": "depth",
    "switches_per_token": "switches",
}


def figures_of(figures: NDArray[np.void]) -> dict[str, float]:
    """Figures per token of (R,) requests: energy, J, miss rate, disagreement, dNLL, nats, depth, layers, and switches."""
    tokens = figures["tokens"].sum()
    return {key: float(figures[name].sum() / tokens) for key, name in _FIGURES.items()}


class Judgement(NamedTuple):
    """What a controller came to.

    Attributes:
        excess: By how much it breaks the limits; 0 where it holds them.
        figures: ``figures_of`` the training requests.
        measured: What is held against each limit.
    """

    excess: float
    figures: dict[str, float]
    measured: Limits


class Judge:
    """Runs controllers on the training and validation requests, which are the same for each of them.

    Every controller, learned or tuned, has to hold the limits by a standard error on the training requests, and in the mean on
    the validation requests: what holds by a hair on the one does not hold elsewhere. Energy is that of the training requests.

    Args:
        control: The scenario.
        limits: What has to hold.
        seed: Of service levels and interference.
    """

    def __init__(self, control: Control, limits: Limits, seed: int) -> None:
        self._control, self._limits, self._seed = control, limits, seed
        self._charged: dict[tuple[str, int, bool, str], Control] = {}
        self._power_w = control.emulator.chip.limit_w

    def _run(self, controller: Controller, split: str) -> NDArray[np.void]:
        assert isinstance(controller, RuleController)  # as every baseline and policy is
        overheads = (split, controller.macs, controller.probes, controller.kind)
        if overheads not in self._charged:
            self._charged[overheads] = charged_for(self._control, controller, split)
        return PolicyRunner(self._charged[overheads], controller).run(self._control.traces.documents(split), self._seed)

    def __call__(self, controller: Controller) -> Judgement:
        """Judge a controller."""
        figures, others = (self._run(controller, split) for split in SPLITS)
        tokens = figures["tokens"].astype(float)
        measured = Limits(
            **{
                # Exits that lower the likelihood loss break no limit.
                name: max(0.0, upper_mean(figures[column], tokens), float(others[column].sum() / others["tokens"].sum()))
                for name, column in (("miss", "late"), ("disagree", "disagree"), ("dnll", "dnll"))
            }
        )
        excess = sum(max(0.0, getattr(measured, name) - getattr(self._limits, name)) for name in ("miss", "disagree", "dnll"))
        power_w = figures["energy_j"].sum() / figures["time_s"].sum()
        return Judgement(excess + max(0.0, power_w / self._power_w - 1.0), figures_of(figures), measured)
