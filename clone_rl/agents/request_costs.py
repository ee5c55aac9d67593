"""What one request can cost: every piece of its work at every operating point, with and without the co-runner.

Durations are the kernel's own. Leakage is that of a die at ambient temperature, which is where a request begins and below
which the die never falls: the joules here are never more than the kernel's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.compiling import compiled
from clone_rl.envs.control import Control
from clone_rl.envs.prices import undisturbed
from clone_rl.envs.randomness import INTERFERENCE, uniform
from clone_rl.envs.rows import Rows
from clone_rl.envs.state import EXACT, GROUP_LEVEL, LAYER_LEVEL, PHASE_LEVEL, PROPAGATE, TOKEN_LEVEL
from clone_rl.errors import BadValueError
from clone_rl.hw_emulator.cost import idle_power, leakage_growth
from clone_rl.hw_emulator.emulator import LAYER

_MARGIN = 1.05  # beyond what the cheapest schedule takes


class Request(NamedTuple):
    """Which request, by the key of the environment's randomness.

    Attributes:
        document: Of the trace set; negative draws one of the control's split.
        seed, episode: Key of service level, slack, chip and interference.
    """

    document: int
    seed: int = 0
    episode: int = 0


class CostPrices(NamedTuple):
    """Joules that a schedule may spend to avoid one unit of each constraint cost.

    Attributes:
        late: Per late token; infinity means that a token is late only where it cannot be helped.
        disagree: Per disagreement with full depth.
        dnll: Per nat.
    """

    late: float = np.inf
    disagree: float = 0.0
    dnll: float = 0.0


class Costs(NamedTuple):
    """A request of T tokens through L layers at P points; first axis 2: the co-runner pauses, the co-runner is busy.

    Attributes:
        run_s, run_j: (2, T, L, P) a layer, the last one with the head.
        leave_s, leave_j: (2, T, L, P) leaving before a layer, priced quality included; infinite where it cannot be.
        switch_s, switch_j: (P, P) from and to.
        leak_w: (P,) what any second takes at least.
        changes: (2, T, L) whether the point may change before a layer: by a schedule, and at all, if the die can become hot.
        wait_s: The longest that a controller may take to decide, before every layer.
        busy: (S,) whether the co-runner is, by slot.
        slot_s: Seconds of a slot.
        due_s: (T,) when tokens are due; of carry-over deadlines all, of deadlines per token the first.
        tpot_s: What a deadline per token adds to the moment of the token before.
        per_token: Which of the two.
        late_j: Price of a late token.
        idle_w, wake_j: From the end to the last due time, and the waking after it; none per token.
        rest_j: (T + 1, L) the least that everything from a layer of a token on can cost.
        soonest_s: (T + 1,) the earliest moment at which a token can begin.
        begin_s: When the first layer may start.
        horizon_s: Up to when the clock is looked at: the last due time, or what the cheapest schedule takes at its slowest.
    """

    run_s: NDArray[np.float64]
    run_j: NDArray[np.float64]
    leave_s: NDArray[np.float64]
    leave_j: NDArray[np.float64]
    switch_s: NDArray[np.float64]
    switch_j: NDArray[np.float64]
    leak_w: NDArray[np.float64]
    changes: NDArray[np.bool_]
    wait_s: float
    busy: NDArray[np.bool_]
    slot_s: float
    due_s: NDArray[np.float64]
    tpot_s: float
    per_token: bool
    late_j: float
    idle_w: float
    wake_j: float
    rest_j: NDArray[np.float64]
    soonest_s: NDArray[np.float64]
    begin_s: float
    horizon_s: float


@compiled
def _interference(seed: int, episode: int, to_busy: float, to_idle: float, busy: Any) -> None:
    """Continue the co-runner from ``busy[0]``, as the kernel does slot by slot."""
    for slot in range(1, len(busy)):
        draw = uniform(seed, episode, INTERFERENCE, slot)
        busy[slot] = draw >= to_idle if busy[slot - 1] else draw < to_busy


def _layers(world: Any, s: Any, depths: NDArray[np.int64] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(T, L, P) quiet seconds and joules of every layer, with the tokens that it lacks."""
    prices, rules, v = world.prices, world.rules[0], s["variant"]
    tokens, layers = int(s["tokens"]), int(rules["layers"])
    at = s["prompt"] + np.arange(tokens)
    at[0] = prices.prefill[0] + s["prompt"]
    table = prices.layer[v][prices.kind[None, :], at[:, None]]
    seconds, joules = table["latency_s"].copy(), table["energy_j"].copy()
    if rules["kv"] == PROPAGATE or depths is None:
        return seconds, joules
    lacking = np.zeros(layers, np.int64)
    for token in range(1, tokens):
        for layer in range(layers):
            if layer >= depths[token]:
                lacking[layer] += 1
            elif lacking[layer] and rules["kv"] == EXACT:
                rows, work = 1.0 + lacking[layer], prices.work[v, LAYER + layer]
                for k, point in enumerate(prices.points[v]):
                    price = undisturbed(prices.chip[v], point, work, rows, float(s["prompt"] + token) - rows, True)
                    seconds[token, layer, k], joules[token, layer, k] = price[:2]
                lacking[layer] = 0
            elif lacking[layer]:
                fewer = prices.layer[v, prices.kind[layer], s["prompt"] + token - lacking[layer]]
                seconds[token, layer], joules[token, layer] = fewer["latency_s"], fewer["energy_j"]
    return seconds, joules


def _exits(world: Any, s: Any, prices_of: CostPrices, depths: NDArray[np.int64] | None) -> tuple[Any, Any]:
    """(T, L, P) quiet seconds and joules of leaving before a layer, priced quality included."""
    prices, rules, v = world.prices, world.rules[0], s["variant"]
    tokens, layers = int(s["tokens"]), int(rules["layers"])
    head = prices.at["head"][v]
    shape = (tokens, layers, prices.at.shape[1])
    seconds, joules = np.zeros(shape) + head["latency_s"], np.zeros(shape) + head["energy_j"]
    if rules["kv"] == PROPAGATE:
        context = np.minimum(s["prompt"] + np.arange(tokens), prices.fill.shape[2] - 1)
        for layer in range(1, layers):
            fill = prices.fill[v, layers - layer, context]
            seconds[:, layer] += fill["latency_s"]
            joules[:, layer] += fill["energy_j"]
    outcome = world.outcome[s["row"] : s["row"] + tokens].astype(float)
    joules[:, 1:] += (prices_of.disagree * outcome[..., 0] + prices_of.dnll * outcome[..., 1])[..., None]
    joules[0], joules[:, 0] = np.inf, np.inf
    if depths is not None:
        joules[np.arange(layers) != depths[:, None]] = np.inf
    return seconds, joules


def _may_change(world: Any, tokens: int) -> NDArray[np.bool_]:
    """(T, L) where the scenario lets the point change: the kernel's ``may_change``, tabulated."""
    rules = world.rules[0]
    layers, level = int(rules["layers"]), rules["granularity"]
    token, layer = np.arange(tokens)[:, None], np.arange(layers)[None]
    group = layer * int(rules["groups"]) // layers
    first = layer == 0
    if level == LAYER_LEVEL:
        found = np.ones((tokens, layers), np.bool_)
    elif level == GROUP_LEVEL:
        found = (token >= 0) & (np.diff(group, prepend=-1) != 0)
    elif level == TOKEN_LEVEL:
        found = (token >= 0) & first
    else:
        found = first & (token <= (1 if level == PHASE_LEVEL else 0))
    if rules["delay"]:
        found = found & ((token > 0) | (layer > 0))  # what is in force first is the top point, where the chip is
    return np.ascontiguousarray(found)


def request_costs(
    control: Control,
    request: Request,
    prices_of: CostPrices,
    depths: NDArray[np.int64] | None = None,
    wait_s: float = 0.0,
) -> Costs:
    """Tabulate a request.

    Args:
        control: A scenario without probe and controller.
        request: Which request.
        prices_of: Of lateness and lost quality.
        depths: (T,) layers that each token has to run; None leaves them free.
        wait_s: See ``Costs``.

    Raises:
        BadValueError: Free exits with keys and values that are not propagated, or depths that no controller could choose.
    """
    world, rules = control.world, control.world.rules[0]
    rows = Rows(world, 1)
    rows.reset(*(np.array([int(n)]) for n in (request.seed, request.episode, request.document)))
    s = rows.state[0]
    tokens, layers = int(s["tokens"]), int(rules["layers"])
    if depths is None and rules["kv"] != PROPAGATE:
        raise BadValueError(
            f"an oracle of exits with kv {control.scenario.kv!r}",
            "a layer's cost there depends on all exits before it; take kv 'propagate', or give the depths",
        )
    if depths is not None:
        depths = _checked(depths, tokens, layers)
    price, v = world.prices, int(s["variant"])
    chip, rates = price.chip[v], price.at["rate"][v]
    growth = float(leakage_growth(chip, chip["ambient_c"]))
    leak_w = rates["leakage_w"] * growth

    def stretched(seconds: Any, joules: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Both states of the co-runner."""
        stretch = np.array([1.0, s["slowdown"]])[:, None, None, None]
        return seconds * stretch, joules + seconds * (stretch - 1.0) * rates["stall_w"] + seconds * stretch * leak_w

    run_s, run_j = _layers(world, s, depths)
    head = price.at["head"][v]
    run_s[:, -1] += head["latency_s"]
    run_j[:, -1] += head["energy_j"]
    if depths is not None:
        run_j[np.arange(layers) >= depths[:, None]] = np.inf
    leave_s, leave_j = _exits(world, s, prices_of, depths)
    (run_s, run_j), (leave_s, leave_j) = stretched(run_s, run_j), stretched(leave_s, leave_j)
    change = price.switch[v]
    switch_j = change["energy_j"] + change["stall_s"] * change["leakage_w"] * growth
    per_token = bool(rules["per_token"])
    due_s = np.cumsum(np.concatenate([[s["ttft_s"]], np.full(tokens - 1, s["tpot_s"])]))
    least_j = _least(run_j[0], leave_j[0])
    rest_j = np.concatenate([least_j, np.zeros((1, layers))])
    rest_j[:-1] += np.cumsum(least_j[::-1, :1], 0)[::-1] - least_j[:, :1]
    least_s = _least(run_s[0], np.where(np.isinf(leave_j[0]), np.inf, leave_s[0]))[:, 0]
    late_j = prices_of.late
    if np.isinf(late_j):
        # More than any schedule without lateness could save: the dearest way to run everything.
        dearest = np.where(np.isinf(run_j[1]), 0.0, run_j[1]).max(2).sum() + switch_j.max() * tokens * layers
        late_j = dearest + np.where(np.isinf(leave_j[1]), 0.0, leave_j[1]).max((1, 2)).sum() + due_s[-1] * leak_w.max()
    horizon_s = _horizon_s(
        (run_s[1], run_j[1], leave_s[1], leave_j[1]), due_s, s, per_token, bool(np.isfinite(prices_of.late))
    )
    slots = int((horizon_s + 2 * max(run_s.max(), leave_s.max())) / rules["slot_s"]) + 3
    changes = _may_change(world, tokens)
    busy = np.zeros(slots, np.bool_)
    busy[0] = s["busy"]
    _interference(int(s["seed"]), int(s["episode"]), float(s["to_busy"]), float(s["to_idle"]), busy)
    return Costs(
        run_s=run_s,
        run_j=run_j,
        leave_s=leave_s,
        leave_j=leave_j,
        switch_s=np.ascontiguousarray(change["stall_s"]),
        switch_j=switch_j,
        leak_w=leak_w,
        changes=np.stack([changes, changes | _may_throttle(chip, rates, run_s, run_j, change)]),
        wait_s=wait_s,
        busy=busy,
        slot_s=float(rules["slot_s"]),
        due_s=due_s,
        tpot_s=float(s["tpot_s"]),
        per_token=per_token,
        late_j=float(late_j),
        idle_w=0.0 if per_token else float(idle_power(chip, chip["ambient_c"])),
        wake_j=0.0 if per_token else float(chip["wake_j"]),
        rest_j=rest_j,
        soonest_s=float(s["clock_s"]) + np.concatenate([[0.0], np.cumsum(least_s)]),
        begin_s=float(s["clock_s"]),
        horizon_s=horizon_s,
    )


def _may_throttle(chip: Any, rates: Any, run_s: Any, run_j: Any, switch: Any) -> bool:
    """Whether the die could become so hot that the chip lowers its point by itself: not where no power it can draw would."""
    hot = float(leakage_growth(chip, chip["throttle_c"])) * rates["leakage_w"].max()
    joules = np.where(np.isinf(run_j), 0.0, run_j) + switch["energy_j"].max()
    most_w = float((joules / run_s).max()) + hot + float(rates["stall_w"].max())
    return bool(chip["ambient_c"] + most_w * (chip["die_r"] + chip["package_r"]) > chip["throttle_c"])


def _least(run: NDArray[np.float64], leave: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, L) least sum over what is left of a token from each layer on, whatever the points."""
    run, leave = run.min(2), leave.min(2)
    found = np.minimum(run, leave)
    for layer in range(run.shape[1] - 2, -1, -1):
        found[:, layer] = np.minimum(leave[:, layer], run[:, layer] + found[:, layer + 1])
    return found


def _horizon_s(tables: Any, due_s: NDArray[np.float64], s: Any, per_token: bool, may_be_late: bool) -> float:
    """Up to when the clock matters; ``tables`` are those of a co-runner that never pauses."""
    run_s, _, leave_s, leave_j = tables
    leisure_s = _leisure_s(*tables)
    if not per_token:
        return max(float(due_s[-1]), float(s["clock_s"]) + _MARGIN * float(leisure_s.sum()) if may_be_late else 0.0)
    # A token that is late puts off all that follow.
    hasty_s = _least(run_s, np.where(np.isinf(leave_j), np.inf, leave_s))[:, 0]
    allowed_s = np.concatenate([due_s[:1] - s["clock_s"], np.full(len(due_s) - 1, s["tpot_s"])])
    longest_s = np.maximum(allowed_s, np.maximum(hasty_s, leisure_s))
    return float(s["clock_s"] + np.where(may_be_late | (hasty_s > allowed_s), longest_s, allowed_s).sum())


def _leisure_s(run_s: Any, run_j: Any, leave_s: Any, leave_j: Any) -> NDArray[np.float64]:
    """(T,) seconds of every token's cheapest way."""
    best = run_j.argmin(2)[..., None]
    seconds, joules = (np.cumsum(np.take_along_axis(table, best, 2)[..., 0], 1) for table in (run_s, run_j))
    out = leave_j.argmin(2)[..., None]
    out_s, out_j = (np.take_along_axis(table, out, 2)[..., 0] for table in (leave_s, leave_j))
    ways_j = np.concatenate([joules[:, :-1] + out_j[:, 1:], joules[:, -1:]], 1)
    ways_s = np.concatenate([seconds[:, :-1] + out_s[:, 1:], seconds[:, -1:]], 1)
    return np.take_along_axis(ways_s, ways_j.argmin(1)[:, None], 1)[:, 0]


def _checked(depths: Any, tokens: int, layers: int) -> NDArray[np.int64]:
    found = np.asarray(depths)
    if found.shape != (tokens,) or found.dtype.kind not in "iu":
        raise BadValueError(f"depths of shape {found.shape}", f"{tokens} integers, one for each token of the request")
    if found[0] != layers or found.min() < 1 or found.max() > layers:
        raise BadValueError(f"depths {found.tolist()}", f"{layers} for the first token, then 1 to {layers}")
    return found.astype(np.int64)
