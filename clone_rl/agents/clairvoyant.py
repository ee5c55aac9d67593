"""One request solved with everything known: a schedule that the kernel has run, and what no controller can go below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.clock_program import follow_plan, request_values
from clone_rl.agents.request_costs import CostPrices, Costs, Request, request_costs
from clone_rl.envs.control import Control
from clone_rl.envs.rows import Rows

MOST_MACS = 2048
"""Multiply-accumulates of a decision up to which a bound holds: twice those of the largest controller that ships."""

_LOOK = 16  # buckets over which the price of time is measured
_EVERY_START = 2e8  # operations
_ROUNDING = 1e-9  # of the sums of floats behind a bound


@dataclass(frozen=True)
class Stage:
    """A scenario as the clairvoyant plays it: nothing to pay for deciding.

    Attributes:
        control: Layer control without probe and controller.
        wait_s: The longest that a controller with a probe and ``MOST_MACS`` may hold up a layer, by chip.
    """

    control: Control
    wait_s: NDArray[np.float64]

    @classmethod
    def of(cls, control: Control, split: str) -> Stage:
        """The scenario of a control, on a split."""
        scenario = control.scenario
        free = control.serving("layer", replace(scenario, policy_macs=0, probe=False, signals=()), split)
        macs = max(MOST_MACS, scenario.policy_macs)
        charged = control.serving("layer", replace(scenario, policy_macs=macs, probe=True, decision_delay=0), split)
        return cls(free, charged.world.decision_s.max(1))

    def costs(self, request: Request, prices: CostPrices, depths: NDArray[np.int64] | None = None) -> Costs:
        """Tables of a request; see ``request_costs``."""
        slowest = float(self.control.world.rules[0]["slowdown_high"])
        return request_costs(self.control, request, prices, depths, slowest * float(self.wait_s.max()))

    def replay(self, requests: Sequence[Request], schedules: Sequence[NDArray[np.int64]]) -> NDArray[np.void]:
        """Figures of schedules as the kernel runs them.

        Args:
            requests: R requests.
            schedules: R lists of actions in force, one for every layer boundary.

        Returns:
            (R,) records of ``figures.FIGURES``.
        """
        rows = Rows(self.control.world, len(requests))
        keys = np.array(requests, np.int64)
        rows.reset(keys[:, 1].copy(), keys[:, 2].copy(), keys[:, 0].copy())
        late = int(self.control.scenario.decision_delay)  # what is in force first was never decided
        actions = np.zeros((max(map(len, schedules)), len(requests), 1), np.int64)
        for row, schedule in enumerate(schedules):
            actions[: len(schedule) - late, row, 0] = schedule[late:]
        for action in actions:
            rows.step(action)
        return rows.figures()


def price_of_steps(costs: Costs) -> NDArray[np.float64]:
    """(2, P - 1) joules that each second costs which a decoded layer gains by one point more; at least 0."""
    seconds, joules = costs.run_s[:, -1, 0], costs.run_j[:, -1, 0]
    gained_s = np.maximum(seconds[:, :-1] - seconds[:, 1:], 1e-15)
    return np.maximum(0.0, np.diff(joules, axis=1) / gained_s)


def _multipliers(costs: Costs) -> NDArray[np.float64]:
    """(T, M) what a second of each token is worth under a deadline per token, in both states of the co-runner; 0 first.

    The best multiplier of a token by itself, of those at which its cheapest points change.
    """
    tokens = costs.run_s.shape[1]
    if not costs.per_token:
        return np.zeros((tokens, 1))
    found = np.zeros((tokens, 3))
    tried = np.unique(np.concatenate([[0.0], price_of_steps(costs).ravel()]))
    for busy in range(2):
        worth = []
        for price in tried:
            run = np.cumsum((costs.run_j[busy] + price * costs.run_s[busy]).min(2), 1)
            leave = (costs.leave_j[busy] + price * costs.leave_s[busy]).min(2)
            worth.append(np.minimum(run[:, -1], (run[:, :-1] + leave[:, 1:]).min(1)) - price * costs.tpot_s)
        found[:, 1 + busy] = tried[np.argmax(worth, 0)]
    return np.sort(found, 1)


@dataclass(frozen=True)
class _Grid:
    """Buckets of a clock, and room for the values in them."""

    per_slot: int
    size: int
    starts: NDArray[np.float64]
    values: NDArray[np.float64]
    run: NDArray[np.float64]

    @classmethod
    def of(cls, costs: Costs, width_s: float, rows: int) -> _Grid:
        """Buckets of at most ``width_s``, and room for so many rows of values."""
        _, _, layers, points = costs.run_s.shape
        per_slot = max(1, int(np.ceil(costs.slot_s / width_s)))
        width_s = costs.slot_s / per_slot
        size = int(costs.horizon_s / width_s) + 2
        longest_s = max(costs.run_s.max(), costs.leave_s.max(), costs.switch_s.max(), costs.wait_s)
        total = size + int(longest_s / width_s) + 3
        return cls(
            per_slot,
            size,
            np.empty((rows, points, total)),
            np.empty((layers + 2, points, total)),
            np.empty((points, total)),
        )

    def reach(self, costs: Costs) -> int:
        """Buckets of the slowest token, where so small a request has deadlines per token that every start can be tried."""
        switches_s = costs.changes[0].sum(1) * costs.switch_s.max()
        slowest_s = (costs.run_s[1].max(2).sum(1) + switches_s)[1:].max(initial=0.0)
        buckets = int(slowest_s * self.per_slot / costs.slot_s) + 2
        work = float(costs.run_s[0].size) * costs.run_s.shape[3] * self.size * buckets
        return buckets if costs.per_token and work <= _EVERY_START else 0


@dataclass(frozen=True)
class Plan:
    """A schedule, and what made it.

    Attributes:
        schedule: Actions in force, one for every layer boundary: points, or one past the top to leave.
        slopes: (T,) W, what a second was worth at the beginning of every token.
        width_s: Of its buckets.
    """

    schedule: NDArray[np.int64]
    slopes: NDArray[np.float64]
    width_s: float


def finest_layer_s(costs: Costs) -> float:
    """Seconds of the shortest decoded layer: the natural width of a bucket."""
    return float(costs.run_s[0, -1, 0].min())


def plan(costs: Costs, width_s: float | None = None) -> Plan:
    """A feasible schedule, by values on a grid that are followed on the true clock.

    Args:
        costs: The request.
        width_s: Of a bucket; that of the shortest layer if None.
    """
    _, tokens, layers, _ = costs.run_s.shape
    width_s = finest_layer_s(costs) if width_s is None else width_s
    grid, none = _Grid.of(costs, width_s, tokens + 1), np.zeros(tokens)
    prices, reach = _multipliers(costs), grid.reach(costs)
    request_values(costs, none, prices, False, grid.per_slot, grid.size, reach, grid.starts, grid.values, grid.run)
    actions, slopes = np.zeros(tokens * layers, np.int64), np.zeros(tokens)
    count = follow_plan(costs, grid.per_slot, grid.size, _LOOK * width_s, grid.starts, grid.values, grid.run, actions, slopes)
    return Plan(actions[:count], np.minimum(slopes, price_of_steps(costs).max()), width_s)


def bound(costs: Costs, tilts: NDArray[np.float64], width_s: float) -> float:
    """Joules, priced costs included, that no controller can go below.

    Args:
        costs: The request.
        tilts: (T,) W; any numbers give a bound, the slopes of a plan a tight one.
        width_s: Of a bucket.
    """
    grid = _Grid.of(costs, width_s, 2)
    request_values(costs, tilts, _multipliers(costs), True, grid.per_slot, grid.size, 0, grid.starts, grid.values, grid.run)
    first = int(costs.begin_s * grid.per_slot / costs.slot_s)
    found = float(grid.starts[0, -1, first] + tilts[0] * costs.begin_s)
    return found - _ROUNDING * (abs(found) + float(costs.rest_j[0, 0]))


def tight_bound(costs: Costs, made: Plan, cost_j: float, gap_j: float, most_operations: float) -> float:
    """The best bound of ever narrower buckets, until it is within ``gap_j`` of a schedule's cost or the work is spent.

    Args:
        costs: The request.
        made: Of the schedule.
        cost_j: Of the schedule, priced costs included.
        gap_j: What is good enough.
        most_operations: Of the narrowest grid, about a nanosecond each; the first one is always tried.
    """
    _, tokens, layers, points = costs.run_s.shape
    width_s, best = 0.5 * made.width_s, -np.inf
    each = tokens * layers * points**2 * costs.horizon_s
    while True:
        best = max(best, bound(costs, made.slopes, width_s))
        width_s *= 0.5
        if cost_j - best <= gap_j or each / width_s > most_operations:
            return best


def priced(figures: Any, prices: CostPrices, late_j: float) -> Any:
    """Energy and priced costs of figures, joules; ``late_j`` stands for the price of lateness where that is infinite."""
    late_j = prices.late if np.isfinite(prices.late) else late_j
    return (
        figures["energy_j"] + late_j * figures["late"] + prices.disagree * figures["disagree"] + prices.dnll * figures["dnll"]
    )
