"""Run a controller over whole requests, paired: request i is the same for every controller of the same seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller, RuleController
from clone_rl.agents.runner import PolicyRunner
from clone_rl.envs.control import Control
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Scenario
from clone_rl.errors import BadValueError


def charged_scenario(scenario: Scenario, controller: Controller) -> Scenario:
    """The same scenario with this controller's own overheads, and the signals that it was made for, if it says."""
    signals = getattr(controller, "signals", scenario.signals)
    return replace(scenario, policy_macs=controller.macs, probe=controller.probes, signals=signals)


def charged_for(control: Control, controller: Controller, split: str) -> Control:
    """The same scenario with this controller's own overheads and action space, on a split."""
    return control.serving(controller.kind, charged_scenario(control.scenario, controller), split)


def run_requests(
    control: Control, controller: Controller, split: str, documents: NDArray[np.int64], seed: int
) -> NDArray[np.void]:
    """Figures of each request, in the order of ``documents``.

    Args:
        control: The scenario; the controller's own overheads replace the scenario's.
        controller: Who decides.
        split: Which split the documents belong to.
        documents: (R,) documents of the trace set; each is one request with its own service level and interference.
        seed: Key of the draws; request i has seed + i.

    Returns:
        (R,) records of ``clone_rl.envs.figures.FIGURES``.

    Raises:
        BadValueError: The controller's actions do not fit the chip.
    """
    own = charged_for(control, controller, split)
    if isinstance(controller, RuleController):
        return PolicyRunner(own, controller).run(documents, seed)
    rows = Rows(own.world, len(documents), len(own.heads))
    observation = rows.reset(seed + np.arange(len(documents)), np.zeros(len(documents), np.int64), documents)
    longest = int((np.diff(own.traces.offset)[documents]).max()) * own.traces.layers
    for _ in range(longest):
        out = rows.step(own.check(controller.act(observation), len(documents)))
        observation = out.observation
        if out.terminated.all():
            return rows.figures()
    raise BadValueError(f"controller {controller.name!r} did not finish", "every step must run a layer or exit")
