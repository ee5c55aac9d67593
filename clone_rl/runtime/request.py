"""One request under a runtime controller."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Decision, LayerCost
from clone_rl.agents.error_budget import ErrorBudget
from clone_rl.errors import BadValueError, DeviceError
from clone_rl.runtime.asking import NOT_FINITE, Ask
from clone_rl.runtime.lookout import Lookout
from clone_rl.runtime.shield import Watch

_log = logging.getLogger("clone_rl.runtime")
_ALL = np.ones(1, np.bool_)
_BY_NAME = object()  # stands for no observation


class RuntimeRequest:
    """What ``RuntimeController.begin`` gives: ask it at every layer boundary of one request, from one thread at a time.

    A controller that fails (it raises, chooses what is no action, takes longer than it may, or is not told what its decisions
    cost) is not asked again in this request: the rest runs at the top point at full depth, which is logged once.

    Args:
        name: Of the request, for the report and the log.
        slo: Name of its service level.
        seen: (width,) float32 that ``ask`` reads.
        ask: The controller.
        decisions: By operating point, and the exits by operating point.
        point: Operating point in force.
        apply: Called with the operating point of each decision that is no exit.
        watch: The shield beside it.
        budget: That its exits are paid from; those that the shield forbids are given back.
        waited_s: Seconds between the request's arrival and its start.
        unobserved: Decisions that may go by without a cost; none is too many if None.
        max_decision_s: Longest time of one decision.
        controller: Name of the controller, for the log.
        lookout: What reckons observations where it is asked by name, or makes that when it is first asked so.
    """

    def __init__(
        self,
        name: str,
        slo: str,
        seen: NDArray[np.float32],
        ask: Ask,
        decisions: tuple[list[Decision], list[Decision]],
        point: int,
        apply: Callable[[int], None],
        watch: Watch | None = None,
        budget: ErrorBudget | None = None,
        waited_s: float = 0.0,
        unobserved: int | None = None,
        max_decision_s: float | None = None,
        controller: str = "",
        lookout: Lookout | Callable[[], Lookout] | None = None,
    ) -> None:
        self.name, self.slo, self._controller = name, slo, controller
        self._seen, self._ask, self._shape = seen, ask, seen.shape
        self._runs, self._exits = decisions
        self._apply, self._watch, self._budget = apply, watch, budget
        self._guard = watch.guard if watch else None
        self._top, self._point = len(self._runs) - 1, point
        self._unobserved, self._max_decision_s = unobserved, max_decision_s
        self._clock_s, self._waited_s, self._energy_j = waited_s, waited_s, 0.0
        self._decided = self._observed = self._left = self._switched = self._overruled = self._degraded = self._unset = 0
        self._lookout, self._looked = lookout, 0
        self.failure = ""

    def _fail(self, why: str) -> int:
        self.failure = why
        self._degraded += 1
        _log.warning(
            "request %r: controller %r %s; the rest runs at the top operating point without exits",
            self.name, self._controller, why,
        )  # fmt: skip
        return self._top

    def _missed(self, error: Exception) -> None:
        """The actuator failed: the response goes on at whatever point is in force."""
        if not self._unset:
            _log.warning("request %r: the operating point was not set: %s", self.name, error)
        self._unset += 1

    def _checked(self, observation: Any) -> NDArray[Any]:
        """An observation of another type.

        Raises:
            BadValueError: Not one row of as many numbers as the controller reads.
        """
        try:
            array = np.asarray(observation, np.float64)
        except (TypeError, ValueError):
            array = np.empty((0, 0))
        if array.shape != self._shape:
            raise BadValueError(f"an observation of shape {np.shape(observation)}", f"{self._shape}, of numbers")
        return array

    def _choose(self) -> int:
        """The controller's action, the top point if it fails.

        Raises:
            BadValueError: The observation is not of finite numbers.
        """
        limit_s = self._max_decision_s
        began_s = perf_counter() if limit_s is not None else 0.0
        try:
            action = self._ask()
        except Exception as error:
            return self._fail(f"raised {type(error).__name__}: {error}")
        if action == NOT_FINITE:
            bad = np.flatnonzero(~np.isfinite(self._seen))
            raise BadValueError(f"observation[{bad[0]}] is {self._seen[bad[0]]}", "finite numbers")
        if not 0 <= action <= self._top + 1:
            return self._fail(f"chose {action}, and what it may choose is 0 to {self._top + 1}")
        if limit_s is not None and (took_s := perf_counter() - began_s) > limit_s:
            return self._fail(f"took {took_s:.3g} s for a decision, and may take {limit_s:.3g}")
        return action

    @overload
    def decide(self, observation: NDArray[np.float32]) -> Decision: ...

    @overload
    def decide(
        self,
        *,
        probe: Sequence[float] | NDArray[Any] | None = None,
        busy: bool = False,
        die_c: float | None = None,
        **signals: float,
    ) -> Decision: ...

    def decide(self, observation: Any = _BY_NAME, **known: Any) -> Decision:
        """What to do at this boundary; the actuator is set to the decision's point.

        Either on an observation of the host's own, or on what the host knows, by name. Then the request reckons the
        observation that ``clone_rl.envs`` would show: token, layer, point, context and due time follow from what was decided,
        and the clock from what ``observe`` is told, which has to be called after every decision. An exit where none is
        possible, in the prompt or before a token's first layer, is the next layer at the point in force then. One request is
        asked in one of the two ways.

        Args:
            observation: (width,) finite numbers, see ``clone_rl.envs.observation``.
            **known: What the host knows, by name. ``probe``: two numbers that the exit probe reads here, the probability that
                leaving here agrees with full depth and the predicted KL(full || exit) in nats; there are none in the prompt's
                layers, nor before a token's first layer. ``busy``: whether a co-runner slows the model down at this moment.
                ``die_c``: temperature of the die, Celsius; left out, what was told last, and before that the ambient
                temperature. Extra signals that the controller reads, unscaled, see ``clone_rl.envs.signals``: ``norm``,
                ``change`` and ``cosine`` where the probe reads; ``margin`` and ``entropy`` of the token before, at the first
                boundary of each token at least. Others are not looked at.

        Raises:
            BadValueError: Another shape, a number that is not finite or out of range, something that is missing or given where
                there is none; or the request lacks what the names need. Nothing has changed then.
            UnknownNameError: Nobody knows such a signal; or the scenario no such service level.
        """
        if known:
            return self._decide_from(observation, known)
        if getattr(observation, "shape", None) != self._shape:
            if observation is _BY_NAME:
                return self._decide_from(observation, known)
            observation = self._checked(observation)
        self._seen[...] = observation  # takes half the time of [:]
        if self.failure:
            action = self._top
            self._degraded += 1
        elif self._unobserved is not None and self._decided - self._observed >= self._unobserved:
            action = self._fail("is stale: it was not told what its last decisions cost")
        else:
            action = self._choose()
        if self._guard is not None:
            proposed = action
            action = self._guard(self._clock_s, proposed)
            if action != proposed:
                self._overruled += 1
                if proposed > self._top and self._budget is not None:
                    self._budget.refund(self._seen[None], _ALL)
        self._decided += 1
        if action > self._top:
            self._left += 1
            return self._exits[self._point]
        if action != self._point:
            self._switched += 1
            self._point = action
        try:
            self._apply(action)
        except (DeviceError, OSError) as error:
            self._missed(error)
        return self._runs[action]

    def _decide_from(self, observation: Any, known: dict[str, Any]) -> Decision:
        """The same, on what the host knows."""
        if observation is not _BY_NAME:
            raise BadValueError(f"an observation and {', '.join(known)}", "give one of the two")
        if self._looked != self._decided:
            raise BadValueError("decide by name after decisions on observations", "ask a request in one of the two ways")
        lookout = self._lookout
        if not isinstance(lookout, Lookout):
            if lookout is None:
                raise BadValueError("decide by name", "this request knows no host: give it an observation")
            lookout = self._lookout = lookout()
        self._unobserved = 1  # its clock is what it is told
        lookout.look(self._clock_s, **known)
        self._looked += 1
        leaves = False
        try:
            leaves = self.decide(self._seen).exit
        finally:  # whatever an actuator raises, the step was decided on
            may_exit, point = lookout.may_exit, lookout.point
            lookout.took(self._top + 1 if leaves else self._point)
        if leaves and not may_exit:
            self._left -= 1
            return self._runs[point]
        return (self._exits if leaves else self._runs)[self._point]

    def observe(self, cost: LayerCost) -> None:
        """Take in what the last decision and its step took.

        Args:
            cost: Anything with ``latency_s`` and ``energy_j``.

        Raises:
            BadValueError: A number is negative or not finite.
        """
        latency_s, energy_j = cost.latency_s, cost.energy_j
        if not (0.0 <= latency_s < np.inf and 0.0 <= energy_j < np.inf):
            raise BadValueError(f"a cost of {latency_s} s and {energy_j} J", "finite numbers, 0 or more")
        self._clock_s += latency_s
        self._energy_j += energy_j
        self._observed = self._decided

    def report(self) -> dict[str, Any]:
        """The request so far.

        Returns:
            ``request``, ``slo``; ``decisions``, of which ``exits``, ``switches``; ``latency_s`` and ``energy_j`` as observed;
            ``failure`` of the controller, empty if there was none, and the ``degraded`` decisions since then; ``overruled``
            decisions, 0 without a shield; ``late`` tokens, which a shield counts, else None; ``actuator_failures``, decisions
            whose point was not set.
        """
        return {
            "request": self.name,
            "slo": self.slo,
            "decisions": self._decided,
            "exits": self._left,
            "switches": self._switched,
            "latency_s": self._clock_s - self._waited_s,
            "energy_j": self._energy_j,
            "failure": self.failure,
            "degraded": self._degraded,
            "overruled": self._overruled,
            "actuator_failures": self._unset,
            "late": self._watch.late(self._clock_s) if self._watch else None,
        }
