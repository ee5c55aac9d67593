"""Limits held by adaptive multipliers: a PID controller on each constraint (Stooke, Achiam and Abbeel, ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field

_MOST = 2.0
"""Largest relative error that is acted on: a price that overshoots makes a policy forget to exit."""


@dataclass
class Multiplier:
    """The price of one constraint.

    The error is relative to the limit, with a floor, so that a limit of 0 is a number like any other.

    Attributes:
        limit: Mean cost that is allowed.
        value: The price now, also the starting point of the integral.
        proportional, integral, derivative: Gains per relative error.
        ceiling: Highest price.
        floor: Smallest denominator of the relative error.
    """

    limit: float
    value: float = 2.0
    proportional: float = 0.3
    integral: float = 0.1
    derivative: float = 0.3
    ceiling: float = 40.0
    floor: float = 1e-3
    _sum: float = field(default=-1.0, repr=False)
    _last: float = field(default=0.0, repr=False)

    def update(self, measured: float) -> float:
        """Take a measured mean cost and return the new price.

        >>> price = Multiplier(limit=0.0)
        >>> price.update(0.1) > 2.0
        True
        """
        if self._sum < 0:
            self._sum = self.value
        error = min(_MOST, (measured - self.limit) / max(self.limit, self.floor))
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
