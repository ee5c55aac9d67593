"""Exits are paid out of an error budget that tokens earn: what holds the limits on quality, whatever the controller does.

Every token earns, when its first layer begins, what the limits allow per token. An exit costs what it can be expected to come
to, given what the probe reads there; one that costs more than is left is refused, and the next layer runs at the operating
point in force. What is not spent can be saved up to ``SAVED`` tokens' worth, with which a stream of requests begins. So any n
tokens in a row disagree, and lose likelihood, by no more than the limits allow n + ``SAVED`` tokens, as far as the expectation
is right. An exit is paid for when it is asked for: one that a deadline forbids, that a decision delay makes a later and surer
one, or that a controller which has failed no longer gets, errs on the safe side.

The expectation comes from recorded tokens, by exit and reading: of those that were read as agreeing no less than at any exit
before. Controllers leave where a token is sure for the first time; all tokens that read so would count the easy ones that
have left by then.

A refused exit takes time that the controller did not count on. The deadlines want a guard of their own beside the budget,
``clone_rl.envs.shield``; both together are what the command line calls the shield.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Actions, Controller, Observations, RuleController
from clone_rl.agents.rule import decide, rule
from clone_rl.envs.compiling import compiled, inlined
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import SPLITS, TraceSet
from clone_rl.errors import BadValueError

SAVED = 500
"""Tokens' worth of the limits that may be saved up; at 2 %, ten disagreements."""

_AGREE, _KL = OBSERVATION.index("agree"), OBSERVATION.index("kl")
_PHASE, _LAYER, _POINT = OBSERVATION.index("phase"), OBSERVATION.index("layer"), OBSERVATION.index("point")

_BINS = (24, 12)
"""Of the two readings, each observed within [-1, 1]."""

_PRIOR = 20
"""Tokens that a bin's neighbours count as."""

_COSTS = 2  # a disagreement, and nats of likelihood lost


@inlined
def _bin(reading: float, bins: int) -> int:
    return min(bins - 1, max(0, int((reading + 1.0) * 0.5 * bins)))


@compiled
def _count(shown: Any, came_to: Any, best: Any, n: Any, sums: Any) -> None:
    """Add the tokens that read as agreeing no less than ``best``, which they raise, to their bins."""
    for i in range(len(shown)):
        if shown[i, 0] >= best[i]:
            best[i] = shown[i, 0]
            agree, kl = _bin(shown[i, 0], _BINS[0]), _bin(shown[i, 1], _BINS[1])
            n[agree, kl, 0] += 1
            for k in range(_COSTS):
                sums[agree, kl, k] += came_to[i, k]


def exit_costs(traces: TraceSet, probes: bool = True) -> NDArray[np.float64]:
    """(L - 1, 24, 12, 2) what leaving comes to, by exit and by bin of the probe's agreement and KL as they are observed.

    Args:
        traces: The tokens of the training and validation splits are counted.
        probes: Whether readings tell tokens apart; else all bins have the exit's mean.

    Returns:
        Expected disagreements, and expected dNLL, nats, 0 where it is negative.

    Raises:
        BadValueError: The set has neither split.
    """
    known = np.flatnonzero(np.isin(traces.split, [SPLITS.index("train"), SPLITS.index("validation")]))
    if not len(known):
        raise BadValueError(
            f"{traces.source} has no train or validation documents",
            "exits' costs are learned there: record with --split train",
        )
    tokens = traces.decoded(known)
    shown, outcome = (column[tokens] for column in traces.packed)
    costs, best = np.zeros((traces.layers - 1, *_BINS, _COSTS)), np.full(len(tokens), -np.inf)
    for exit_, cost in enumerate(costs):
        readings, came_to = shown[:, exit_], outcome[:, exit_, :_COSTS].astype(np.float64)
        if not probes:
            cost[...] = came_to.mean(0) if len(tokens) else 1.0
            continue
        n, sums = np.zeros((*_BINS, 1), np.int64), np.zeros(cost.shape)
        _count(readings, came_to, best, n, sums)
        overall = sums.sum((0, 1)) / n.sum() if n.any() else 1.0
        alike = (sums.sum(1) + _PRIOR * overall) / (n.sum(1) + _PRIOR)  # of the same agreement, whatever the KL
        cost[...] = (sums + _PRIOR * alike[:, None]) / (n + _PRIOR)
    return np.maximum(costs, 0.0)


class ErrorBudget(NamedTuple):
    """What a stream of requests may still spend on exits.

    Attributes:
        cost: (L - 1, 24, 12, 2) of ``exit_costs``.
        limits: (2,) disagreements and nats that a token earns.
        balance: (2,) what is left, changed in place.
        refused: (1,) exits that were refused so far, changed in place.
    """

    cost: NDArray[np.float64]
    limits: NDArray[np.float64]
    balance: NDArray[np.float64]
    refused: NDArray[np.int64]

    @classmethod
    def of(cls, traces: TraceSet, limits: Limits, probes: bool = True) -> Self:
        """A budget for these limits, as a stream begins.

        Args:
            traces: Recorded from the model that runs.
            limits: On disagreement and dNLL, per token.
            probes: Whether the controller reads the probe.

        Raises:
            BadValueError: The traces have no training documents.
        """
        earned = np.array([limits.disagree, limits.dnll], np.float64)
        return cls(exit_costs(traces, probes), earned, SAVED * earned, np.zeros(1, np.int64))

    def admit(
        self, observations: Observations, exits: NDArray[np.bool_], over: NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_]:
        """Which exits pass; they are paid for, one request after another.

        Args:
            observations: (N, width) of requests side by side.
            exits: (N,) who wants to leave.
            over: (N,) requests that have ended; None has none.

        Returns:
            (N,) true where ``exits`` is and the budget has room.
        """
        passed = np.zeros(len(observations), np.bool_)
        over = np.zeros_like(passed) if over is None else over
        _admit_all(self, np.ascontiguousarray(observations, np.float32), exits, over, passed)
        return passed


@compiled
def _admitted(budget: ErrorBudget, observation: Any, exits: bool) -> bool:
    """Whether an exit passes, which is paid for then. Every token has to come here once at its first boundary."""
    if observation[_LAYER] == 0.0:
        for k in range(_COSTS):
            budget.balance[k] = min(SAVED * budget.limits[k], budget.balance[k] + budget.limits[k])
    if not exits:
        return False
    last = budget.cost.shape[0]
    layer = min(int(np.rint(observation[_LAYER] * (last + 1))), last)
    passes = bool(layer > 0 and observation[_PHASE] > 0.0)
    if passes:
        agree, kl = _bin(observation[_AGREE], _BINS[0]), _bin(observation[_KL], _BINS[1])
        for k in range(_COSTS):
            passes = passes and budget.cost[layer - 1, agree, kl, k] <= budget.balance[k]
    if passes:
        for k in range(_COSTS):
            budget.balance[k] -= budget.cost[layer - 1, agree, kl, k]
    else:
        budget.refused[0] += 1
    return passes


@compiled
def _admit_all(budget: ErrorBudget, observations: Any, exits: Any, over: Any, passed: Any) -> None:
    for i in range(len(observations)):
        if not over[i]:
            passed[i] = _admitted(budget, observations[i], exits[i])


class BudgetRule(NamedTuple):
    """A rule whose exits have to be paid for."""

    inner: Any
    budget: ErrorBudget
    top: int


@rule(BudgetRule)
def _within_budget(self: Any, observation: Any, memory: Any, action: Any) -> None:
    decide(self.inner, observation, memory, action)
    leaves = action[0] == self.top + 1
    if not _admitted(self.budget, observation, leaves) and leaves:
        action[0] = int(np.rint(observation[_POINT] * self.top))


@dataclass(frozen=True, eq=False)
class _Within:
    """A controller within a budget: in everything else the one that it was."""

    inner: Any
    budget: ErrorBudget
    points: int

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)


class _WithinRule(_Within, RuleController):
    """A compiled controller within a budget."""

    @property
    def rule(self) -> BudgetRule:
        return BudgetRule(self.inner.rule, self.budget, self.points - 1)

    @property
    def components(self) -> int:
        return int(self.inner.components)

    def memory(self, rows: int) -> NDArray[np.float64]:
        return np.asarray(self.inner.memory(rows))


class _WithinCalls(_Within):
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
def budgeted(controller: RuleController, budget: ErrorBudget, points: int) -> RuleController: ...


@overload
def budgeted(controller: Controller, budget: ErrorBudget, points: int) -> Controller: ...


def budgeted(controller: Any, budget: ErrorBudget, points: int) -> Any:
    """The same controller, but exits that cost more than the budget has left are refused.

    One budget serves a stream of requests, those after another and those side by side, of any threads: each decision is one
    compiled call, which holds the interpreter's lock. What deciding takes is charged as of the controller alone, as for the
    rest of a shield. Use it with a guard of deadlines: a refused exit takes time that the controller did not count on.

    Args:
        controller: Of layer control.
        budget: Of the stream.
        points: Operating points of the chip.

    Raises:
        BadValueError: The controller decides per token.
    """
    if controller.kind != "layer":
        raise BadValueError(
            f"an error budget for controller {controller.name!r}, which decides per token", "it refuses exits of layer control"
        )
    kind = _WithinRule if isinstance(controller, RuleController) else _WithinCalls
    return kind(controller, budget, points)
