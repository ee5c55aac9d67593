"""The emulated chip's clock and energy counter, read beside the controller."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Decision, LayerCost
from clone_rl.envs.scenario import ServiceLevel


class Meter:
    """A controller that is also measured: what its decisions took adds up here, over all requests.

    Args:
        controller: Who decides; ``clone_rl.runtime.RuntimeController`` is one.

    Attributes:
        clock_s: Emulated seconds that the chip has worked, the request in flight included; never runs backwards.
        energy_j: Joules of the request in flight.
    """

    def __init__(self, controller: Any) -> None:
        self.controller = controller
        self.clock_s, self.energy_j = 0.0, 0.0
        self._request: Any = None
        self._began_s = self._last_s = 0.0

    def begin(self, name: str, level: ServiceLevel, prompt_tokens: int, max_new_tokens: int, waited_s: float) -> None:
        """Start a request; arguments as of ``RuntimeController.begin``."""
        self._began_s, self._last_s, self.energy_j = self.clock_s, 0.0, 0.0
        self._request = self.controller.begin(name, level, prompt_tokens, max_new_tokens, waited_s)

    def decide(self, observation: NDArray[np.float32]) -> Decision:
        """As the controller decides."""
        self.clock_s += self._last_s
        decision: Decision = self._request.decide(observation)
        return decision

    def observe(self, cost: LayerCost) -> None:
        """What the last decision took; that of the last one of all counts idling up to the last deadline, so it waits."""
        self._last_s = cost.latency_s
        self.energy_j += cost.energy_j
        self._request.observe(cost)

    def end(self, worked_s: float | None = None) -> float:
        """End the request, after so many seconds of work, or where it was cut off; returns what it took."""
        if worked_s is not None:
            self.clock_s = max(self.clock_s, self._began_s + worked_s)
        return self.clock_s - self._began_s

    def report(self) -> dict[str, Any]:
        """The controller's own, of the request begun last."""
        report: dict[str, Any] = self._request.report()
        return report
