"""Run a controller over whole requests, paired: request i is the same for every controller of the same seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.budgeted import budgeted, within
from clone_rl.agents.controller import Actions, Controller, Observations, RuleController
from clone_rl.agents.error_budget import ErrorBudget
from clone_rl.agents.own import asked
from clone_rl.agents.runner import PolicyRunner
from clone_rl.envs.control import Control
from clone_rl.envs.randomness import uniform
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Limits, Scenario
from clone_rl.envs.shield import Guards
from clone_rl.envs.shield_tables import Shield
from clone_rl.errors import BadValueError

_STREAM = 5  # beside those of ``envs.randomness``


def charged_scenario(scenario: Scenario, controller: Controller) -> Scenario:
    """The same scenario with this controller's own overheads, and with the signals and the scale that it was made for.

    Every loop that runs a controller observes through this: the same request looks the same to it in all of them.
    """
    signals = getattr(controller, "signals", scenario.signals)
    scale = getattr(controller, "scale", None) or scenario.scale
    return replace(scenario, policy_macs=controller.macs, probe=controller.probes, signals=signals, scale=scale)


def charged_for(control: Control, controller: Controller, split: str) -> Control:
    """The same scenario with this controller's own overheads and action space, on a split."""
    return control.serving(controller.kind, charged_scenario(control.scenario, controller), split)


def stream_order(seed: int, requests: int) -> NDArray[np.int64]:
    """(R,) which request of a stream comes first, second and so on: drawn, since a trace set has its documents type by type.

    Args:
        seed: Key of the draws, as of ``run_requests``.
        requests: How many.
    """
    return np.argsort([uniform(seed + i, 0, _STREAM, 0) for i in range(requests)], kind="stable")


def guard_rows(
    shield: Shield, guards: Guards, budget: ErrorBudget, rows: Rows, observations: Observations, actions: Actions
) -> None:
    """Put what a shield lets pass in the place of actions that their budget let pass; exits that it forbids are given back.

    Args:
        shield: Of the deadlines.
        guards: Of the same requests.
        budget: That the exits were paid from.
        rows: N requests side by side.
        observations: (N, width) what the controller saw.
        actions: (N, 1) changed in place.
    """
    proposed, leaving = actions.copy(), shield.head_s.shape[1]
    guards.guard(shield, rows, actions)
    budget.refund(observations, ((proposed == leaving) & (actions != proposed))[:, 0])


def run_requests(
    control: Control,
    controller: Controller,
    split: str,
    documents: NDArray[np.int64],
    seed: int,
    shield: bool = False,
    shield_exits: bool = False,
    limits: Limits | None = None,
) -> NDArray[np.void]:
    """Figures of each request, in the order of ``documents``.

    Args:
        control: The scenario; the controller's own overheads replace the scenario's.
        controller: Who decides.
        split: Which split the documents belong to.
        documents: (R,) documents of the trace set; each is one request with its own service level and interference.
        seed: Key of the draws; request i has seed + i.
        shield: Overrule what may cost a deadline, see ``clone_rl.envs.shield``, and refuse exits that the limits on quality
            leave no room for, see ``clone_rl.agents.error_budget``; the requests are one stream, one after another in
            ``stream_order`` where the controller is compiled, else side by side. An action that is none counts as the top
            point for the rest of its request.
        shield_exits: With ``shield``: exit where a token would be late in any case.
        limits: With ``shield``: on quality; the scenario's if None.

    Returns:
        (R,) records of ``clone_rl.envs.figures.FIGURES``.

    Raises:
        BadValueError: The controller's actions do not fit the chip; or, under a shield, it decides per token, or the traces
            have no training documents.
    """
    own = charged_for(control, controller, split)
    guard = Shield.of(own, shield_exits) if shield else None
    budget = ErrorBudget.of(own.traces, limits or own.scenario.limits, controller.probes) if shield else None
    if isinstance(controller, RuleController):
        inner = budgeted(controller, budget, own.points) if budget else controller
        order = stream_order(seed, len(documents)) if shield else None
        return PolicyRunner(own, inner, guard).run(documents, seed, order)
    rows = Rows(own.world, len(documents), len(own.heads))
    observation = rows.reset(seed + np.arange(len(documents)), np.zeros(len(documents), np.int64), documents)
    longest = int((np.diff(own.traces.offset)[documents]).max()) * own.traces.layers
    guards = Guards.of(len(documents))
    for _ in range(longest):
        actions = asked(controller, own, observation, ranged=guard is None)
        if guard and budget:
            within(budget, own.points, observation, actions, rows.state["done"] == 1)
            guard_rows(guard, guards, budget, rows, observation, actions)
        out = rows.step(actions)
        observation = out.observation
        if out.terminated.all():
            return rows.figures()
    raise BadValueError(f"controller {controller.name!r} did not finish", "every step must run a layer or exit")
