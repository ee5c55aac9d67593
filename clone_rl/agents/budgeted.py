"""Controllers whose exits are paid out of an error budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Actions, Controller, Observations, RuleController
from clone_rl.agents.error_budget import ErrorBudget, admitted, leaning
from clone_rl.agents.policy import PolicyRule, choose
from clone_rl.agents.rule import decide, rule
from clone_rl.envs.observation import OBSERVATION
from clone_rl.errors import BadValueError

LEAN = 8.0
"""Nats on a policy's logit of leaving where all is saved that can be, taken off where nothing is left; chosen on training and
validation requests, see ``experiments/error_budget.py``."""

_POINT = OBSERVATION.index("point")


class BudgetRule(NamedTuple):
    """A rule whose exits have to be paid for."""

    inner: Any
    budget: ErrorBudget
    top: int


@rule(BudgetRule)
def _within_budget(self: Any, observation: Any, memory: Any, action: Any) -> None:
    decide(self.inner, observation, memory, action)
    leaves = action[0] == self.top + 1
    if not admitted(self.budget, observation, leaves) and leaves:
        action[0] = int(np.rint(observation[_POINT] * self.top))


class LeaningRule(NamedTuple):
    """A policy that leans towards exits where much is saved, and away from them where little is left.

    Limits that a policy was trained for it holds on the whole: where less comes that is worth an exit, it leaves them unspent,
    and where more does it would be refused exits as they come, the good ones among them.

    Attributes:
        network: As it was trained: what it decides with half of the savings.
        budget: What it spends.
        nats: As ``LEAN``.
    """

    network: PolicyRule
    budget: ErrorBudget
    nats: float


@rule(LeaningRule)
def _leaning(self: Any, observation: Any, memory: Any, action: Any) -> None:
    choose(self.network, observation, memory, action, self.nats * leaning(self.budget, observation))


@dataclass(frozen=True, eq=False)
class Budgeted:
    """A controller within a budget: in everything else the one that it was.

    Attributes:
        inner: It.
        budget: Of the stream.
        points: Operating points of the chip.
        lean: Nats by which a policy follows the balance.
    """

    inner: Any
    budget: ErrorBudget
    points: int
    lean: float

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)


class _BudgetedRule(Budgeted, RuleController):
    """A compiled controller within a budget."""

    @property
    def rule(self) -> BudgetRule:
        inner = self.inner.rule
        if isinstance(inner, PolicyRule):
            inner = LeaningRule(inner, self.budget, self.lean)
        return BudgetRule(inner, self.budget, self.points - 1)

    @property
    def components(self) -> int:
        return int(self.inner.components)

    def memory(self, rows: int) -> NDArray[np.float64]:
        return np.asarray(self.inner.memory(rows))


class _BudgetedCalls(Budgeted):
    """Any other controller within a budget."""

    def act(self, observations: Observations) -> Actions:
        return within(self.budget, self.points, observations, np.array(self.inner.act(observations)))


def within(
    budget: ErrorBudget, points: int, observations: Observations, actions: Actions, over: NDArray[np.bool_] | None = None
) -> Actions:
    """Actions of requests side by side, the operating point in force in the place of exits that are refused.

    Args:
        budget: What they have to spend.
        points: Operating points of the chip.
        observations: (N, width) what the controller saw.
        actions: (N,) or (N, 1) of whatever type, changed in place; what is no action stays, for others to tell.
        over: (N,) requests that have ended; None has none.
    """
    if actions.size != len(observations):
        return actions
    chosen = actions.reshape(len(observations))
    exits = np.array([action == points for action in chosen.tolist()], np.bool_)
    refused = exits & ~budget.admit(observations, exits, over)
    chosen[refused] = np.rint(observations[refused, _POINT] * (points - 1)).astype(np.int64)
    return actions


@overload
def budgeted(controller: RuleController, budget: ErrorBudget, points: int, lean: float = LEAN) -> RuleController: ...


@overload
def budgeted(controller: Controller, budget: ErrorBudget, points: int, lean: float = LEAN) -> Controller: ...


def budgeted(controller: Any, budget: ErrorBudget, points: int, lean: float = LEAN) -> Any:
    """The same controller, but exits that cost more than the budget has left are refused, and a policy follows the balance.

    One budget serves a stream of requests, those after another and those side by side, of any threads: each decision is one
    compiled call, which holds the interpreter's lock. What deciding takes is charged as of the controller alone, as for the
    rest of a shield. Use it with a guard of deadlines: a refused exit takes time that the controller did not count on.

    Args:
        controller: Of layer control.
        budget: Of the stream.
        points: Operating points of the chip.
        lean: Nats on a policy's logit of leaving where all is saved that can be, taken off where nothing is left; with 0 it
            decides as without a budget.

    Raises:
        BadValueError: The controller decides per token.
    """
    if controller.kind != "layer":
        raise BadValueError(
            f"an error budget for controller {controller.name!r}, which decides per token", "it refuses exits of layer control"
        )
    kind = _BudgetedRule if isinstance(controller, RuleController) else _BudgetedCalls
    return kind(controller, budget, points, lean)
