"""A hard override outside the policy: no request misses a deadline that the top operating point would have held.

What it asks of a state is (a): *from here, running every layer at the top point with the co-runner busy all the time meets
the due time of this token and of every later one of the longest possible response*. An action passes if (a) holds of the
state that it leads to, at worst; otherwise the lowest higher point of which that is true takes its place, or the top one.

Claim: a request that meets every due time at the top point all along, with the same overheads, meets them under the shield,
whatever the policy does. Proof: as long as every step was one at the top point, the request is that run itself. At the first
other step (a) held, and from then on it holds for ever: where (a) holds, a step at the top point leads to a state where it
holds, since no step takes longer than (a) reckons with; every other step passes only if it does. (a) includes the due times.

What (a) reckons with, all at worst: the decision at each boundary; the switch to the top point; tokens that layers owe
(kv ``exact``); layers, tokens or phases that have to be finished at the point they began with, where the granularity is
coarser than a layer; the action that a decision delay holds back; and a co-runner that is busy from now on and as slow as the
scenario's can be. Later tokens need a reserve where one of them takes longer than TPOT. They take longer and longer as
the context grows, so the sum of what they lack is convex in their number and its largest value is that of all of them, or
none: one difference of a running sum. Where deadlines do not carry over, each later token has to fit in TPOT.

A chip that throttles does not hold its top point. Whatever runs, it holds the highest point whose heat keeps the die below
where that point is taken away; all points above count as that one, with a switch before every layer. So the claim stands,
with the throttled run at the top in the place of the top point.

A request that has a late token was not feasible at the top point, as the claim says. What is left is to catch up: the top
point, and exits that the policy wants pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.compiling import compiled, inlined
from clone_rl.envs.rows import Rows
from clone_rl.envs.shield_tables import Shield
from clone_rl.envs.state import EXACT, GROUP_LEVEL, LAYER_LEVEL, PHASE_LEVEL, TOKEN_LEVEL

_ROUNDING = 1e-9
"""Share of a need that is added to it: clock and need are sums of floats in different orders."""


@inlined
def _held(rules: Any, token: int, layer: int) -> int:
    """Layers of this token that run before the point may change: those left mean all of it, -1 that it never may again."""
    if rules.granularity == LAYER_LEVEL or (layer == 0 and rules.granularity in (GROUP_LEVEL, TOKEN_LEVEL)):
        return 0
    left = rules.layers - layer
    if rules.granularity == TOKEN_LEVEL:
        return int(left)
    if rules.granularity == GROUP_LEVEL:
        group, count = (layer - 1) * rules.groups // rules.layers, 0
        while count < left and (layer + count) * rules.groups // rules.layers == group:
            count += 1
        return count
    if layer == 0 and (token == 0 or (token == 1 and rules.granularity == PHASE_LEVEL)):
        return 0
    return int(left) if token == 0 and rules.granularity == PHASE_LEVEL else -1


@inlined
def _run_s(shield: Shield, missing: Any, s: Any, token: int, first: int, count: int, point: int, ran: int, owes: int) -> float:
    """Seconds of ``count`` layers and their decisions; those from ``ran`` on lack ``missing`` and ``owes`` tokens."""
    rules, v, seconds = shield.rules[0], s.variant, 0.0
    place = min(s.prompt + token, shield.numbers[0] - 1) if token > 0 else shield.numbers[0] + s.prompt
    if rules.kv == EXACT and token > 0:
        for layer in range(first, first + count):
            owed = missing[layer] + owes if layer >= ran else 0
            kind = shield.kind[layer]
            if owed > 0:
                seconds += shield.owing_s[v, kind, min(owed, shield.owing_s.shape[2] - 1), point]
            else:
                seconds += shield.layer_s[v, kind, place, point]
    else:
        for kind in range(shield.remaining.shape[1]):
            layers = shield.remaining[first, kind] - shield.remaining[first + count, kind]
            seconds += layers * shield.layer_s[v, kind, place, point]
    return float(seconds + count * shield.decide_s[v, 1 if token > 0 else 0, point])


@inlined
def _reserve_s(shield: Shield, s: Any, token: int, point: int, first_s: float) -> float:
    """Seconds that the tokens after this one lack, of which the first takes ``first_s`` more.

    Infinite if deadlines do not carry over and one of them cannot be in time.
    """
    first = s.prompt + token + 1
    end = min(s.prompt + shield.numbers[1], shield.ahead_s.shape[1] - 1)
    if end <= first:
        return 0.0
    slowdown, ahead_s = shield.slowdown[0], shield.ahead_s[s.variant]
    one = slowdown * (ahead_s[first + 1, point] - ahead_s[first, point]) + first_s - s.tpot_s
    if shield.rules[0].per_token:
        last = slowdown * (ahead_s[end, point] - ahead_s[end - 1, point]) - s.tpot_s
        return np.inf if max(one, last) > -_ROUNDING * s.tpot_s else 0.0
    every = slowdown * (ahead_s[end, point] - ahead_s[first, point]) + first_s - (end - first) * s.tpot_s
    return float(max(0.0, one, every))


@inlined
def _holds(
    shield: Shield, missing: Any, s: Any, token: int, layer: int, point: int, left_s: float, ran: int, owes: int
) -> bool:
    """Whether (a) holds ``left_s`` before this token is due."""
    rules, v, top = shield.rules[0], s.variant, shield.head_s.shape[1] - 1
    if token >= shield.numbers[1]:  # nothing is to come
        return left_s > 0.0
    slowdown, rest = shield.slowdown[0], rules.layers - layer
    held = _held(rules, token, layer)
    later, first_s = top, 0.0
    slower_s = slowdown * max(0.0, shield.decide_s[v, 1, point] - shield.decide_s[v, 1, top])
    switch_s = shield.switch_s[v, point, top] + slower_s
    if held < 0 or held == rest:
        need_s = slowdown * (_run_s(shield, missing, s, token, layer, rest, point, ran, owes) + shield.head_s[v, point])
        if held < 0:
            later = point
        else:
            first_s = switch_s
    else:
        need_s = _run_s(shield, missing, s, token, layer, held, point, ran, owes)
        need_s += _run_s(shield, missing, s, token, layer + held, rest - held, top, ran, owes)
        need_s = slowdown * (need_s + shield.head_s[v, top]) + switch_s
    need_s += _reserve_s(shield, s, token, later, first_s)
    return bool(need_s * (1.0 + _ROUNDING) <= left_s)


@inlined
def _after(
    shield: Shield, missing: Any, s: Any, action: int, token: int, layer: int, point: int, left_s: float, ran: int, owes: int
) -> Any:
    """Where an action leads to at worst: ``(token, layer, point, left_s, ran, owes)``; -inf is left after a late token."""
    rules, v, points = shield.rules[0], s.variant, shield.head_s.shape[1]
    slowdown = shield.slowdown[0]
    if action >= points and token > 0 and layer > 0:
        context = min(s.prompt + token, shield.leave_s.shape[2] - 1)
        left_s -= slowdown * (shield.decide_s[v, 1, point] + shield.leave_s[v, rules.layers - layer, context, point])
        ran, owes, layer = layer, 1, rules.layers
    else:
        wanted = action if action < points and _held(rules, token, layer) == 0 else point
        decide_s = shield.decide_s[v, 1 if token > 0 else 0]
        seconds = _run_s(shield, missing, s, token, layer, 1, wanted, ran, owes) - decide_s[wanted] + decide_s[point]
        left_s -= slowdown * seconds + shield.switch_s[v, point, wanted]
        point, layer = wanted, layer + 1
        ran = max(ran, layer)
    if layer == rules.layers:
        left_s -= slowdown * shield.head_s[v, point]
        if left_s < _ROUNDING * s.tpot_s:
            left_s = -np.inf
        left_s = s.tpot_s if rules.per_token and left_s >= 0.0 else left_s + s.tpot_s
        token, layer = token + 1, 0
    return token, layer, point, left_s, ran, owes


@compiled
def _passes(
    shield: Shield, missing: Any, s: Any, action: int, token: int, layer: int, point: int, left_s: float, ran: int, owes: int
) -> bool:
    then = _after(shield, missing, s, action, token, layer, point, left_s, ran, owes)
    return _holds(shield, missing, s, then[0], then[1], then[2], then[3], then[4], then[5])


@inlined
def _certainly_late(shield: Shield, s: Any) -> bool:
    """Whether full depth at the top point, decoding, misses this token's due time even if the co-runner pauses from now on."""
    first, place = max(s.layer, 1), s.prompt + s.token
    soonest_s = shield.soonest_head_s[s.variant]
    for kind in range(shield.remaining.shape[1]):
        soonest_s += shield.remaining[first, kind] * shield.soonest_s[s.variant, kind, place]
    return bool(soonest_s > (s.due_s - s.clock_s) * (1.0 + _ROUNDING))


@compiled
def guarded(shield: Shield, s: Any, missing: Any, action: int) -> int:
    """What is done in the place of a proposed action; the same, where that is no slower.

    Args:
        shield: Of the scenario.
        s: Record of ``state.STATE`` at the boundary, of which clock, due time, TPOT, token, layer, point, prompt, variant,
            lateness and the action held back are read.
        missing: (L,) tokens that each layer lacks; read of kv ``exact``.
        action: 0 to the top operating point, or one more to exit.
    """
    rules, points = shield.rules[0], shield.head_s.shape[1]
    top = points - 1
    token, layer, point, left_s, ran, owes = s.token, s.layer, s.point, s.due_s - s.clock_s, s.layer, 0
    if rules.delay:
        token, layer, point, left_s, ran, owes = _after(shield, missing, s, s.pending, token, layer, point, left_s, ran, owes)
    may_exit, may_change = token > 0 and layer > 0, _held(rules, token, layer) == 0
    if may_exit and shield.numbers[2] and token == s.token and _certainly_late(shield, s):
        return int(points)
    exits = may_exit and action == points
    if exits and (s.late > 0 or _passes(shield, missing, s, points, token, layer, point, left_s, ran, owes)):
        return int(points)
    if not may_change:
        return top if exits else action
    proposed = point if action == points else action
    found = proposed
    if found < top and not _passes(shield, missing, s, top, token, layer, point, left_s, ran, owes):
        found = top
    while found < top and not _passes(shield, missing, s, found, token, layer, point, left_s, ran, owes):
        found += 1
    return action if found == proposed and not exits else found


@compiled
def _guard_rows(shield: Shield, state: Any, missing: Any, actions: Any, failed: Any, overruled: Any) -> None:
    points = shield.head_s.shape[1]
    for i in range(len(state)):
        proposed = actions[i, 0]
        if state[i].done == 1:
            actions[i, 0] = points - 1
            continue
        failed[i] = failed[i] or proposed < 0 or proposed > points
        if failed[i]:
            proposed = points - 1
        actions[i, 0] = guarded(shield, state[i], missing[i], proposed)
        overruled[i] += actions[i, 0] != proposed


class Guards(NamedTuple):
    """What a shield has done to requests side by side.

    Attributes:
        failed: (N,) bool, whether the controller chose what is no action; its request runs at the top point from then on.
        overruled: (N,) decisions of the controller that another took the place of.
    """

    failed: NDArray[np.bool_]
    overruled: NDArray[np.int64]

    @classmethod
    def of(cls, count: int) -> Self:
        """Nothing yet."""
        return cls(np.zeros(count, np.bool_), np.zeros(count, np.int64))

    def guard(self, shield: Shield, rows: Rows, actions: NDArray[np.int64]) -> None:
        """Put what is done in the place of (N, 1) actions."""
        _guard_rows(shield, rows.state, rows.missing, actions, self.failed, self.overruled)
