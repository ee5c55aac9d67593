"""A controller and the kernel in one compiled loop: how evaluation, tuning and training judge."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.budgeted import Budgeted
from clone_rl.agents.controller import RuleController
from clone_rl.agents.error_budget import refund
from clone_rl.agents.rule import Loop, decide
from clone_rl.envs.control import Control
from clone_rl.envs.figures import FIGURES, write_figures
from clone_rl.envs.kernel import World
from clone_rl.envs.observation import observe
from clone_rl.envs.rows import Rows, begin, step_row
from clone_rl.envs.shield import Guards, guarded
from clone_rl.envs.shield_tables import Shield
from clone_rl.envs.state import AMOUNTS
from clone_rl.errors import BadValueError


@Loop
def _run(
    rule: Any, memory: Any, state: Any, missing: Any, pending: Any, world: World, heads: Any, documents: Any, order: Any,
    seed: int, observation: Any, action: Any, amounts: Any, figures: Any, shield: Any, budget: Any, failed: Any,
    overruled: Any,
) -> int:  # fmt: skip
    s = state[0]
    for i in order:
        begin(s, missing[0], pending[0], world, seed + i, 0, documents[i], observation)
        for j in range(len(memory)):
            memory[j] = 0.0
        while s.done == 0:
            decide(rule, observation, memory, action)
            bad = False
            for head in range(len(action)):
                bad = bad or action[head] < 0 or action[head] >= heads[head]
            if shield is not None:
                failed[i] = failed[i] or bad
                asked = action[0]
                proposed = heads[0] - 2 if failed[i] else asked
                action[0] = guarded(shield, s, missing[0], proposed)
                overruled[i] += action[0] != proposed
                if budget is not None and asked == heads[0] - 1 and action[0] != asked:
                    refund(budget, observation)
            elif bad:
                return int(i)
            step_row(s, missing[0], pending[0], world, action, amounts)
            observe(s, missing[0], world, observation)
        write_figures(s, world.prices.reference_j[s.variant], figures[i])
    return -1


class PolicyRunner:
    """Runs one controller over whole requests, some millions of decisions per CPU second.

    Args:
        control: The scenario with the controller's own overheads and action space, see ``rollout.charged_for``.
        controller: A policy or a baseline.
        shield: What overrules it; None lets it do as it likes.

    Attributes:
        guards: What the shield did in the last run.

    >>> from clone_rl.agents.heuristics import Fixed
    >>> from clone_rl.envs.control import load_control
    >>> runner = PolicyRunner(load_control("layer", probe=False), Fixed("performance", 7))
    >>> figures = runner.run(np.array([0, 1]), seed=0)
    >>> bool((figures["depth"] == 10 * figures["tokens"]).all())
    True
    """

    def __init__(self, control: Control, controller: RuleController, shield: Shield | None = None) -> None:
        self.control, self.controller, self.shield = control, controller, shield
        self.guards = Guards.of(0)
        self._rows = Rows(control.world, 1, len(control.heads))

    def run(self, documents: NDArray[np.int64], seed: int, order: NDArray[np.int64] | None = None) -> NDArray[np.void]:
        """Figures of each request, in the order of ``documents``.

        Args:
            documents: (R,) documents of the trace set.
            seed: Key of the draws; request i has seed + i.
            order: (R,) which request comes first, second and so on, for a controller that keeps something from one to the
                next; as they stand if None.

        Returns:
            (R,) records of ``clone_rl.envs.figures.FIGURES``.

        Raises:
            BadValueError: An action of the controller is not of the space, and there is no shield.
        """
        rows, controller, heads = self._rows, self.controller, self.control.heads
        figures, action = np.zeros(len(documents), FIGURES), np.zeros(len(heads), np.int64)
        observation, amounts = np.zeros(rows.width, np.float32), np.zeros(len(AMOUNTS))
        order = np.arange(len(documents)) if order is None else order
        budget = controller.budget if isinstance(controller, Budgeted) else None
        self.guards = Guards.of(len(documents))
        bad = _run(
            controller.rule, controller.memory(1)[0], rows.state, rows.missing, rows.pending, rows.world, heads,
            documents, order, seed, observation, action, amounts, figures, self.shield, budget, *self.guards,
        )  # fmt: skip
        if bad >= 0:
            raise BadValueError(
                f"controller {controller.name!r} chose {action.tolist()} in request {bad}",
                f"what it may choose is {', '.join(f'0 to {count - 1}' for count in heads)}",
            )
        return figures
