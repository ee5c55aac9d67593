"""Dynamic programming over one request with the clock cut into buckets: a certified bound, or values to plan by.

A state is (token, layer, operating point, bucket of the clock). Buckets divide the slots of the co-runner, so that it is
known for certain whether a piece of work that begins in a bucket is slowed down.

To bound, ``X[b] <= V(s) - tilt * s`` for every clock s in bucket b, where V is the least cost from there on. A piece of d
seconds that begins in b ends in one of two or three buckets, of which the best is taken, and is charged ``tilt * d``; so what
the clock loses to its buckets is paid for at the price of time, and only second-order errors are left. The tilt of a token
may be anything; the bound is tight where it is the slope of V. A controller with overheads spends time between layers, in
which its chip leaks at least: so waiting is allowed, at that price.

To plan, ``X[b]`` is V at the bucket's beginning, with values in between interpolated.
"""

from __future__ import annotations

from typing import Any

from clone_rl.agents.request_costs import Costs
from clone_rl.envs.compiling import compiled, inlined

_ULPS = 1e-9  # of a bucket: durations are sums of floats
_NEVER = 1e30  # joules; an infinity would not interpolate


@inlined
def _follow(out: Any, after: Any, start: int, stop: int, joules: float, buckets: float, bound: bool) -> None:
    """Lower ``out[start:stop]`` to ``joules`` and what follows in ``after`` so many buckets later."""
    if joules == float("inf"):
        return
    first, last = int(buckets - _ULPS), int(buckets + _ULPS) + 1
    share = buckets - int(buckets)
    if not bound:
        first, last = int(buckets), int(buckets) + 1
    # Loops from 0 over slices, which the compiler turns into vector code.
    lowered, one, two = out[start:stop], after[start + first : stop + first], after[start + last : stop + last]
    if bound:
        for i in range(len(lowered)):
            cost = joules + (one[i] if one[i] < two[i] else two[i])
            lowered[i] = cost if cost < lowered[i] else lowered[i]
        if last - first > 1:
            between = after[start + first + 1 : stop + first + 1]
            for i in range(len(lowered)):
                cost = joules + between[i]
                lowered[i] = cost if cost < lowered[i] else lowered[i]
    else:
        for i in range(len(lowered)):
            cost = joules + (1.0 - share) * one[i] + share * two[i]
            lowered[i] = cost if cost < lowered[i] else lowered[i]


@inlined
def _set(out: Any, start: int, stop: int, value: float) -> None:
    for b in range(start, stop):
        out[b] = value


@inlined
def _beyond(out: Any, start: int, stop: int, value: float, tilt: float, width_s: float) -> None:
    """A constant from ``start`` on, tilted: a bound whatever the clock in a bucket is."""
    for b in range(start, stop):
        out[b] = value - (tilt * (b + 1) if tilt > 0.0 else tilt * b) * width_s


@compiled
def token_values(
    costs: Costs, token: int, tilt: float, price: float, bound: bool, per_slot: int, low: int, high: int, far: int,
    values: Any, run: Any,
) -> None:  # fmt: skip
    """Values before every layer of a token, in buckets ``low`` to ``high``, from those after it.

    Args:
        costs: The request.
        token: Which.
        tilt, price: W, see above; and what a second is charged, which is the tilt and, in a bound, a multiplier.
        bound: Else to plan.
        per_slot: Buckets of a slot.
        low, high: Range.
        far: Up to where a bound that knows no clock is written, which is as far as a piece of work may reach.
        values: (L + 1, P, N) written, but for the last, which are those after the token.
        run: (P, N) scratch.
    """
    layers, points = costs.run_s.shape[2], costs.run_s.shape[3]
    width_s, per_s = costs.slot_s / per_slot, per_slot / costs.slot_s
    end = values[layers]
    lates = (1 if token == 0 else 0) if costs.per_token else costs.run_s.shape[1] - token  # beyond the last due time
    late_j = lates * costs.late_j
    for layer in range(layers - 1, -1, -1):
        after, beyond_j = values[layer + 1], late_j + costs.rest_j[token, layer]
        for k in range(points):
            _set(run[k], low, high, _NEVER)
            _set(values[layer, k], low, high, _NEVER)
            _beyond(run[k], high, far, beyond_j, tilt, width_s)
            _beyond(values[layer, k], high, far, beyond_j, tilt, width_s)
        for slot in range(low // per_slot, (high - 1) // per_slot + 1):
            start, stop = max(low, slot * per_slot), min(high, (slot + 1) * per_slot)
            busy = 1 if costs.busy[slot] else 0
            for k in range(points):
                seconds, joules = costs.run_s[busy, token, layer, k], costs.run_j[busy, token, layer, k]
                _follow(run[k], after[k], start, stop, joules + price * seconds, seconds * per_s, bound)
                seconds, joules = costs.leave_s[busy, token, layer, k], costs.leave_j[busy, token, layer, k]
                _follow(values[layer, k], end[k], start, stop, joules + price * seconds, seconds * per_s, bound)
        for k in range(points):
            out = values[layer, k]
            for b in range(low, high):
                out[b] = run[k, b] if run[k, b] < out[b] else out[b]
            if costs.changes[1 if bound else 0, token, layer]:
                for wanted in range(points):
                    if wanted != k:
                        seconds, joules = costs.switch_s[k, wanted], costs.switch_j[k, wanted]
                        _follow(out, run[wanted], low, high, joules + price * seconds, seconds * per_s, bound)
        if bound and costs.wait_s > 0.0:
            for k in range(points):
                _wait(values[layer, k], run[k], low, high, costs.wait_s * per_s, (costs.leak_w[k] + price) * width_s)


@inlined
def _wait(out: Any, without: Any, low: int, high: int, most: float, bucket_j: float) -> None:
    """To wait for a later bucket takes at least all those in between, and at most ``most`` of them.

    ``without`` is scratch. Where a second of it costs less than nothing, the longest that fits counts.
    """
    buckets = int(most + _ULPS) + 1
    before = without[low:high]
    for i in range(len(before)):
        before[i] = out[low + i]
    lowered = out[low:high]
    for ahead in range(1, buckets + 1):
        joules = bucket_j * (ahead - 1 if bucket_j > 0.0 else ahead + 1)
        later = without[low + ahead : high + ahead]
        for i in range(len(lowered)):
            cost = joules + later[i]
            lowered[i] = cost if cost < lowered[i] else lowered[i]


@compiled
def end_values(
    costs: Costs, turn: float, due_s: float, bound: bool, per_slot: int, low: int, first: int, far: int, after: Any, out: Any
) -> None:
    """Values (P, N) at a token's end, in buckets ``low`` to ``far``, from those at the next one's beginning; lateness priced.

    ``turn`` is the next token's tilt less this one's; no schedule is in buckets before ``first`` then.
    """
    width_s = costs.slot_s / per_slot
    late_s = due_s * (1.0 + _ULPS)
    for k in range(out.shape[0]):
        _set(out[k], low, first, _NEVER)
        for b in range(max(low, first), far):
            begins_s = b * width_s
            value = after[k, b] + turn * (begins_s if turn > 0.0 or not bound else begins_s + width_s)
            out[k, b] = value + (costs.late_j if begins_s > late_s else 0.0)


@compiled
def final_values(costs: Costs, bound: bool, per_slot: int, low: int, out: Any) -> float:
    """Values (P, N) after the last token, and their tilt: idling until the last due time."""
    width_s = costs.slot_s / per_slot
    due_s = costs.due_s[len(costs.due_s) - 1]
    for b in range(low, out.shape[1]):
        begins_s = b * width_s
        if bound:
            value = costs.idle_w * max(begins_s, due_s) + (costs.wake_j if begins_s + width_s < due_s else 0.0)
        else:
            value = (due_s - begins_s) * costs.idle_w + costs.wake_j if begins_s < due_s else 0.0
        for k in range(out.shape[0]):
            out[k, b] = value
    return -costs.idle_w if bound else 0.0


@inlined
def first_bucket(costs: Costs, token: int, per_slot: int) -> int:
    """The earliest that a token can begin in, whatever is rounded down on the way: a piece and a switch for each layer."""
    drift = 2 * token * costs.run_s.shape[2] + 1
    return int(max(0, int(costs.soonest_s[token] * per_slot / costs.slot_s) - drift))


@inlined
def _from_every_start(
    costs: Costs, token: int, per_slot: int, low: int, size: int, reach: int, after: Any, here: Any, values: Any, run: Any
) -> None:
    """Planned values ``here`` at the beginning of a token that is due so long after it."""
    layers, width_s = costs.run_s.shape[2], costs.slot_s / per_slot
    for start in range(low, size):
        high, far = min(size, start + reach), min(here.shape[1], start + 2 * reach)
        due_s = start * width_s + costs.tpot_s
        end_values(costs, 0.0, due_s, False, per_slot, start, start, far, after, values[layers])
        token_values(costs, token, 0.0, 0.0, False, per_slot, start, high, far, values, run)
        for k in range(here.shape[0]):
            here[k, start] = values[0, k, start]


@compiled
def request_values(
    costs: Costs,
    tilts: Any,
    prices: Any,
    bound: bool,
    per_slot: int,
    size: int,
    reach: int,
    starts: Any,
    values: Any,
    run: Any,
) -> None:
    """Values at the beginning of every token, from the last one to the first.

    Args:
        costs: The request.
        tilts: (T,) W, one for each token.
        prices: (T, M) W, multipliers of a deadline per token, of which the first is 0 and equal ones stand side by side;
            with deadlines that carry over, no other is used.
        bound, per_slot: As in ``token_values``.
        size: Buckets; the clock's range.
        reach: Above 0, to plan: a deadline per token is looked at from every bucket that a token may begin in, and so many
            after it, in place of the multipliers.
        starts: (R, P, N) where the values at the beginning of token i stand, in row i modulo R; N reaches beyond ``size`` as
            far as a piece of work can.
        values: (L + 2, P, N) scratch.
        run: (P, N) scratch.
    """
    tokens, layers, points = costs.run_s.shape[1], costs.run_s.shape[2], costs.run_s.shape[3]
    rows, width = starts.shape[0], starts.shape[2]
    next_tilt = final_values(costs, bound, per_slot, first_bucket(costs, tokens, per_slot), starts[tokens % rows])
    for token in range(tokens - 1, -1, -1):
        low, first = first_bucket(costs, token, per_slot), first_bucket(costs, token + 1, per_slot)
        tilt, here = tilts[token], starts[token % rows]
        absolute = token == 0 or not costs.per_token
        due_s = costs.due_s[token] if absolute else float("inf")
        turn = next_tilt - tilt
        end_values(costs, turn, due_s, bound, per_slot, low, first, width, starts[(token + 1) % rows], values[layers])
        for which in range(1 if absolute else prices.shape[1]):
            multiplier = prices[token, which]
            if which > 0 and multiplier == prices[token, which - 1]:
                continue
            token_values(costs, token, tilt, tilt + multiplier, bound, per_slot, low, size, width, values, run)
            for k in range(points):
                for b in range(low, width):
                    value = values[0, k, b] - multiplier * costs.tpot_s
                    here[k, b] = value if which == 0 or value > here[k, b] else here[k, b]
                    if which == 0:
                        values[layers + 1, k, b] = value + costs.late_j
        if not absolute:
            for k in range(points):
                for b in range(low, width):
                    here[k, b] = min(here[k, b], values[layers + 1, k, b])
            if reach > 0:
                _from_every_start(costs, token, per_slot, low, size, reach, starts[(token + 1) % rows], here, values, run)
        next_tilt = tilt


@inlined
def _at(values: Any, clock: float, per_s: float) -> float:
    """A planned value at a clock, interpolated; of the last bucket beyond it."""
    place = clock * per_s
    first = int(place)
    if first + 1 >= len(values):
        return float(values[len(values) - 1])
    share = place - first
    return float((1.0 - share) * values[first] + share * values[first + 1])


@compiled
def follow_plan(
    costs: Costs, per_slot: int, size: int, look_s: float, starts: Any, values: Any, run: Any, actions: Any, slopes: Any
) -> int:
    """The schedule that planned values lead to, on the true clock: how many actions it has.

    Args:
        costs: The request.
        per_slot, size, values, run: As in ``request_values``.
        starts: (T + 1, P, N) planned values at the beginning of every token.
        actions: (T * L,) written: points, or P to leave.
        slopes: (T,) W, written: what a second is worth at the beginning of every token.
    """
    tokens, layers, points = costs.run_s.shape[1], costs.run_s.shape[2], costs.run_s.shape[3]
    per_s = per_slot / costs.slot_s
    clock, point, count, due_s = costs.begin_s, points - 1, 0, costs.due_s[0]
    longest_switch_s = 0.0
    for k in range(points):
        for wanted in range(points):
            longest_switch_s = max(longest_switch_s, costs.switch_s[k, wanted])
    for token in range(tokens):
        if not costs.per_token:
            due_s = costs.due_s[token]
        longest_s = 0.0
        for layer in range(layers):
            slowest_s = 0.0
            for k in range(points):
                slowest_s = max(slowest_s, costs.run_s[1, token, layer, k])
            longest_s += slowest_s + (longest_switch_s if costs.changes[0, token, layer] else 0.0)
        low = min(int(clock * per_s), size - 1)
        reach = int(longest_s * per_s) + 2
        high, far = min(size, low + reach), min(starts.shape[2], low + 2 * reach)
        end_values(costs, 0.0, due_s, False, per_slot, low, low, far, starts[token + 1], values[layers])
        token_values(costs, token, 0.0, 0.0, False, per_slot, low, high, far, values, run)
        before_s = max(clock - look_s, first_bucket(costs, token, per_slot) / per_s)
        slopes[token] = 0.0
        if clock > before_s:
            rise_j = _at(starts[token, point], clock, per_s) - _at(starts[token, point], before_s, per_s)
            slopes[token] = rise_j / (clock - before_s)
        for layer in range(layers):
            best, choice, best_clock = float("inf"), point, clock
            for action in range(points + 1):
                leaves = action == points
                if not leaves and action != point and not costs.changes[0, token, layer]:
                    continue
                k = point if leaves else action
                joules = 0.0 if k == point else costs.switch_j[point, k]
                begins = clock + (0.0 if k == point else costs.switch_s[point, k])
                busy = 1 if costs.busy[min(int(begins / costs.slot_s), len(costs.busy) - 1)] else 0
                if leaves:
                    ends = begins + costs.leave_s[busy, token, layer, k]
                    joules += costs.leave_j[busy, token, layer, k]
                else:
                    ends = begins + costs.run_s[busy, token, layer, k]
                    joules += costs.run_j[busy, token, layer, k]
                if joules == float("inf"):
                    continue
                if leaves or layer == layers - 1:
                    joules += _at(starts[token + 1, k], ends, per_s) + (costs.late_j if ends > due_s else 0.0)
                else:
                    joules += _at(values[layer + 1, k], ends, per_s)
                if joules < best:
                    best, choice, best_clock = joules, action, ends
            actions[count] = choice
            count += 1
            clock = best_clock
            if choice == points:
                break
            point = choice
        due_s = clock + costs.tpot_s
    return count
