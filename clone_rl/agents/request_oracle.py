"""The clairvoyant oracle: what a controller could have done that had known everything, and what none could have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.clairvoyant import Stage, plan, priced, tight_bound
from clone_rl.agents.oracle_set import SetResult, limit_prices, oracle_set, recorded_depths
from clone_rl.agents.request_costs import CostPrices, Request
from clone_rl.envs.control import Control, load_control
from clone_rl.envs.scenario import Scenario

__all__ = ["CostPrices", "OracleResult", "Request", "SetResult", "limit_prices", "oracle", "oracle_set", "recorded_depths"]


@dataclass(frozen=True)
class OracleResult:
    """One request.

    Attributes:
        energy_j: Of the schedule, as the kernel ran it.
        lower_bound_j: No controller, whatever it knows, has less energy and priced costs on this request.
        schedule: Actions of layer control in force at every layer boundary: points, or one past the top to leave.
        cost_j: ``energy_j`` and the schedule's priced costs: what ``lower_bound_j`` is to be held against.
        late, disagree, dnll: Sums over the schedule's tokens, as the kernel counted them.
        tokens: Of the response.
        prices: What a late token, a disagreement and a nat were worth; of an infinite price the finite stand-in.
    """

    energy_j: float
    lower_bound_j: float
    schedule: NDArray[np.int64]
    cost_j: float
    late: float
    disagree: float
    dnll: float
    tokens: int
    prices: CostPrices

    @property
    def gap(self) -> float:
        """What is left between schedule and bound, as a share of the schedule's energy."""
        return (self.cost_j - self.lower_bound_j) / self.energy_j


def oracle(
    scenario: str | Mapping[str, Any] | Scenario | Control,
    request: Request | tuple[int, int, int],
    prices: CostPrices | None = None,
    depths: NDArray[np.int64] | None = None,
    split: str = "test",
    gap: float = 0.005,
    most_operations: float = 1e9,
) -> OracleResult:
    """Solve one request.

    Args:
        scenario: What ``load_control`` takes, or a control, which saves the loading.
        request: ``(document, seed, episode)``.
        prices: Of a late token, a disagreement and a nat, joules. None: those at which the scenario's limits hold on its
            training split (see ``limit_prices``), but with hard deadlines: no token is late that need not be.
        depths: (T,) layers that each token runs; None leaves them free. With given depths prices of quality do not matter.
        split: Of which a negative document is drawn.
        gap: Between schedule and bound at which the search for a better bound stops, as a share of the energy.
        most_operations: Of the finest grid that is tried, about a nanosecond each.

    Raises:
        BadValueError: Exits are free and keys and values are not propagated, or the depths are impossible.
        CloneRLError: A name, a file or a value of the scenario is wrong.
    """
    control = scenario if isinstance(scenario, Control) else load_control("layer", scenario, split)
    if depths is not None:
        prices = CostPrices(np.inf if prices is None else prices.late)
    elif prices is None:
        prices = limit_prices(control)._replace(late=np.inf)
    stage, request = Stage.of(control, split), Request(*request)
    costs = stage.costs(request, prices, depths)
    made = plan(costs)
    figures = stage.replay([request], [made.schedule])[0]
    cost_j = float(priced(figures, prices, costs.late_j))
    lower_bound_j = tight_bound(costs, made, cost_j, gap * float(figures["energy_j"]), most_operations)
    return OracleResult(
        energy_j=float(figures["energy_j"]),
        lower_bound_j=lower_bound_j,
        schedule=made.schedule,
        cost_j=cost_j,
        late=float(figures["late"]),
        disagree=float(figures["disagree"]),
        dnll=float(figures["dnll"]),
        tokens=int(figures["tokens"]),
        prices=prices._replace(late=costs.late_j),
    )
