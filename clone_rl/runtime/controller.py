"""The controller as a host's inference loop sees it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.budgeted import Budgeted
from clone_rl.agents.controller import Controller, Decision, LayerCost
from clone_rl.agents.lut import load_policy
from clone_rl.agents.own import accepted
from clone_rl.envs.observation import N_OBS
from clone_rl.envs.scenario import Limits, ServiceLevel
from clone_rl.envs.shield_tables import Shield
from clone_rl.errors import BadValueError
from clone_rl.runtime.actuator import Actuator, EmulatedActuator
from clone_rl.runtime.asking import asking
from clone_rl.runtime.request import RuntimeRequest
from clone_rl.runtime.shield import Watch


class RuntimeController:
    """Asked at every layer boundary; re-usable, with bounded memory.

    ``begin`` gives a request to ask. ``decide``, ``observe`` and ``report`` of the controller itself are those of the request
    that the calling thread began last, so that one controller serves several threads.

    Args:
        controller: Who decides: a policy, a baseline or anything with ``act``, see ``clone_rl.agents.own``; of layer control.
        points: Operating points of the chip.
        actuator: What is set to a decision's point where it changes; an emulated one if None. Where it fails, the request goes
            on and the next decision tries again.
        shield: What overrules decisions that may cost a deadline, see ``clone_rl.runtime.shield``. Its clock is what
            ``observe`` is told; a decision without a cost ends the controller's part in a request.
        max_decision_s: Longest time of one decision; a controller that takes longer is not asked again in this request.
        compiled: Run the controller as machine code; else NumPy computes a policy, which takes longer and compiles nothing.

    Raises:
        BadValueError: It is no controller, or one that decides per token; the shield is of another chip; or a number is wrong.

    >>> import numpy as np
    >>> from clone_rl.agents.heuristics import Fixed
    >>> controller = RuntimeController(Fixed("performance", 7), points=8)
    >>> request = controller.begin("request 1")
    >>> request.decide(np.zeros(16, np.float32))
    Decision(operating_point=7, exit=False)
    >>> request.observe(LayerCost(latency_s=2e-5, energy_j=1e-6))
    >>> controller.report()["decisions"]
    1
    """

    def __init__(
        self,
        controller: Controller,
        points: int,
        actuator: Actuator | None = None,
        shield: Shield | None = None,
        max_decision_s: float | None = None,
        compiled: bool = True,
    ) -> None:
        controller = accepted(controller)
        if controller.kind != "layer":
            raise BadValueError(
                f"controller {controller.name!r} decides per token", "a runtime loop asks per layer: use a LayerControl policy"
            )
        if shield is not None and shield.head_s.shape[1] != points:
            raise BadValueError(f"a shield of {shield.head_s.shape[1]} operating points", f"the controller has {points}")
        if max_decision_s is not None and not max_decision_s > 0.0:
            raise BadValueError(f"max_decision_s is {max_decision_s}", "above 0, or None")
        self.controller, self.points, self.shield = controller, points, shield
        self.budget = controller.budget if isinstance(controller, Budgeted) else None
        self.actuator = actuator or EmulatedActuator(points)
        self.max_decision_s, self._compiled = max_decision_s, compiled
        self._width = N_OBS + len(getattr(controller, "signals", ()))
        self._decisions = [Decision(p) for p in range(points)], [Decision(p, exit=True) for p in range(points)]
        self._lock, self._own, self._point = threading.Lock(), threading.local(), points - 1
        self._applied: int | None = None  # hardware is not known to be at the top
        # Compiled now, so that no request waits for it.
        asking(controller, self._width, compiled)
        if shield is not None:
            Watch(shield, ServiceLevel("none", 1.0, 1.0), 1, 1)

    @classmethod
    def load(
        cls,
        name: str = "default",
        actuator: Actuator | None = None,
        shield: Shield | None = None,
        max_decision_s: float | None = None,
        compiled: bool = True,
        limits: Limits | None = None,
    ) -> RuntimeController:
        """Load a shipped policy by name, or any policy or look-up table by path.

        Args:
            name: Of a shipped policy, or a path.
            actuator, shield, max_decision_s, compiled: As of the class.
            limits: What a conditioned policy is to hold, see ``Policy.load``.

        Raises:
            UnknownNameError: No shipped policy has this name.
            PolicyFileError: The file is damaged or made for other observations.
            BadValueError: As the class, or limits that a conditioned policy was not trained for.
        """
        policy = load_policy(name, limits)
        return cls(policy, policy.heads[0] - 1, actuator, shield, max_decision_s, compiled)

    def _apply(self, operating_point: int) -> None:
        if operating_point == self._applied == self._point:  # nearly always, and a change under way has applied none
            return
        with self._lock:
            self._point = operating_point
            if operating_point != self._applied:
                self._applied = None  # what a change that fails leaves behind is not known
                self.actuator.set(operating_point)
                self._applied = operating_point

    def begin(
        self,
        request: str = "",
        slo: str | ServiceLevel = "",
        prompt_tokens: int = 0,
        max_new_tokens: int = 0,
        waited_s: float = 0.0,
    ) -> RuntimeRequest:
        """Start a request; the calling thread's own one from now on.

        Args:
            request: Its name, for the report and the log.
            slo: Its service level; a shield needs the targets, where else a name will do.
            prompt_tokens, max_new_tokens: Of the prompt, and of the response at most; a shield needs them.
            waited_s: Seconds that have gone by since the request came; they count against TTFT.

        Raises:
            BadValueError: The shield lacks something, or its tables do not reach as far.
        """
        watch = None
        if self.shield is not None:
            if not isinstance(slo, ServiceLevel):
                raise BadValueError(f"service level {slo!r}", "a shield needs ServiceLevel(name, ttft_s, tpot_s)")
            watch = Watch(self.shield, slo, prompt_tokens, max_new_tokens, self._point)
        found = RuntimeRequest(
            request,
            slo.name if isinstance(slo, ServiceLevel) else slo,
            *asking(self.controller, self._width, self._compiled),
            self._decisions,
            self._point,
            self._apply,
            watch,
            self.budget,
            waited_s,
            1 if watch else None,
            self.max_decision_s,
            self.controller.name,
        )
        self._own.request = found
        return found

    @property
    def request(self) -> RuntimeRequest:
        """That the calling thread began last; a new one without a name if it has begun none.

        Raises:
            BadValueError: It has begun none, and the shield has to know its targets.
        """
        found: RuntimeRequest | None = getattr(self._own, "request", None)
        return self.begin() if found is None else found

    def decide(self, observation: NDArray[np.float32]) -> Decision:
        """As of the thread's request."""
        return self.request.decide(observation)

    def observe(self, cost: LayerCost) -> None:
        """As of the thread's request."""
        self.request.observe(cost)

    def report(self) -> dict[str, Any]:
        """As of the thread's request."""
        return self.request.report()
