"""Limits held by adaptive multipliers: a PID controller on each constraint (Stooke, Achiam and Abbeel, ICML 2020).

As in their algorithm 2, the integral never falls below 0, the derivative acts on rises only, and the price is the positive
part of the sum. Two things differ: errors are relative to the limit, so that one set of gains serves all constraints, and the
integral starts from the scenario's weight, not from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from clone_rl.errors import BadValueError

_MOST = 2.0
"""Largest relative error, above or below, that is acted on: a price that overshoots makes a policy forget to exit."""


@dataclass
class Multiplier:
    """The price of one constraint.

    The error is relative to the limit, with a floor, so that a limit of 0 is a number like any other. A measurement that is
    not a number says nothing, and the price stays; an infinite one is as bad, or as good, as any.

    Attributes:
        limit: Mean cost that is allowed; infinite is never broken.
        value: The price now, also the starting point of the integral.
        proportional, integral, derivative: Gains per relative error.
        ceiling: Highest price.
        floor: Smallest denominator of the relative error.

    Raises:
        BadValueError: The limit is negative or not a number.
    """

    limit: float
    value: float = 2.0
    proportional: float = 2.0
    integral: float = 0.1
    derivative: float = 0.3
    ceiling: float = 40.0
    floor: float = 1e-3
    _sum: float = field(default=-1.0, repr=False)
    _last: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        if not self.limit >= 0:
            raise BadValueError(f"limit is {self.limit}", "0 or more")

    def update(self, measured: float) -> float:
        """Take a measured mean cost and return the new price.

        >>> price = Multiplier(limit=0.0)
        >>> price.update(0.1) > 2.0
        True
        """
        if math.isnan(measured):
            return self.value
        if self._sum < 0:
            self._sum = self.value
        over = -math.inf if self.limit == math.inf else measured - self.limit
        error = min(_MOST, max(-_MOST, over / max(self.limit, self.floor) if math.isfinite(over) else over))
        self._sum = min(self.ceiling, max(0.0, self._sum + self.integral * error))
        rise = max(0.0, error - self._last)
        self._last = error
        self.value = min(self.ceiling, max(0.0, self._sum + self.proportional * error + self.derivative * rise))
        return self.value

    def state(self) -> dict[str, float]:
        """What a checkpoint has to keep."""
        return {"value": self.value, "sum": self._sum, "last": self._last}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from a checkpoint."""
        self.value, self._sum, self._last = state["value"], state["sum"], state["last"]
