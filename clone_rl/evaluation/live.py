"""The protocol with the model in the loop, and what a replay had predicted beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.budgeted import budgeted
from clone_rl.agents.controller import Controller, RuleController
from clone_rl.agents.error_budget import ErrorBudget
from clone_rl.agents.own import asked
from clone_rl.agents.rollout import charged_for, guard_rows, stream_order
from clone_rl.envs.control import Control
from clone_rl.envs.figures import FIGURES
from clone_rl.envs.live import LiveControl, LiveRequest
from clone_rl.envs.scenario import Limits
from clone_rl.envs.shield import Guards
from clone_rl.envs.shield_tables import Shield
from clone_rl.envs.source import TokenSource
from clone_rl.errors import BadValueError


class LiveRunner:
    """Runs controllers on a source of tokens; a ``protocol.Runner``.

    Args:
        source: The model; its documents stand for those of the trace set.
        numbers: Which of them stands for each document of the trace set.
        tick: Called after every request (a progress bar).
    """

    def __init__(self, source: TokenSource, numbers: Mapping[int, int], tick: Callable[[], Any] = lambda: None) -> None:
        self.source, self.numbers, self.tick = source, numbers, tick

    def __call__(
        self,
        control: Control,
        controller: Controller,
        split: str,
        documents: NDArray[np.int64],
        seed: int,
        shield: bool = False,
        shield_exits: bool = False,
        limits: Limits | None = None,
    ) -> NDArray[np.void]:
        """(R,) records; request i has ``seed + i``, the same service level and interference as on a replay.

        Args:
            control, controller, split, documents, seed, shield, shield_exits, limits: As of ``rollout.run_requests``; under a
                shield the requests come in the order of its stream, one after another for every controller.

        Raises:
            BadValueError: The controller decides per token, or the source gives skipped layers other keys and values than the
                scenario charges for; or, under a shield, the traces have no training documents.
        """
        keys, count = seed + np.arange(len(documents)), len(documents)
        if not shield:
            return self.run(control, controller, split, documents, keys)
        order, figures = stream_order(seed, count), np.zeros(count, FIGURES)
        budget = ErrorBudget.of(control.traces, limits or control.scenario.limits, controller.probes)
        figures[order] = self.run(control, controller, split, documents[order], keys[order], budget, shield_exits)
        return figures

    def run(
        self,
        control: Control,
        controller: Controller,
        split: str,
        documents: NDArray[np.int64],
        keys: NDArray[np.int64],
        budget: ErrorBudget | None = None,
        shield_exits: bool = False,
    ) -> NDArray[np.void]:
        """(R,) records of requests with keys of their own, under a shield where they have a budget; see ``__call__``."""
        if controller.kind != "layer":
            raise BadValueError(
                f"controller {controller.name!r} decides per token", "with the model in the loop one decides per layer"
            )
        if self.source.kv != control.scenario.kv:
            raise BadValueError(
                f"the model keeps kv {self.source.kv!r}, the scenario charges {control.scenario.kv!r}", "use one"
            )
        own = charged_for(control, controller, split)
        live = LiveControl(own.scenario, own.emulator, own.emulators)
        figures = np.zeros(len(documents), FIGURES)
        paying = budgeted(controller, budget, own.points) if budget else controller
        for i, (document, key) in enumerate(zip(documents.tolist(), keys.tolist(), strict=True)):
            request = LiveRequest(live, self.source, self.numbers[document], key)
            memory = (paying.memory(1),) if isinstance(paying, RuleController) else ()
            shield, guards = Shield.of(request.control, shield_exits) if budget else None, Guards.of(1)
            while not request.done:
                observation = request.observation[None]
                action = asked(paying, own, observation, *memory, ranged=shield is None)
                if budget and shield:
                    guard_rows(shield, guards, budget, request.rows, observation, action)
                request.step(int(action[0, 0]))
            figures[i] = request.rows.figures()[0]
            figures[i]["document"] = document
            self.tick()
        return figures


def beside_replay(live: Sequence[Mapping[str, Any]], replay: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a live evaluation with what a replay of the same requests had predicted.

    Args:
        live, replay: Rows of ``summary.summarise``, one for each controller, in the same order.

    Returns:
        The live rows with ``replay`` (its figures), ``energy_ratio`` (live over replay, per token), ``disagreement_points``
        and ``miss_points`` (live minus replay, percentage points) and ``dnll_difference`` (nats per token).
    """
    kept = ("energy_per_token_j", "miss_rate", "disagreement", "dnll", "mean_depth", "within_constraints")
    return [
        {
            **row,
            "replay": {key: before[key] for key in kept},
            "energy_ratio": row["energy_per_token_j"] / before["energy_per_token_j"],
            "disagreement_points": 100.0 * (row["disagreement"] - before["disagreement"]),
            "miss_points": 100.0 * (row["miss_rate"] - before["miss_rate"]),
            "dnll_difference": row["dnll"] - before["dnll"],
        }
        for row, before in zip(live, replay, strict=True)
    ]
