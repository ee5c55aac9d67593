"""The clairvoyant oracle on a set of requests whose means have to stay within limits.

Prices of the constraint costs make the requests independent of one another. For any prices p >= 0, the sum of the requests'
bounds less p times what the limits allow is below the energy of every controller that holds the limits on this set (weak
duality). The best prices are found by column generation: schedules found so far stand for all schedules in the dual, whose
best prices give the next ones. Of the schedules found, one per request is chosen so that the limits hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.clairvoyant import Plan, Stage, plan, priced, tight_bound
from clone_rl.agents.controller import Controller, RuleController
from clone_rl.agents.own import asked
from clone_rl.agents.request_costs import CostPrices, Costs, Request
from clone_rl.agents.rollout import charged_for
from clone_rl.envs.control import Control
from clone_rl.envs.figures import FIGURES
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError

COSTS = ("late", "disagree", "dnll")
_FIRST_PRICES = (0.0, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Of every cost at once, in full-depth tokens at the top point."""
_HIGHEST_PRICE = 300.0
_SEARCH_STEPS = 40  # of a golden-section search
_GOLDEN = 0.5 * (np.sqrt(5.0) - 1.0)


@dataclass(frozen=True)
class SetResult:
    """A set of requests.

    Attributes:
        energy_j: Of the chosen schedules, summed, as the kernel ran them.
        lower_bound_j: No controller that holds the limits on this set has less.
        prices: That the bound is of.
        figures: (R,) records of ``figures.FIGURES`` of the chosen schedules.
        schedules: R lists of actions in force.
        gaps: (R,) what is left between each request's best schedule at these prices and its bound, as a share of its energy.
        means: Late tokens, disagreements and nats per token.
        limits: What they were held within.
    """

    energy_j: float
    lower_bound_j: float
    prices: CostPrices
    figures: NDArray[np.void]
    schedules: tuple[NDArray[np.int64], ...]
    gaps: NDArray[np.float64]
    means: Limits
    limits: Limits

    @property
    def gap(self) -> float:
        """What is left between schedules and bound, as a share of the energy."""
        return 1.0 - self.lower_bound_j / self.energy_j


class _Columns:
    """Schedules found so far, and what each came to; (R, N) energies and (R, N, 3) costs."""

    def __init__(self, requests: int) -> None:
        self.plans: list[list[Plan]] = []
        self.figures = np.zeros((requests, 0), FIGURES)

    def add(self, plans: list[Plan], figures: NDArray[np.void]) -> None:
        self.plans.append(plans)
        self.figures = np.concatenate([self.figures, figures[:, None]], 1)

    @property
    def energy_j(self) -> NDArray[np.float64]:
        return np.ascontiguousarray(self.figures["energy_j"])

    @property
    def costs(self) -> NDArray[np.float64]:
        return np.stack([self.figures[name] for name in COSTS], 2)


def _golden(function: Callable[[float], Any], low: float, high: float) -> Any:
    """The best of a concave function of one number; it returns tuples that begin with the value."""
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = function(a), function(b)
    best = max(at_a, at_b, function(low), key=lambda found: found[0])
    for _ in range(_SEARCH_STEPS):
        if at_a[0] >= at_b[0]:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = function(b)
        best = max(best, at_a, at_b, key=lambda found: found[0])
        if high - low <= 1e-4 * high:
            break
    return best


def _best_prices(columns: _Columns, allowed: NDArray[np.float64], unit_j: float, held: NDArray[np.bool_]) -> tuple[float, Any]:
    """``(dual value, (3,) prices)`` of the columns, whatever other schedules there may be."""
    energy, costs = columns.energy_j, columns.costs

    def search(prices: tuple[float, ...], rest: NDArray[np.float64]) -> Any:
        which = len(prices)
        if which == len(COSTS):
            return float(rest.min(1).sum() - np.dot(prices, allowed)), prices
        if not held[which]:
            return search((*prices, 0.0), rest)
        top = _HIGHEST_PRICE * unit_j
        # The square root spreads the low prices, and keeps the function unimodal.
        return _golden(lambda root: search((*prices, root**2), rest + root**2 * costs[..., which]), 0.0, float(np.sqrt(top)))

    value, prices = search((), energy)
    return value, np.array(prices)


def _choose(columns: _Columns, prices: NDArray[np.float64], allowed: NDArray[np.float64], held: Any) -> NDArray[np.int64]:
    """(R,) which column of each request: the cheapest at these prices, mended until the limits hold, then bettered."""
    energy, costs = columns.energy_j, columns.costs * held
    row, cost = np.arange(len(energy)), energy + (columns.costs * held) @ prices
    chosen: NDArray[np.int64] = cost.argmin(1)
    slack = allowed - costs[row, chosen].sum(0)
    scale = np.maximum(allowed, 1.0)

    def violation(left: Any) -> Any:
        return (np.maximum(0.0, -left) / scale).sum(-1)

    tolerance = 1e-12
    while violation(slack) > tolerance:
        after = violation(slack + costs[row, chosen][:, None] - costs)
        gained = violation(slack) - after
        dearer = np.maximum(cost - cost[row, chosen][:, None], 1e-15)
        rate = np.where(gained > tolerance, gained / dearer, -1.0)
        i, j = np.unravel_index(rate.argmax(), rate.shape)
        if rate[i, j] <= 0.0:
            break
        slack = slack + costs[i, chosen[i]] - costs[i, j]
        chosen[i] = j
    while violation(slack) <= tolerance:
        fits = (slack + costs[row, chosen][:, None] - costs >= -tolerance * scale).all(2)
        saved = np.where(fits, energy[row, chosen][:, None] - energy, 0.0)
        i, j = np.unravel_index(saved.argmax(), saved.shape)
        if saved[i, j] <= 0.0:
            break
        slack = slack + costs[i, chosen[i]] - costs[i, j]
        chosen[i] = j
    return chosen


class _Search:
    """Column generation over a set of requests."""

    def __init__(
        self, stage: Stage, requests: Sequence[Request], limits: Limits, depths: Sequence[NDArray[np.int64]] | None
    ) -> None:
        self.stage, self.requests, self.limits, self.depths = stage, requests, limits, depths
        self.columns = _Columns(len(requests))
        self.unit_j = float(stage.control.prices.reference_j.mean())
        self.lengths = np.diff(stage.control.traces.offset)[[request.document for request in requests]]
        self.allowed = np.array([limits.miss, limits.disagree, limits.dnll]) * self.lengths.sum()
        # A limit of infinity is none, and given exits have the quality that they have.
        self.held = np.isfinite(self.allowed) & (np.arange(len(COSTS)) == 0 if depths is not None else True)
        self.allowed = np.where(self.held, self.allowed, 0.0)

    def costs(self, row: int, prices: NDArray[np.float64]) -> Costs:
        given = None if self.depths is None else self.depths[row]
        return self.stage.costs(self.requests[row], CostPrices(*map(float, prices)), given)

    def add(self, prices: NDArray[np.float64]) -> float:
        """Schedules at these prices; the dual's value there, but for what the grid loses."""
        plans = [plan(self.costs(row, prices)) for row in range(len(self.requests))]
        figures = self.stage.replay(self.requests, [made.schedule for made in plans])
        self.columns.add(plans, figures)
        total = figures["energy_j"].sum() + sum(p * figures[name].sum() for p, name in zip(prices, COSTS, strict=True))
        return float(total - prices @ self.allowed)

    def run(self, rounds: int, tolerance: float, progress: Callable[[Sequence[int]], Iterable[int]]) -> NDArray[np.float64]:
        """Find the prices at which schedules already found are as good as any, to within a share of the energy."""
        best, prices = -np.inf, np.zeros(len(COSTS))
        for step in progress(range(len(_FIRST_PRICES) + rounds)):
            if step < len(_FIRST_PRICES):
                tried = np.where(self.held, _FIRST_PRICES[step] * self.unit_j, 0.0)
                ceiling = np.inf
            else:
                ceiling, tried = _best_prices(self.columns, self.allowed, self.unit_j, self.held)
            value = self.add(tried)
            if value > best:
                best, prices = value, tried
            if ceiling - best <= tolerance * self.columns.energy_j.min(1).sum():
                break
        return prices

    def chosen(self, prices: NDArray[np.float64]) -> NDArray[np.int64]:
        """(R,) columns that hold the limits.

        Raises:
            BadValueError: None found does.
        """
        found = _choose(self.columns, prices, self.allowed, self.held)
        sums = self.columns.costs[np.arange(len(found)), found].sum(0)
        for which in np.flatnonzero(self.held & (sums > self.allowed * (1.0 + 1e-9) + 1e-9)):
            name, tokens = ("miss", "disagree", "dnll")[which], self.lengths.sum()
            least = self.columns.costs[..., which].min(1).sum() / tokens
            raise BadValueError(
                f"no clairvoyant schedule holds {name} <= {getattr(self.limits, name):g} on these requests",
                f"the least found is {least:.4g}",
            )
        return found


def oracle_set(
    control: Control,
    split: str,
    documents: NDArray[np.int64],
    seed: int | NDArray[np.int64],
    limits: Limits | None = None,
    depths: Sequence[NDArray[np.int64]] | None = None,
    rounds: int = 12,
    gap: float = 0.003,
    most_operations: float = 1e9,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> SetResult:
    """Solve the requests that ``run_requests`` gives a controller, within limits on their means.

    Args:
        control: The scenario.
        split: Which split the documents belong to.
        documents: (R,) documents.
        seed: Key of the draws: request i has ``seed + i``, or its own where (R,) keys are given.
        limits: What has to hold; the scenario's if None.
        depths: R arrays of the layers that each token runs, see ``recorded_depths``; None leaves the exits free. With given
            exits the miss rate alone is held: the result is the best choice of operating points for them.
        rounds: Most steps of the search for prices, after the first few.
        gap: Share of a request's energy within which its bound is good enough.
        most_operations: Of the finest grid of a bound, about a nanosecond each.
        progress: Wraps the steps of the search (a progress bar).

    Raises:
        BadValueError: No schedule holds the limits, exits are free and keys and values are not propagated, or the depths are
            impossible.
    """
    limits = limits or control.scenario.limits
    requests = [Request(*map(int, key)) for key in zip(documents, _keys(seed, len(documents)), strict=True)]
    search = _Search(Stage.of(control, split), requests, limits, depths)
    prices = search.run(rounds, 1e-3, progress)
    chosen = search.chosen(prices)
    figures = search.columns.figures[np.arange(len(chosen)), chosen]
    bound_j = -float(prices @ search.allowed)
    named = CostPrices(*map(float, prices))
    cheapest = (search.columns.energy_j + (search.columns.costs * search.held) @ prices).argmin(1)
    gaps = np.zeros(len(chosen))
    for row, column in enumerate(cheapest):
        costs, made = search.costs(row, prices), search.columns.plans[column][row]
        best, energy_j = search.columns.figures[row, column], float(figures[row]["energy_j"])
        best_j = float(priced(best, named, costs.late_j))
        below_j = tight_bound(costs, made, best_j, gap * energy_j, most_operations)
        bound_j += below_j
        gaps[row] = (best_j - below_j) / energy_j
    tokens = figures["tokens"].sum()
    return SetResult(
        energy_j=float(figures["energy_j"].sum()),
        lower_bound_j=bound_j,
        prices=named,
        figures=figures,
        schedules=tuple(search.columns.plans[column][row].schedule for row, column in enumerate(chosen)),
        gaps=gaps,
        means=Limits(*(max(0.0, float(figures[name].sum() / tokens)) for name in COSTS)),
        limits=limits,
    )


def limit_prices(control: Control, limits: Limits | None = None, requests: int = 24, seed: int = 0) -> CostPrices:
    """Prices at which schedules of the training split hold the limits.

    Args:
        control: The scenario.
        limits: What has to hold; the scenario's if None.
        requests: How many documents, evenly from the split.
        seed: Of service levels and interference.
    """
    documents = control.traces.documents("train")
    picked = documents[np.linspace(0, len(documents) - 1, min(requests, len(documents))).astype(np.int64)]
    keys = [Request(int(document), seed + row) for row, document in enumerate(picked)]
    search = _Search(Stage.of(control, "train"), keys, limits or control.scenario.limits, None)
    return CostPrices(*map(float, search.run(8, 2e-3, iter)))


def _keys(seed: int | NDArray[np.int64], requests: int) -> NDArray[np.int64]:
    """(R,) keys of requests."""
    return np.asarray(seed, np.int64) if np.ndim(seed) else seed + np.arange(requests)


def recorded_depths(
    control: Control, controller: Controller, split: str, documents: NDArray[np.int64], seed: int | NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Layers that a controller ran for every token: R arrays, one for each request of ``run_requests``.

    Args:
        control, controller, split, documents: As of ``run_requests``.
        seed: As of ``oracle_set``.
    """
    own = charged_for(control, controller, split)
    rows = Rows(own.world, len(documents), len(own.heads))
    observation = rows.reset(_keys(seed, len(documents)), np.zeros(len(documents), np.int64), documents)
    lengths = rows.state["tokens"].copy()
    depths = [np.zeros(length, np.int64) for length in lengths]
    memory = (controller.memory(len(documents)),) if isinstance(controller, RuleController) else ()
    for _ in range(int(lengths.max()) * own.traces.layers):
        before = rows.state["token"].copy()
        observation = rows.step(asked(controller, own, observation, *memory)).observation
        for row in np.flatnonzero(rows.state["token"] > before):
            depths[row][before[row]] = rows.state["left"][row]
        if (rows.state["done"] == 1).all():
            break
    return depths
