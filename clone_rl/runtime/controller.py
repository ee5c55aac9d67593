"""The controller as a host's inference loop sees it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from clone_rl.agents.budgeted import Budgeted
from clone_rl.agents.controller import Controller, Decision, LayerCost
from clone_rl.agents.lut import load_policy
from clone_rl.agents.own import accepted
from clone_rl.envs.live import service_level
from clone_rl.envs.observation import N_OBS
from clone_rl.envs.scenario import Limits, ServiceLevel
from clone_rl.envs.shield_tables import Shield
from clone_rl.errors import BadValueError
from clone_rl.runtime.actuator import Actuator, EmulatedActuator
from clone_rl.runtime.asking import asking
from clone_rl.runtime.host import Host, HostTables, trained_host
from clone_rl.runtime.lookout import Lookout
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
        host: What observations are reckoned from where a request is asked by name, see ``RuntimeRequest.decide``; None is the
            host that a policy was trained for, emulated, which is looked up when the first request is asked so. A host that is
            given has to know what each request is: ``begin`` then needs targets and numbers of tokens.

    Raises:
        BadValueError: It is no controller, or one that decides per token; the shield or the host is of another chip; or a
            number is wrong.

    >>> import numpy as np
    >>> from clone_rl.agents.heuristics import Fixed
    >>> controller = RuntimeController(Fixed("performance", 7), points=8)
    >>> request = controller.begin("request 1")
    >>> request.decide(np.zeros(16, np.float32))
    Decision(operating_point=7, exit=False)
    >>> request.observe(LayerCost(latency_s=2e-5, energy_j=1e-6))
    >>> controller.report()["decisions"]
    1

    By name, on what the host knows:

    >>> controller = RuntimeController.load("default")
    >>> request = controller.begin("request 2", "chatbot", prompt_tokens=40, max_new_tokens=60)
    >>> request.decide(busy=True, die_c=40.0).exit
    False
    """

    def __init__(
        self,
        controller: Controller,
        points: int,
        actuator: Actuator | None = None,
        shield: Shield | None = None,
        max_decision_s: float | None = None,
        compiled: bool = True,
        host: Host | None = None,
    ) -> None:
        controller = accepted(controller)
        if controller.kind != "layer":
            raise BadValueError(
                f"controller {controller.name!r} decides per token", "a runtime loop asks per layer: use a LayerControl policy"
            )
        if shield is not None and shield.head_s.shape[1] != points:
            raise BadValueError(f"a shield of {shield.head_s.shape[1]} operating points", f"the controller has {points}")
        if host is not None and host.points != points:
            raise BadValueError(f"a host of {host.points} operating points", f"the controller has {points}")
        if max_decision_s is not None and not max_decision_s > 0.0:
            raise BadValueError(f"max_decision_s is {max_decision_s}", "above 0, or None")
        self.controller, self.points, self.shield = controller, points, shield
        self.budget = controller.budget if isinstance(controller, Budgeted) else None
        self.actuator = actuator or EmulatedActuator(points)
        self.max_decision_s, self._compiled = max_decision_s, compiled
        self._width = N_OBS + len(getattr(controller, "signals", ()))
        self._decisions = [Decision(p) for p in range(points)], [Decision(p, exit=True) for p in range(points)]
        self._lock, self._own, self._point = threading.Lock(), threading.local(), points - 1
        self._host, self._tables = host, None if host is None else host.charged(controller)
        self._applied: int | None = None  # hardware is not known to be at the top
        # Compiled now, so that no request waits for it.
        asking(controller, self._width, compiled)
        if shield is not None:
            Watch(shield, ServiceLevel("none", 1.0, 1.0), 1, 1)
        if self._tables is not None:
            Lookout(self._tables, np.zeros(self._width, np.float32), ServiceLevel("none", 1.0, 1.0), 1, 1)

    @classmethod
    def load(
        cls,
        name: str = "default",
        actuator: Actuator | None = None,
        shield: Shield | None = None,
        max_decision_s: float | None = None,
        compiled: bool = True,
        limits: Limits | None = None,
        host: Host | None = None,
    ) -> RuntimeController:
        """Load a shipped policy by name, or any policy or look-up table by path.

        Args:
            name: Of a shipped policy, or a path.
            actuator, shield, max_decision_s, compiled: As of the class.
            limits: What a conditioned policy is to hold, see ``Policy.load``.
            host: As of the class.

        Raises:
            UnknownNameError: No shipped policy has this name.
            PolicyFileError: The file is damaged or made for other observations.
            BadValueError: As the class, or limits that a conditioned policy was not trained for.
        """
        policy = load_policy(name, limits)
        return cls(policy, policy.heads[0] - 1, actuator, shield, max_decision_s, compiled, host)

    def _found_tables(self) -> HostTables:
        """The host; that of the policy's training if none was given.

        Raises:
            CloneRLError: It does not say, or what it says is not here.
        """
        with self._lock:
            if self._tables is None:
                host = trained_host(self.controller)
                if host.points != self.points:
                    raise BadValueError(
                        f"controller {self.controller.name!r} has {self.points} operating points and the host that it was "
                        f"trained for {host.points}",
                        "give RuntimeController its host",
                    )
                self._tables = host.charged(self.controller)
            return self._tables

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
        expected_tokens: float | None = None,
    ) -> RuntimeRequest:
        """Start a request; the calling thread's own one from now on.

        Args:
            request: Its name, for the report and the log.
            slo: Its service level: targets that hold as they are, or the name of one of the classes of the host's scenario. A
                shield without a ``host`` needs the targets; where nothing is reckoned, a name is only reported.
            prompt_tokens, max_new_tokens: Of the prompt, and of the response at most: for a shield, and for decisions by name.
            waited_s: Seconds that have gone by since the request came; they count against TTFT.
            expected_tokens: Predicted length of the response, for decisions by name; None is ``max_new_tokens``.

        Raises:
            BadValueError: The shield or the host lacks something, or its tables do not reach as far.
            UnknownNameError: The host's scenario has no such service level.
        """
        watch = None
        if self._host is not None:
            slo = service_level(self._host.scenario, slo)
        if self.shield is not None:
            if not isinstance(slo, ServiceLevel):
                raise BadValueError(f"service level {slo!r}", "a shield needs ServiceLevel(name, ttft_s, tpot_s)")
            watch = Watch(self.shield, slo, prompt_tokens, max_new_tokens, self._point)
        seen, ask = asking(self.controller, self._width, self._compiled)
        point = self._point

        def lookout() -> Lookout:
            on = self._found_tables()
            level = service_level(on.scenario, slo)
            return Lookout(on, seen, level, prompt_tokens, max_new_tokens, expected_tokens, waited_s, point)

        made = None if self._host is None else lookout()
        found = RuntimeRequest(
            request,
            slo.name if isinstance(slo, ServiceLevel) else slo,
            seen,
            ask,
            self._decisions,
            point,
            self._apply,
            watch,
            self.budget,
            waited_s,
            1 if watch else None,
            self.max_decision_s,
            self.controller.name,
            made or lookout,
        )
        self._own.request = found
        return found

    @property
    def request(self) -> RuntimeRequest:
        """That the calling thread began last; a new one without a name if it has begun none.

        Raises:
            BadValueError: It has begun none, and the shield or the host has to know its targets.
        """
        found: RuntimeRequest | None = getattr(self._own, "request", None)
        return self.begin() if found is None else found

    def decide(self, *observation: Any, **known: Any) -> Decision:
        """As of the thread's request: on an observation, or on what the host knows, by name."""
        return self.request.decide(*observation, **known)

    def observe(self, cost: LayerCost) -> None:
        """As of the thread's request."""
        self.request.observe(cost)

    def report(self) -> dict[str, Any]:
        """As of the thread's request."""
        return self.request.report()
