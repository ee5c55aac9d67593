"""The controller as a host's inference loop sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller, Decision, RuleController
from clone_rl.agents.policy import Policy
from clone_rl.errors import BadValueError
from clone_rl.runtime.actuator import Actuator, EmulatedActuator


class RuntimeController:
    """Asked at every layer boundary of one request at a time; re-usable, with bounded memory.

    Args:
        controller: Who decides: a policy or a baseline, of layer control.
        points: Operating points of the chip.
        actuator: What is set to each decision's point; an emulated one if None.

    Raises:
        BadValueError: The controller decides per token, not per layer.

    >>> import numpy as np
    >>> from clone_rl.agents.heuristics import Fixed
    >>> controller = RuntimeController(Fixed("performance", 7), points=8)
    >>> controller.begin("request 1")
    >>> controller.decide(np.zeros(16, np.float32))
    Decision(operating_point=7, exit=False)
    """

    def __init__(self, controller: Controller, points: int, actuator: Actuator | None = None) -> None:
        if controller.kind != "layer":
            raise BadValueError(
                f"controller {controller.name!r} decides per token", "a runtime loop asks per layer: use a LayerControl policy"
            )
        self.controller, self.points = controller, points
        self.actuator = actuator or EmulatedActuator(points)
        self._point = points - 1
        self.begin()

    @classmethod
    def load(cls, name: str = "default", actuator: Actuator | None = None) -> RuntimeController:
        """Load a shipped policy by name, or any by path.

        Raises:
            UnknownNameError: No shipped policy has this name.
            PolicyFileError: The file is damaged or made for other observations.
        """
        policy = Policy.load(name)
        return cls(policy, policy.heads[0] - 1, actuator)

    def begin(self, request: str = "", slo: str = "") -> None:
        """Start a request; forgets the one before."""
        self._report: dict[str, Any] = {"request": request, "slo": slo, "decisions": 0, "exits": 0, "switches": 0}
        self._report |= {"latency_s": 0.0, "energy_j": 0.0}
        self._memory = self.controller.memory(1) if isinstance(self.controller, RuleController) else None

    def decide(self, observation: NDArray[np.float32]) -> Decision:
        """What to do at this boundary, for one observation (16,); the actuator is set to the decision's point."""
        if self._memory is None:
            action = int(self.controller.act(observation[None])[0, 0])
        else:
            action = int(self.controller.act(observation[None], self._memory)[0, 0])  # type: ignore[call-arg]
        self._report["decisions"] += 1
        if action >= self.points:
            self._report["exits"] += 1
            return Decision(self._point, exit=True)
        self._report["switches"] += action != self._point
        self._point = action
        self.actuator.set(action)
        return Decision(action)

    def observe(self, latency_s: float, energy_j: float) -> None:
        """Take in what the last decision cost."""
        self._report["latency_s"] += latency_s
        self._report["energy_j"] += energy_j

    def report(self) -> dict[str, Any]:
        """Counts and sums of the request so far."""
        return dict(self._report)
