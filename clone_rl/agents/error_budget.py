"""Exits are paid out of an error budget that tokens earn: what holds the limits on quality, whatever the controller does.

Every token earns, when its first layer begins, ``EARNED`` of what the limits allow per token. An exit costs what it can be
expected to come to, given what the probe reads there; one that costs more than is left is refused, and the next layer runs at
the operating point in force. What is not spent can be saved up to ``SAVED`` tokens' worth, with half of which a stream of
requests begins. So any n tokens in a row disagree, and lose likelihood, by no more than what n + ``SAVED`` tokens earn, as far
as the expectation is right. An exit is paid for when it is asked for, and given back where a deadline then forbids it. One
that a decision delay makes a later and surer one, or that a controller which has failed no longer gets, errs on the safe side.

The expectation comes from recorded tokens, by exit and reading: of those that were read as agreeing no less than at any exit
before. Controllers leave where a token is sure for the first time; all tokens that read so would count the easy ones that
have left by then.

Who knows of a budget need not wait for its refusals: ``leaning`` says where exits may come to more than the limits were meant
for, since much has been saved, and where to less.

A refused exit takes time that the controller did not count on. The deadlines want a guard of their own beside the budget,
``clone_rl.envs.shield``; both together are what the command line calls the shield.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Observations
from clone_rl.envs.compiling import compiled, inlined
from clone_rl.envs.observation import OBSERVATION
from clone_rl.envs.scenario import Limits
from clone_rl.envs.trace import SPLITS, TraceSet
from clone_rl.errors import BadValueError

SAVED = 500
"""Tokens' worth that may be saved up: of a limit of 2 %, some nine disagreements."""

EARNED = 0.85
"""Share of the limits that tokens earn. The rest is for what an expectation cannot know: so much, and of ten streams of two
hundred requests that it was not learned from nine hold the limits, of a controller that spends all; see
``experiments/error_budget.py``."""

_AGREE, _KL = OBSERVATION.index("agree"), OBSERVATION.index("kl")
_PHASE, _LAYER = OBSERVATION.index("phase"), OBSERVATION.index("layer")

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
            "exits' costs are learned there: clone-rl record --prompt-file FILE --split train",
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
        earned: (2,) disagreements and nats, for each token.
        balance: (2,) what is left, changed in place.
        refused: (1,) exits that were refused so far, changed in place.
    """

    cost: NDArray[np.float64]
    earned: NDArray[np.float64]
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
        earned = EARNED * np.array([limits.disagree, limits.dnll], np.float64)
        return cls(exit_costs(traces, probes), earned, 0.5 * SAVED * earned, np.zeros(1, np.int64))

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

    def refund(self, observations: Observations, forbidden: NDArray[np.bool_]) -> None:
        """Give back what exits cost that passed and are not taken after all.

        Args:
            observations: (N, width) as of ``admit``.
            forbidden: (N,) whose exits those are.
        """
        _refund_all(self, np.ascontiguousarray(observations, np.float32), forbidden)


@inlined
def _entry(budget: ErrorBudget, observation: Any) -> Any:
    """Where ``budget.cost`` has what an exit costs here: ``(exit, agree, kl)``; the exit is -1 where there is none."""
    last = budget.cost.shape[0]
    layer = min(int(np.rint(observation[_LAYER] * (last + 1))), last)
    exit_ = layer - 1 if observation[_PHASE] > 0.0 else -1
    return exit_, _bin(observation[_AGREE], _BINS[0]), _bin(observation[_KL], _BINS[1])


@compiled
def admitted(budget: ErrorBudget, observation: Any, exits: bool) -> bool:
    """Whether an exit passes, which is paid for then. Every token has to come here once at its first boundary."""
    if observation[_LAYER] == 0.0:
        for k in range(_COSTS):
            budget.balance[k] = min(SAVED * budget.earned[k], budget.balance[k] + budget.earned[k])
    if not exits:
        return False
    exit_, agree, kl = _entry(budget, observation)
    passes = bool(exit_ >= 0)
    if passes:
        for k in range(_COSTS):
            passes = passes and budget.cost[exit_, agree, kl, k] <= budget.balance[k]
    if passes:
        for k in range(_COSTS):
            budget.balance[k] -= budget.cost[exit_, agree, kl, k]
    else:
        budget.refused[0] += 1
    return passes


@compiled
def refund(budget: ErrorBudget, observation: Any) -> None:
    """Give back what an exit cost that passed here and is not taken after all, since a deadline forbids it."""
    exit_, agree, kl = _entry(budget, observation)
    for k in range(_COSTS):
        budget.balance[k] = min(SAVED * budget.earned[k], budget.balance[k] + budget.cost[exit_, agree, kl, k])


@inlined
def leaning(budget: ErrorBudget, observation: Any) -> float:
    """How far the balance speaks for leaving here: 1 where all is saved that can be, 0 with half of it, -1 with nothing left.

    Of what is left of both, each weighs as much as it is of what an exit costs here, counted in what a token earns.
    """
    exit_, agree, kl = _entry(budget, observation)
    if exit_ < 0:
        return 0.0
    left, cost = 0.0, 0.0
    for k in range(_COSTS):
        # What costs nothing weighs both alike; a limit of 0 weighs most.
        full, weight = SAVED * budget.earned[k], 1e-4 + budget.cost[exit_, agree, kl, k] / max(budget.earned[k], 1e-9)
        share = 1.0 if full > 0.0 else 0.0
        if budget.balance[k] < full:
            share = budget.balance[k] / full
        left, cost = left + weight * share, cost + weight
    return 2.0 * left / cost - 1.0


@compiled
def _admit_all(budget: ErrorBudget, observations: Any, exits: Any, over: Any, passed: Any) -> None:
    for i in range(len(observations)):
        if not over[i]:
            passed[i] = admitted(budget, observations[i], exits[i])


@compiled
def _refund_all(budget: ErrorBudget, observations: Any, forbidden: Any) -> None:
    for i in range(len(observations)):
        if forbidden[i]:
            refund(budget, observations[i])
