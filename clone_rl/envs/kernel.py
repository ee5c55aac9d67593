"""The transition kernel: one request, one layer at a time. Every environment, baseline and evaluation runs this code.

State is one record per row and randomness is counter-based. Order of one decision: the controller and
the probe are charged, then either the layer runs (after a switch, if the point changed) or the token exits. The head runs at
the point of the last layer. A hot die throttles: points above what its temperature allows are lowered. A request that
finishes before its last deadline idles until then, so that racing and crawling are compared over the same time; the chip
then wakes for the next request.

What becomes of the keys and values of the layers that an exit skips is the scenario's choice. ``propagate`` fills them from
the exit state at once, at the current point. ``exact`` owes them: a layer that runs next computes the tokens it lacks beside
the current one, in one pass that reads weights and cache once; what that takes beyond the current token counts as
``kv_fill_j``, and what is still owed when the request ends is never computed. ``skip`` never has them: later tokens attend to
fewer positions (a layer with a window sees the last ones that it has).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from clone_rl.envs.randomness import INTERFERENCE, REQUEST, uniform
from clone_rl.envs.signals import Signals
from clone_rl.hw_emulator.cost import (
    highest_allowed,
    idle_heat,
    idle_power,
    switch_cost,
    switch_stall,
    warm,
    work_cost,
    work_latency,
)
from clone_rl.hw_emulator.emulator import HEAD, LAYER, POLICY, PROBE

MAX_LAYERS = 128
"""Deepest model whose missing keys and values are counted: a record has a fixed size."""

STATE = np.dtype(
    [
        # who and where
        ("seed", "i8"),
        ("episode", "i8"),
        ("step", "i8"),
        ("document", "i8"),
        ("row", "i8"),  # first token of the document in the trace set
        ("prompt", "i8"),
        ("tokens", "i8"),  # length of the response
        ("token", "i8"),  # tokens emitted so far; 0 is prefill
        ("layer", "i8"),  # next layer to run
        ("done", "i8"),
        # the chip
        ("point", "i8"),
        ("pending", "i8"),  # action that a decision delay holds back
        ("die_c", "f8"),
        ("package_c", "f8"),
        ("clock_s", "f8"),
        ("slot", "i8"),
        ("busy", "i8"),
        # the request
        ("slo", "i8"),
        ("ttft_s", "f8"),  # targets, slack included
        ("tpot_s", "f8"),
        ("first_s", "f8"),  # when the first token came
        ("last_s", "f8"),  # when the last token came
        ("due_s", "f8"),  # when the next token is due
        ("length", "f8"),  # predicted response length, tokens
        ("agree", "f8"),  # probe: probability of agreement, and predicted KL, at the last boundary read
        ("agree_before", "f8"),
        ("kl", "f8"),
        ("left", "i8"),  # layers that the token before ran; 0 before the first
        # totals of the episode
        ("layer_j", "f8"),
        ("head_j", "f8"),
        ("kv_fill_j", "f8"),
        ("probe_j", "f8"),
        ("policy_j", "f8"),
        ("switch_j", "f8"),
        ("idle_j", "f8"),
        ("late", "f8"),
        ("disagree", "f8"),
        ("dnll", "f8"),
        ("kl_sum", "f8"),
        ("depth", "f8"),
        ("switches", "f8"),
        ("reward_energy", "f8"),
        ("reward_late", "f8"),
        ("reward_disagree", "f8"),
        ("reward_kl", "f8"),
        ("missing", "i4", (MAX_LAYERS,)),  # tokens whose keys and values each layer lacks; untouched by ``propagate``
    ]
)
"""Everything about one request in flight."""

RULES = np.dtype(
    [
        ("layers", "i8"),
        ("slack_low", "f8"),
        ("slack_high", "f8"),
        ("slowdown", "f8"),
        ("slot_s", "f8"),
        ("to_busy", "f8"),  # probability per slot
        ("to_idle", "f8"),
        ("per_token", "i8"),
        ("granularity", "i8"),
        ("delay", "i8"),
        ("probe", "i8"),
        ("policy", "i8"),
        ("kv", "i8"),  # index into ``hw_emulator.ledger.KV``
        ("reference_j", "f8"),
        ("late", "f8"),
        ("disagree", "f8"),
        ("kl", "f8"),
        ("context", "f8"),  # longest context, for the observation
        ("max_ttft_s", "f8"),
        ("max_tpot_s", "f8"),
        ("max_length", "f8"),
    ]
)
"""Constants of a scenario."""

ENERGY_TERMS = ("layer_j", "head_j", "kv_fill_j", "probe_j", "policy_j", "switch_j", "idle_j")
"""Fields of ``STATE`` that add up to the energy of a request."""

OBSERVATION = (
    "phase",  # 0 prefill, 1 decode
    "layer",  # layers run of this token / layers
    "agree",  # probe at the last boundary: log-odds that this exit agrees with full depth, / 6
    "agree_trend",  # change since the boundary before
    "kl",  # probe: predicted KL(full || exit), log10(nats) / 3 + 1
    "slack",  # time to the due time / target, -1 to 1 for -2 to 2 targets
    "pressure",  # full-depth time left at the highest allowed point / time to the due time
    "lowest_feasible",  # lowest point that meets the due time at full depth / top
    "point",  # current operating point / top
    "busy",  # a co-runner is active
    "context",  # tokens in the cache / longest context
    "tokens",  # tokens emitted / 128
    "ttft",  # target / longest target of the scenario
    "tpot",
    "headroom",  # (throttle temperature - die) / 100 K
    "length",  # predicted response length / 128
)
"""Names of the observation's standard scalars, in order; all within [-1, 1]. A scenario's extra signals follow them."""

N_OBS = len(OBSERVATION)
REQUEST_LEVEL, PHASE_LEVEL, TOKEN_LEVEL, LAYER_LEVEL = 0, 1, 2, 3
PROPAGATE, EXACT, SKIP = 0, 1, 2

# A call that is not inlined passes every array of the world on the stack, which takes longer than most of what is called.
_inlined = njit(cache=True, forceinline=True)


class World(NamedTuple):
    """The constants of a scenario as the kernel reads them.

    ``classes`` and ``remaining`` are the emulator's; ``head_s`` (points,) is the head's latency and ``decision_s`` (2, points)
    what probe and controller take at a layer boundary, in prefill and in decoding; ``documents`` are those of the split.
    The kernel never reads ``signals``, and ``Rows`` hands it a world without them: each array more slows down every call.
    """

    constants: NDArray[np.void]
    points: NDArray[np.void]
    work: NDArray[np.void]
    classes: NDArray[np.int64]
    remaining: NDArray[np.int64]
    head_s: NDArray[np.float64]
    decision_s: NDArray[np.float64]
    rules: NDArray[np.void]
    slo: NDArray[np.float64]
    documents: NDArray[np.int64]
    offset: NDArray[np.int64]
    prompt: NDArray[np.int64]
    length: NDArray[np.float64]
    signal: NDArray[np.float32]
    agree: NDArray[np.float32]
    kl: NDArray[np.float32]
    dnll: NDArray[np.float32]
    signals: Signals | tuple[()]


@njit(cache=True)
def reset(s: Any, world: World, seed: int, episode: int, document: int) -> None:
    """Start a request; ``document`` < 0 draws one of the split, otherwise it is taken as it is."""
    rules = world.rules[0]
    if document < 0:
        at = int(uniform(seed, episode, REQUEST, 0) * len(world.documents))
        document = world.documents[at]
    slo = int(uniform(seed, episode, REQUEST, 1) * len(world.slo))
    slack = rules.slack_low + (rules.slack_high - rules.slack_low) * uniform(seed, episode, REQUEST, 2)
    s.seed, s.episode, s.step, s.document = seed, episode, 0, document
    s.row, s.prompt = world.offset[document], world.prompt[document]
    s.tokens = world.offset[document + 1] - world.offset[document]
    s.token, s.layer, s.done = 0, 0, 0
    s.point = len(world.points) - 1
    s.pending = s.point
    s.die_c = s.package_c = world.constants[0].ambient_c
    s.clock_s, s.slot = world.constants[0].wake_s, 0
    share = rules.to_busy / (rules.to_busy + rules.to_idle)
    s.busy = 1 if uniform(seed, episode, INTERFERENCE, 0) < share else 0
    s.slo, s.ttft_s, s.tpot_s = slo, world.slo[slo, 0] * slack, world.slo[slo, 1] * slack
    s.first_s, s.last_s, s.due_s, s.length = 0.0, 0.0, s.ttft_s, world.length[document]
    s.agree, s.agree_before, s.kl, s.left = 0.5, 0.5, 1.0, 0
    s.layer_j = s.head_j = s.kv_fill_j = s.probe_j = s.policy_j = s.switch_j = s.idle_j = 0.0
    s.late = s.disagree = s.dnll = s.kl_sum = s.depth = s.switches = 0.0
    s.reward_energy = s.reward_late = s.reward_disagree = s.reward_kl = 0.0
    if rules.kv != PROPAGATE:
        for layer in range(rules.layers):
            s.missing[layer] = 0


@njit(cache=True)
def may_exit(s: Any) -> bool:
    """Whether the token can be emitted now: decoding, and at least one layer has run."""
    return bool(s.token > 0 and s.layer > 0)


@njit(cache=True)
def may_change(s: Any, granularity: int) -> bool:
    """Whether the operating point may change at this boundary."""
    if granularity == LAYER_LEVEL:
        return True
    if s.layer > 0:
        return False
    return bool(granularity == TOKEN_LEVEL or s.token == 0 or (granularity == PHASE_LEVEL and s.token == 1))


@_inlined
def _rows_context_causal(s: Any, world: World, layer: int) -> Any:
    """What a layer runs next, as ``work_cost`` takes it: the prompt, a token, or a token after those the layer lacks."""
    if s.token == 0:
        return float(s.prompt), 0.0, True
    context, kv = float(s.prompt + s.token), world.rules[0].kv
    missing = 0 if kv == PROPAGATE else s.missing[layer]
    if missing > 0 and kv == EXACT:
        # Of the positions that the current token attends to, it and the missing ones are not cached yet.
        return 1.0 + missing, context - 1.0 - missing, True
    return 1.0, context - missing, False


@_inlined
def _alike(s: Any, world: World, layer: int) -> int:
    """End of the run of layers, from ``layer`` on, that lack as many tokens as it does."""
    layers = world.rules[0].layers
    if world.rules[0].kv == PROPAGATE:
        return int(layers)
    end = layer + 1
    while end < layers and s.missing[end] == s.missing[layer]:
        end += 1
    return int(end)


@_inlined
def _run(s: Any, world: World, piece: int, rows: float, context: float, causal: bool) -> Any:
    """Latency, energy and heat of a piece of work as things stand now; not all of the DRAM's energy warms the die."""
    chip, point, work = world.constants[0], world.points[s.point], world.work[piece]
    slowdown = world.rules[0].slowdown if s.busy else 1.0
    cost = work_cost(chip, point, work, rows, context, causal, s.die_c, slowdown)
    joules = cost[1] + cost[2] + cost[3] + cost[4] + cost[5] + cost[6] + cost[7]
    return cost[0], joules, joules - chip.dram_elsewhere * cost[6]


@_inlined
def _pass_time(s: Any, world: World, seconds: float, heat_j: float) -> None:
    """Move the clock, warm the die and let the interference evolve slot by slot."""
    s.clock_s += seconds
    if seconds > 0.0:
        s.die_c, s.package_c = warm(world.constants[0], s.die_c, s.package_c, heat_j / seconds, seconds)
    rules = world.rules[0]
    now = int(s.clock_s / rules.slot_s)
    while s.slot < now:
        s.slot += 1
        draw = uniform(s.seed, s.episode, INTERFERENCE, s.slot)
        if s.busy:
            s.busy = 0 if draw < rules.to_idle else 1
        else:
            s.busy = 1 if draw < rules.to_busy else 0


@_inlined
def need_s(s: Any, world: World, point: int) -> float:
    """Seconds that the rest of this token takes at full depth at a point, under the interference of this moment.

    Tokens that the layers lack and will compute count.
    The switch to the point counts, and a decision for every layer; a controller that decides once per token takes a bit less.
    """
    chip, at, layers = world.constants[0], world.points[point], world.rules[0].layers
    quiet = world.head_s[point] + (layers - s.layer) * world.decision_s[1 if s.token > 0 else 0, point]
    layer = s.layer
    while layer < layers:
        end = _alike(s, world, layer)
        rows, context, causal = _rows_context_causal(s, world, layer)
        for kind in range(len(world.classes)):
            count = world.remaining[layer, kind] - world.remaining[end, kind]
            if count > 0:
                quiet += count * work_latency(chip, at, world.work[LAYER + world.classes[kind]], rows, context, causal)
        layer = end
    seconds = quiet * (world.rules[0].slowdown if s.busy else 1.0)
    if point != s.point:
        seconds += switch_stall(chip, world.points[s.point], at)
    return float(seconds)


@_inlined
def top_point(s: Any, world: World) -> int:
    """Highest point that the die's temperature allows."""
    return int(highest_allowed(world.constants[0], len(world.points) - 1, s.die_c))


@_inlined
def lowest_feasible(s: Any, world: World) -> int:
    """Lowest point that meets the due time at full depth; the highest allowed one where none does."""
    left, highest = s.due_s - s.clock_s, top_point(s, world)
    for point in range(highest):
        if need_s(s, world, point) <= left:
            return point
    return highest


@njit(cache=True)
def _emit(s: Any, world: World, depth: int, cost: Any) -> None:
    """A token leaves: deadline and quality are scored, the next token begins or the request ends."""
    rules = world.rules[0]
    late = 1.0 if s.clock_s > s.due_s else 0.0
    s.late += late
    s.depth += depth
    s.left = depth
    cost[0] = late
    if depth < rules.layers:
        at = s.row + s.token
        cost[1] = 1.0 - world.agree[at, depth - 1]
        cost[2] = world.dnll[at, depth - 1]
        kl = world.kl[at, depth - 1]
        s.disagree += cost[1]
        s.dnll += cost[2]
        s.kl_sum += kl
        s.reward_disagree -= rules.disagree * cost[1]
        s.reward_kl -= rules.kl * kl
    s.reward_late -= rules.late * late
    s.last_s = s.clock_s
    if s.token == 0:
        s.first_s = s.clock_s
    s.token += 1
    s.layer = 0
    s.agree_before = s.agree
    s.due_s = (s.clock_s if rules.per_token else s.due_s) + s.tpot_s
    if s.token >= s.tokens:
        s.done = 1
        final_due_s = s.due_s - s.tpot_s if not rules.per_token else s.clock_s
        if final_due_s > s.clock_s:
            idle_s = final_due_s - s.clock_s
            chip = world.constants[0]
            s.idle_j += idle_s * idle_power(chip, s.die_c) + chip.wake_j
            _pass_time(s, world, idle_s, idle_s * idle_heat(chip, s.die_c) + chip.wake_j)


@njit(cache=True)
def energy_j(s: Any) -> float:
    """Energy of the request so far: the sum of ``ENERGY_TERMS``."""
    return float(s.layer_j + s.head_j + s.kv_fill_j + s.probe_j + s.policy_j + s.switch_j + s.idle_j)


@njit(cache=True)
def reward(s: Any) -> float:
    """Sum of the reward so far."""
    return float(s.reward_energy + s.reward_late + s.reward_disagree + s.reward_kl)


@_inlined
def _decide(s: Any, world: World, reads: bool) -> None:
    """Charge one decision: the probe, if this decision ``reads`` it, and the controller's arithmetic."""
    rules = world.rules[0]
    seconds = heat_j = 0.0
    if rules.probe and reads:
        seconds, joules, heat_j = _run(s, world, PROBE, 1.0, 0.0, False)
        s.probe_j += joules
    if rules.policy:
        policy_s, joules, policy_heat_j = _run(s, world, POLICY, 1.0, 0.0, False)
        s.policy_j += joules
        heat_j += policy_heat_j
        # A decision made one boundary ahead runs beside the layer, on the special-function unit.
        seconds += 0.0 if rules.delay else policy_s
    if heat_j > 0.0:
        _pass_time(s, world, seconds, heat_j)


@_inlined
def _leave(s: Any, world: World) -> Any:
    """Seconds and heat that the caches of the layers which an exit skips take now; otherwise they go missing."""
    layers = world.rules[0].layers
    if world.rules[0].kv != PROPAGATE:
        for layer in range(s.layer, layers):
            s.missing[layer] += 1
        return 0.0, 0.0
    fill = LAYER + layers + (layers - s.layer)
    seconds, joules, heat_j = _run(s, world, fill, 1.0, float(s.prompt + s.token), False)
    s.kv_fill_j += joules
    return seconds, heat_j


@_inlined
def _run_layer(s: Any, world: World) -> Any:
    """Run the next layer, with the tokens that it lacks and owes; returns seconds and heat."""
    piece = LAYER + s.layer
    rows, context, causal = _rows_context_causal(s, world, s.layer)
    seconds, joules, heat_j = _run(s, world, piece, rows, context, causal)
    if world.rules[0].kv == EXACT and s.missing[s.layer] > 0:
        _, alone_j, _ = _run(s, world, piece, 1.0, float(s.prompt + s.token), False)
        s.kv_fill_j += joules - alone_j
        joules = alone_j
        s.missing[s.layer] = 0
    s.layer_j += joules
    s.layer += 1
    return seconds, heat_j


@njit(cache=True)
def _act(s: Any, world: World, action: int, cost: Any) -> None:
    """Run the next layer at point ``action``, or exit if ``action`` is one past the top point."""
    rules = world.rules[0]
    top = len(world.points) - 1
    if action > top and may_exit(s):
        depth = s.layer
        seconds, heat_j = _leave(s, world)
        head_s, head_j, head_heat_j = _run(s, world, HEAD, 1.0, 0.0, False)
        s.head_j += head_j
        _pass_time(s, world, seconds + head_s, heat_j + head_heat_j)
        _emit(s, world, depth, cost)
        return
    wanted = action if action <= top and may_change(s, rules.granularity) else s.point
    wanted = min(wanted, top_point(s, world))
    if wanted != s.point:
        points = world.points
        seconds, joules = switch_cost(world.constants[0], points[s.point], points[wanted], s.die_c)
        s.switch_j += joules
        s.switches += 1.0
        s.point = wanted
        _pass_time(s, world, seconds, joules - seconds * world.constants[0].dram_elsewhere * world.constants[0].dram_waiting_w)
    seconds, heat_j = _run_layer(s, world)
    if s.layer < rules.layers:
        _pass_time(s, world, seconds, heat_j)
        if s.token > 0 and rules.probe:
            at = s.row + s.token
            s.agree_before = s.agree if s.layer > 1 else world.signal[at, 0, 0]
            s.agree = world.signal[at, s.layer - 1, 0]
            s.kl = world.signal[at, s.layer - 1, 1]
        return
    head_s, head_j, head_heat_j = _run(s, world, HEAD, 1.0, 0.0, False)
    s.head_j += head_j
    _pass_time(s, world, seconds + head_s, heat_j + head_heat_j)
    _emit(s, world, rules.layers, cost)


@njit(cache=True)
def _score_energy(s: Any, world: World, before_j: float) -> None:
    s.reward_energy -= (energy_j(s) - before_j) / world.rules[0].reference_j


@njit(cache=True)
def layer_step(s: Any, world: World, action: int, cost: Any) -> float:
    """One decision of layer control.

    Args:
        s: Record of ``STATE``, changed in place.
        world: Constants.
        action: 0 to the top operating point, or one more to exit (counts as the current point where not allowed).
        cost: (3,) array, set to what this step adds to late tokens, disagreements and nats of dNLL.

    Returns:
        The reward.
    """
    cost[0] = cost[1] = cost[2] = 0.0
    before, before_j = reward(s), energy_j(s)
    s.step += 1
    _decide(s, world, may_exit(s))
    if world.rules[0].delay:
        action, s.pending = s.pending, action
    _act(s, world, action, cost)
    _score_energy(s, world, before_j)
    return reward(s) - before


@njit(cache=True)
def token_step(s: Any, world: World, action: Any, pending: Any, cost: Any) -> float:
    """One decision of token control: a point for each group of layers, then the exit depth in groups.

    Args:
        s, world, cost: As in ``layer_step``.
        action: (groups + 1,) points of the groups; ``action[groups]`` = g exits after group g + 1 (the last: full depth).
        pending: (groups + 1,) the action that a decision delay holds back; untouched without one.

    Returns:
        The reward.
    """
    cost[0] = cost[1] = cost[2] = 0.0
    before, before_j = reward(s), energy_j(s)
    s.step += 1
    groups, layers, token = len(action) - 1, world.rules[0].layers, s.token
    _decide(s, world, token > 1)  # the signal that the token before was left with
    if world.rules[0].delay:
        held = pending.copy()
        pending[:] = action
        action = held
    exit_at = -(-(action[groups] + 1) * layers // groups)  # first layer of the next group
    while s.token == token and s.done == 0:
        if token > 0 and s.layer == exit_at:
            _act(s, world, len(world.points), cost)
        else:
            _act(s, world, action[s.layer * groups // layers], cost)
    _score_energy(s, world, before_j)
    return reward(s) - before


@njit(cache=True)
def sureness(probability: float) -> float:
    """Log-odds / 6, within [-1, 1]: exits are decided between 0.9 and 0.99, which a probability hardly tells apart."""
    p = min(1.0 - 1e-6, max(1e-6, probability))
    return min(1.0, max(-1.0, math.log(p / (1.0 - p)) / 6.0))


@njit(cache=True)
def observe(s: Any, world: World, out: Any) -> None:
    """Write the observation (``OBSERVATION``) of a state into the first 16 of ``out``."""
    rules = world.rules[0]
    top = len(world.points) - 1
    left = s.due_s - s.clock_s
    target = s.ttft_s if s.token == 0 else s.tpot_s
    need = need_s(s, world, top_point(s, world))
    out[0] = 1.0 if s.token > 0 else 0.0
    out[1] = s.layer / rules.layers
    out[2] = sureness(s.agree)
    out[3] = 0.5 * (out[2] - sureness(s.agree_before)) if s.layer > 0 else 0.0
    out[4] = min(1.0, max(-1.0, math.log10(max(s.kl, 1e-6)) / 3.0 + 1.0))
    out[5] = min(1.0, max(-1.0, left / (2.0 * target)))
    out[6] = min(1.0, need / left) if left > 0.0 else 1.0
    out[7] = lowest_feasible(s, world) / top
    out[8] = s.point / top
    out[9] = float(s.busy)
    out[10] = min(1.0, (s.prompt + s.token) / rules.context)
    out[11] = min(1.0, s.token / rules.max_length)
    out[12] = s.ttft_s / rules.max_ttft_s
    out[13] = s.tpot_s / rules.max_tpot_s
    out[14] = min(1.0, max(-1.0, (world.constants[0].throttle_c - s.die_c) / 100.0))
    out[15] = min(1.0, s.length / rules.max_length)
