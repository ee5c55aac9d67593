"""What tuning judges by: figures on the training requests, and by how much they break the limits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller, RuleController
from clone_rl.agents.heuristics.exit_bars import upper_mean
from clone_rl.agents.rollout import charged_for
from clone_rl.agents.runner import PolicyRunner
from clone_rl.envs.control import Control
from clone_rl.envs.scenario import Limits


def figures_of(figures: NDArray[np.void]) -> dict[str, float]:
    """Figures per token of (R,) requests: energy, J, miss rate, disagreement, dNLL, nats, and depth, layers."""
    tokens = figures["tokens"].sum()
    names = {"energy_per_token_j": "energy_j", "miss_rate": "late", "disagreement": "disagree", "dnll": "dnll"}
    return {key: float(figures[name].sum() / tokens) for key, name in {**names, "mean_depth": "depth"}.items()}


class Judge:
    """Runs controllers on the training requests, which are the same for each of them.

    Args:
        control: The scenario.
        limits: What has to hold.
        seed: Of service levels and interference.
    """

    def __init__(self, control: Control, limits: Limits, seed: int) -> None:
        self._control, self._limits, self._seed = control, limits, seed
        self._documents = control.traces.documents("train")
        self._charged: dict[tuple[int, bool], Control] = {}
        self._power_w = control.emulator.chip.limit_w

    def __call__(self, controller: Controller) -> tuple[float, dict[str, float]]:
        """By how much a controller breaks the limits, 0 where it holds them, and its figures.

        The limits are held by the mean and a standard error, as by ``exit_bars``: what holds by a hair here, does not on other
        requests.
        """
        overheads = (controller.macs, controller.probes)
        if overheads not in self._charged:
            self._charged[overheads] = charged_for(self._control, controller, "train")
        assert isinstance(controller, RuleController)  # as every baseline is
        figures = PolicyRunner(self._charged[overheads], controller).run(self._documents, self._seed)
        tokens = figures["tokens"].astype(float)
        limits = {"late": self._limits.miss, "disagree": self._limits.disagree, "dnll": self._limits.dnll}
        excess = sum(max(0.0, upper_mean(figures[name], tokens) - limit) for name, limit in limits.items())
        power_w = figures["energy_j"].sum() / figures["time_s"].sum()
        return excess + max(0.0, power_w / self._power_w - 1.0), figures_of(figures)
