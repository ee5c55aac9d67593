"""The shield of ``clone_rl.envs.shield`` for hosts that are not emulated: its clock is what they say each layer took."""

from __future__ import annotations

import logging
from typing import Any

import numba
import numpy as np
from numba import types
from numba.experimental import structref
from numpy.typing import ArrayLike

from clone_rl.agents.budgeted import budgeted
from clone_rl.agents.controller import Controller
from clone_rl.agents.error_budget import ErrorBudget
from clone_rl.code_cache import kept
from clone_rl.envs.compiling import compiled, entry
from clone_rl.envs.live import LiveControl
from clone_rl.envs.pointer import Pointer, PointerType
from clone_rl.envs.scenario import Scenario, ServiceLevel
from clone_rl.envs.shield import guarded
from clone_rl.envs.shield_tables import Shield
from clone_rl.envs.state import LAYER_LEVEL, PROPAGATE, RULES, STATE
from clone_rl.envs.trace import blank_trace, load_traces
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.emulator import Emulator
from clone_rl.runtime.measurements import Measurements, check_counts, check_slowdown, seconds_of
from clone_rl.runtime.progress import follow

_log = logging.getLogger("clone_rl.runtime")


def emulated_shield(
    scenario: Scenario, emulator: Emulator, prompt_tokens: int, max_new_tokens: int, exits: bool = False
) -> Shield:
    """The shield of a chip that the emulator knows.

    Args:
        scenario: Rules, co-runner and overheads, which must be those of the controller.
        emulator: The chip loaded with the model.
        prompt_tokens, max_new_tokens: Longest prompt and response.
        exits: As of ``Shield.of``.

    Raises:
        BadValueError: A number of tokens is below 1.
    """
    check_counts(prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens)
    trace = blank_trace(emulator.workload.layers, prompt_tokens, max_new_tokens)
    return Shield.of(LiveControl(scenario, emulator).of(trace), exits)


def within_limits(controller: Controller, scenario: Scenario, model_sha256: str) -> Controller:
    """A controller whose exits the scenario's limits on quality have room for, see ``clone_rl.agents.error_budget``.

    Args:
        controller: Of layer control.
        scenario: Its limits and chip; its traces say what exits cost, if they are of the model that runs.
        model_sha256: Hash of that model.

    Returns:
        The controller as it was where the traces are of another model or have no training documents, which is logged.
    """
    traces, unheld = load_traces(scenario.traces), "exits are not held to the limits on quality: %s"
    if traces.card.get("model_sha256") != model_sha256:
        _log.warning(unheld, f"traces {scenario.traces!r} are of another model")
        return controller
    try:
        budget = ErrorBudget.of(traces, scenario.limits, controller.probes)
    except BadValueError as error:
        _log.warning(unheld, error)
        return controller
    return budgeted(controller, budget, len(scenario.load_chip().operating_points))


def measured_shield(
    layers: int,
    contexts: ArrayLike,
    decode_s: ArrayLike,
    prompts: ArrayLike,
    prefill_s: ArrayLike,
    head_s: ArrayLike,
    switch_s: ArrayLike = 0.0,
    decide_s: float = 0.0,
    leave_s: ArrayLike = 0.0,
    slowdown: float = 1.0,
    per_token: bool = False,
    exits: bool = False,
) -> Shield:
    """The shield of a host from its own measurements, at P operating points, lowest first.

    What it promises rests on them: take the longest times that were seen.

    Args:
        layers: Decoder layers.
        contexts: (C,) positions in the cache at which decoding was measured, ascending; what lies between counts as the next.
        decode_s: (C, P) seconds of one layer in decoding.
        prompts: (T,) lengths of prompts, ascending.
        prefill_s: (T, P) seconds of one layer of such a prompt.
        head_s: (P,) seconds of the head, sampling included.
        switch_s: (P, P) seconds of a change from a point to another, or one number.
        decide_s: Seconds of the controller and its probe at a boundary.
        leave_s: (P,) seconds of filling the cache of one skipped layer.
        slowdown: What a co-runner may multiply all of these with; 1 where they were measured beside it.
        per_token: A token is due TPOT after the one before it, whenever that came.
        exits: As of ``Shield.of``.

    Raises:
        BadValueError: A shape or a number is wrong.

    >>> shield = measured_shield(
    ...     4, contexts=[128, 512], decode_s=[[2e-3, 1e-3], [3e-3, 2e-3]], prompts=[64, 256],
    ...     prefill_s=[[9e-3, 5e-3], [3e-2, 2e-2]], head_s=[2e-3, 1e-3], switch_s=1e-4,
    ... )
    >>> shield.layer_s.shape
    (1, 1, 770, 2)
    """
    slowdown = check_slowdown(slowdown)
    decode, prefill, head, change, decide = Measurements.of(
        layers, contexts, decode_s, prompts, prefill_s, head_s, switch_s, decide_s
    )
    points = len(head)
    leave = seconds_of("leave_s", leave_s, (points,), zeros=True)
    rules = np.zeros(1, RULES)
    for name, value in (("layers", layers), ("groups", 1), ("granularity", LAYER_LEVEL), ("kv", PROPAGATE)):
        rules[name] = value
    rules["per_token"], longest = per_token, len(decode)
    layer_s = np.concatenate([decode, prefill])[None, None]
    return Shield(
        layer_s=layer_s,
        head_s=head[None].copy(),
        switch_s=change[None],
        decide_s=np.stack([decide, decide])[None],
        leave_s=(np.arange(layers)[:, None] * leave)[None, :, None],
        owing_s=np.zeros((1, 1, 1, points)),
        ahead_s=np.zeros((1, 1, points)),
        soonest_s=layer_s[..., -1] + decide[-1],
        soonest_head_s=head[-1:].copy(),
        kind=np.zeros(layers, np.int64),
        remaining=np.arange(layers, -1, -1)[:, None],
        rules=rules,
        numbers=np.array([longest, longest, exits]),
        slowdown=np.array([slowdown]),
    ).summed()


@structref.register
class _WatchType(PointerType):
    """Numba's type of a ``_Watch``."""


class _Watch(Pointer):
    """A shield and the request that it guards: one pointer to pass."""


structref.define_proxy(_Watch, _WatchType, ["shield", "state", "missing"])


@compiled
def _watched(shield: Shield, s: Any, missing: Any, clock_s: float, proposed: int) -> int:
    rules = shield.rules[0]
    s.clock_s = clock_s
    if s.left > 0:  # a token has left since
        s.late += 1.0 if clock_s > s.due_s else 0.0
        s.due_s = (clock_s if rules.per_token else s.due_s) + s.tpot_s
        s.left = 0
    action = guarded(shield, s, missing, proposed)
    taken = action
    if rules.delay:
        taken, s.pending = s.pending, action
    points = shield.head_s.shape[1]
    follow(rules, points, points - 1, s, missing, taken)
    return action


@kept
def _watch(watch: Any, clock_s: float, proposed: int) -> int:
    return _watched(watch.shield, watch.state[0], watch.missing, clock_s, proposed)


class Watch:
    """A shield beside one request.

    Args:
        shield: Of the host.
        level: Targets of the request.
        prompt_tokens: Of its prompt.
        max_new_tokens: Of its response, at most.
        point: Operating point at which it begins; None is the top one.

    Raises:
        BadValueError: The shield's tables do not reach as far.
    """

    def __init__(
        self, shield: Shield, level: ServiceLevel, prompt_tokens: int, max_new_tokens: int, point: int | None = None
    ) -> None:
        check_counts(prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens)
        places, points = int(shield.numbers[0]), shield.head_s.shape[1]
        prompts = shield.layer_s.shape[2] - places - 1
        if prompt_tokens > prompts:
            raise BadValueError(f"a prompt of {prompt_tokens} tokens", f"the shield has times of {prompts} at most")
        if prompt_tokens + max_new_tokens > places:
            raise BadValueError(
                f"{prompt_tokens} + {max_new_tokens} tokens", f"the shield has times of contexts below {places}"
            )
        numbers = shield.numbers.copy()
        numbers[1] = max_new_tokens
        self._state, self._rules = np.zeros(1, STATE), shield.rules[0]
        missing = np.zeros(int(self._rules["layers"]), np.int64)
        for name, value in (
            ("prompt", prompt_tokens),
            ("tokens", max_new_tokens),
            ("point", points - 1 if point is None else point),
            ("pending", points - 1),
            ("ttft_s", level.ttft_s),
            ("tpot_s", level.tpot_s),
            ("due_s", level.ttft_s),
        ):
            self._state[name] = value
        self._watch = _Watch(shield._replace(numbers=numbers), self._state, missing)
        self._guard = entry(_watch, numba.typeof(self._watch), types.float64, types.int64)

    def guard(self, clock_s: float, proposed: int) -> int:
        """What is done in the place of a proposed action.

        Args:
            clock_s: Seconds since the request arrived.
            proposed: 0 to the top operating point, or one more to exit.
        """
        action: int = self._guard(self._watch, clock_s, proposed)
        return action

    def late(self, clock_s: float) -> int:
        """Tokens that have been late so far."""
        # Idling up to the due time is no lateness, however it was summed.
        last = self._state["left"][0] > 0 and clock_s > self._state["due_s"][0] * (1.0 + 1e-9)
        return int(self._state["late"][0]) + int(last)
