"""The transition kernel: one request, one layer at a time. Every environment, baseline and evaluation runs this code.

State is one record per row and randomness is counter-based. Order of one decision: the controller and
the probe are charged, then either the layer runs (after a switch, if the point changed) or the token exits. The head runs at
the point of the last layer. A hot die throttles: points above what its temperature allows are lowered. A request that
finishes before its last deadline idles until then, so that racing and crawling are compared over the same time; the chip
then wakes for the next request. Temperature, and leakage with it, is that of a token's beginning (of a layer's, in prefill):
the die's time constant is a thousand tokens long.

What becomes of the keys and values of the layers that an exit skips is the scenario's choice. ``propagate`` fills them from
the exit state at once, at the current point. ``exact`` owes them: a layer that runs next computes the tokens it lacks beside
the current one, in one pass that reads weights and cache once; what that takes beyond the current token counts as
``kv_fill_j``, and what is still owed when the request ends is never computed. ``skip`` never has them: later tokens attend to
fewer positions (a layer with a window sees the last ones that it has).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.compiling import compiled, inlined
from clone_rl.envs.prices import Prices, undisturbed
from clone_rl.envs.randomness import INTERFERENCE, REQUEST, uniform
from clone_rl.envs.state import (
    DISAGREE,
    DNLL,
    ENERGY,
    EXACT,
    GROUP_LEVEL,
    KL,
    LATE,
    LAYER_LEVEL,
    PHASE_LEVEL,
    PROPAGATE,
    SKIP,
    SWITCHES,
    TOKEN_LEVEL,
    TOKENS,
)
from clone_rl.hw_emulator.cost import highest_allowed, idle_heat, idle_power, leakage_growth, leakage_ratio, warm, work_latency
from clone_rl.hw_emulator.emulator import LAYER


class World(NamedTuple):
    """The constants of a scenario as the kernel reads them.

    Attributes:
        prices: What everything costs.
        rules: (1,) record of ``state.RULES``.
        decision_s: (V, P) what probe and controller take at a layer boundary in decoding.
        layer_s: (V, K, C, P) seconds of a layer with the decision before it, by place as in ``Prices.layer``.
        slo: (classes, 2) targets, s: first token, every further one.
        documents: (R,) documents of the split.
        offset: (D + 1,) first row of each document.
        prompt: (D,) tokens of its prompt.
        length: (D,) predicted tokens of its response.
        seen: (T, L - 1, 2) float32 what the probe shows at every exit, scaled as it is observed.
        outcome: (T, L - 1, 3) float32 disagreement, dNLL and KL of leaving there.
        hidden, margin, entropy: Columns that extra signals are read from, (T, ...); of no rows where none is chosen.
        chosen: Indices into ``signals.EXTRA_SIGNALS``.
    """

    prices: Prices
    rules: NDArray[np.void]
    decision_s: NDArray[np.float64]
    layer_s: NDArray[np.float64]
    slo: NDArray[np.float64]
    documents: NDArray[np.int64]
    offset: NDArray[np.int64]
    prompt: NDArray[np.int64]
    length: NDArray[np.float64]
    seen: NDArray[np.float32]
    outcome: NDArray[np.float32]
    hidden: NDArray[np.float32]
    margin: NDArray[np.float32]
    entropy: NDArray[np.float32]
    chosen: NDArray[np.int64]


@inlined
def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


@inlined
def reset(s: Any, missing: Any, world: World, seed: int, episode: int, document: int) -> None:
    """Start a request; ``document`` < 0 draws one of the split, otherwise it is taken as it is."""
    rules, prices = world.rules[0], world.prices
    if document < 0:
        at = int(uniform(seed, episode, REQUEST, 0) * len(world.documents))
        document = world.documents[at]
    slo = int(uniform(seed, episode, REQUEST, 1) * len(world.slo))
    slack = _between(rules.slack_low, rules.slack_high, uniform(seed, episode, REQUEST, 2))
    slack *= _between(rules.target_low, rules.target_high, uniform(seed, episode, REQUEST, 3))
    s.variant = int(uniform(seed, episode, REQUEST, 4) * len(prices.chip))
    s.slowdown = _between(rules.slowdown_low, rules.slowdown_high, uniform(seed, episode, REQUEST, 5))
    s.to_busy = min(1.0, rules.slot_s / _between(rules.idle_low_s, rules.idle_high_s, uniform(seed, episode, REQUEST, 6)))
    s.to_idle = min(1.0, rules.slot_s / _between(rules.busy_low_s, rules.busy_high_s, uniform(seed, episode, REQUEST, 7)))
    s.seed, s.episode, s.step, s.document = seed, episode, 0, document
    s.row, s.prompt = world.offset[document], world.prompt[document]
    s.tokens = world.offset[document + 1] - world.offset[document]
    s.token, s.layer, s.done, s.left = 0, 0, 0, 0
    s.point = prices.at.shape[1] - 1
    s.pending = s.point
    chip = prices.chip[s.variant]
    s.die_c = s.package_c = chip.ambient_c
    s.growth = leakage_growth(chip, s.die_c)
    s.heat_j = s.heated_s = 0.0
    s.clock_s, s.slot, s.slot_end_s = chip.wake_s, 0, rules.slot_s
    share = s.to_busy / (s.to_busy + s.to_idle)
    s.busy = 1 if uniform(seed, episode, INTERFERENCE, 0) < share else 0
    s.stretch = s.slowdown if s.busy else 1.0
    s.slo, s.ttft_s, s.tpot_s = slo, world.slo[slo, 0] * slack, world.slo[slo, 1] * slack
    s.first_s, s.last_s, s.due_s = 0.0, 0.0, s.ttft_s
    s.ttft_shown, s.tpot_shown = min(1.0, s.ttft_s / rules.max_ttft_s), min(1.0, s.tpot_s / rules.max_tpot_s)
    s.length_shown = min(1.0, world.length[document] / rules.max_length)
    s.sure, s.sure_before, s.kl_shown = 0.0, 0.0, 1.0
    s.energy_j = s.layer_j = s.head_j = s.kv_fill_j = s.probe_j = s.policy_j = s.switch_j = s.idle_j = 0.0
    s.late = s.disagree = s.dnll = s.kl_sum = s.depth = 0.0
    s.switches = 0
    s.reward_late = s.reward_disagree = s.reward_kl = 0.0
    if rules.kv != PROPAGATE:
        for layer in range(rules.layers):
            missing[layer] = 0


@compiled
def may_exit(s: Any) -> bool:
    """Whether the token can be emitted now: decoding, and at least one layer has run."""
    return bool(s.token > 0 and s.layer > 0)


@inlined
def may_change(s: Any, rules: Any) -> bool:
    """Whether the operating point may change at this boundary."""
    if rules.granularity == LAYER_LEVEL:
        return True
    if rules.granularity == GROUP_LEVEL:
        # The first layer of a group: the one before it belongs to another.
        return bool(s.layer == 0 or s.layer * rules.groups // rules.layers != (s.layer - 1) * rules.groups // rules.layers)
    if s.layer > 0:
        return False
    return bool(rules.granularity == TOKEN_LEVEL or s.token == 0 or (rules.granularity == PHASE_LEVEL and s.token == 1))


@inlined
def place(s: Any, world: World, lacking: int) -> int:
    """Where the layer tables hold what runs next, for a layer that lacks (and will not compute) so many tokens."""
    return int(s.prompt + s.token - lacking if s.token > 0 else world.prices.prefill[0] + s.prompt)


@inlined
def _stretched(s: Any, rate: Any, latency_s: float, energy_j: float, heat_j: float) -> Any:
    """A price as things stand now, with the co-runner and leakage: ``(seconds, joules, heat)``."""
    seconds = latency_s * s.stretch
    stalled_s, leakage_j = seconds - latency_s, seconds * rate.leakage_w * s.growth
    return seconds, energy_j + stalled_s * rate.stall_w + leakage_j, heat_j + stalled_s * rate.stall_heat_w + leakage_j


@inlined
def _charged(s: Any, rate: Any, price: Any) -> Any:
    """The same of a record of ``prices.PRICE``."""
    return _stretched(s, rate, price.latency_s, price.energy_j, price.heat_j)


@compiled
def _next_slots(s: Any, slot_s: float) -> None:
    """Let the interference evolve, slot by slot; rare, and apart, so that the common path stays short."""
    while s.clock_s >= s.slot_end_s:
        s.slot += 1
        s.slot_end_s = (s.slot + 1) * slot_s
        draw = uniform(s.seed, s.episode, INTERFERENCE, s.slot)
        if s.busy:
            s.busy = 0 if draw < s.to_idle else 1
        else:
            s.busy = 1 if draw < s.to_busy else 0
    s.stretch = s.slowdown if s.busy else 1.0


@inlined
def _elapse(s: Any, world: World, seconds: float) -> None:
    """Move the clock, and the interference with it."""
    s.clock_s += seconds
    if s.clock_s >= s.slot_end_s:
        _next_slots(s, world.rules[0].slot_s)


@inlined
def _warm(s: Any, world: World) -> None:
    """Let the heat that arose reach the die, spread over the time in which it did."""
    if s.heated_s > 0.0:
        chip = world.prices.chip[s.variant]
        before_c = s.die_c
        s.die_c, s.package_c = warm(chip, before_c, s.package_c, s.heat_j / s.heated_s, s.heated_s)
        s.growth *= leakage_ratio(chip, s.die_c - before_c)
    s.heat_j = s.heated_s = 0.0


@inlined
def top_point(s: Any, world: World) -> int:
    """Highest point that the die's temperature allows."""
    prices = world.prices
    return int(highest_allowed(prices.chip[s.variant], prices.at.shape[1] - 1, s.die_c))


@inlined
def _owing_s(s: Any, missing: Any, world: World, point: int) -> float:
    """Seconds that the layers to come take, decisions included, where some of them compute tokens that they lack."""
    prices, layers = world.prices, world.rules[0].layers
    chip, at, seconds = prices.chip[s.variant], prices.points[s.variant, point], 0.0
    for layer in range(s.layer, layers):
        if missing[layer] > 0:
            rows = 1.0 + missing[layer]
            context = float(s.prompt + s.token) - rows
            seconds += work_latency(chip, at, prices.work[s.variant, LAYER + layer], rows, context, True)
            seconds += world.decision_s[s.variant, point]
        else:
            seconds += world.layer_s[s.variant, prices.kind[layer], place(s, world, 0), point]
    return seconds


@inlined
def _layers_s(s: Any, missing: Any, world: World, point: int) -> float:
    """Seconds that the layers to come of this token and their decisions take at a point, undisturbed."""
    prices, rules, seconds = world.prices, world.rules[0], 0.0
    if rules.kv == PROPAGATE or s.token == 0:
        at = place(s, world, 0)
        for kind in range(prices.remaining.shape[1]):
            seconds += prices.remaining[s.layer, kind] * world.layer_s[s.variant, kind, at, point]
        return seconds
    if rules.kv == EXACT:
        return _owing_s(s, missing, world, point)
    for layer in range(s.layer, rules.layers):
        seconds += world.layer_s[s.variant, prices.kind[layer], place(s, world, missing[layer]), point]
    return seconds


@inlined
def need_s(s: Any, missing: Any, world: World, point: int) -> float:
    """Seconds that the rest of this token takes at full depth at a point, under the interference of this moment.

    Tokens that the layers lack and will compute count.
    The switch to the point counts, and a decision for every layer; a controller that decides once per token takes a bit less.
    """
    quiet = world.prices.head_s[s.variant, point] + _layers_s(s, missing, world, point)
    seconds = quiet * s.stretch
    return float(seconds + world.prices.switch_s[s.variant, s.point, point])


@inlined
def look_ahead(s: Any, missing: Any, world: World, highest: int) -> Any:
    """What the due time asks for at full depth: seconds at the ``highest`` allowed point, and the lowest point that meets it.

    The highest allowed one stands for none. Where every layer is alike and nothing is lacking, which is nearly always, what
    ``need_s`` looks up again for every point is looked up once.
    """
    prices, rules = world.prices, world.rules[0]
    left, v = s.due_s - s.clock_s, s.variant
    if prices.remaining.shape[1] > 1 or not (rules.kv == PROPAGATE or s.token == 0):
        need = need_s(s, missing, world, highest)
        for point in range(highest):
            if need_s(s, missing, world, point) <= left:
                return need, point
        return need, highest
    count, stretch = float(rules.layers - s.layer), s.stretch
    layer_s, head_s, switch_s = world.layer_s[v, 0, place(s, world, 0)], prices.head_s[v], prices.switch_s[v, s.point]
    lowest = highest
    for point in range(len(head_s)):  # all of them: leaving the loop early is a branch that no processor foresees
        fits = (head_s[point] + count * layer_s[point]) * stretch + switch_s[point] <= left
        lowest = min(lowest, point if fits else highest)
    return (head_s[highest] + count * layer_s[highest]) * stretch + switch_s[highest], lowest


@inlined
def _emit(s: Any, world: World, depth: int) -> Any:
    """A token leaves: deadline and quality are scored, the next token begins or the request ends.

    Returns:
        1.0 if it was late, its disagreement, dNLL and KL, and joules of idling, if the request ended early.
    """
    rules = world.rules[0]
    late = 1.0 if s.clock_s > s.due_s else 0.0
    disagree = nats = kl = idle_j = 0.0
    s.late += late
    s.depth += depth
    s.left = depth
    if depth < rules.layers:
        outcome = world.outcome[s.row + s.token, depth - 1]
        disagree, nats, kl = float(outcome[0]), float(outcome[1]), float(outcome[2])
        s.disagree += disagree
        s.dnll += nats
        s.kl_sum += kl
        s.reward_disagree -= rules.disagree * disagree
        s.reward_kl -= rules.kl * kl
    s.reward_late -= rules.late * late
    s.last_s = s.clock_s
    if s.token == 0:
        s.first_s = s.clock_s
    s.token += 1
    s.layer = 0
    s.sure_before = s.sure
    final_due_s = s.due_s
    s.due_s = (s.clock_s if rules.per_token else s.due_s) + s.tpot_s
    if s.token == s.tokens:
        s.done = 1
        if not rules.per_token and final_due_s > s.clock_s:
            chip, idle_s = world.prices.chip[s.variant], final_due_s - s.clock_s
            idle_j = idle_s * idle_power(chip, s.die_c) + chip.wake_j
            s.idle_j = idle_j
            _elapse(s, world, idle_s)
            s.heat_j, s.heated_s = idle_s * idle_heat(chip, s.die_c) + chip.wake_j, idle_s
            _warm(s, world)
    return late, disagree, nats, kl, idle_j


@inlined
def _decide(s: Any, world: World, reads: bool) -> Any:
    """One decision, the probe if it ``reads`` it and the controller's arithmetic: ``(seconds, joules, heat)``."""
    rules, here = world.rules[0], world.prices.at[s.variant, s.point]
    seconds = joules = heat_j = 0.0
    if rules.probe and reads:
        seconds, joules, heat_j = _charged(s, here.rate, here.probe)
        s.probe_j += joules
    if rules.policy:
        policy_s, policy_j, policy_heat_j = _charged(s, here.rate, here.policy)
        s.policy_j += policy_j
        joules += policy_j
        heat_j += policy_heat_j
        # A decision made one boundary ahead runs beside the layer, on the special-function unit.
        seconds += 0.0 if rules.delay else policy_s
    _elapse(s, world, seconds)
    return seconds, joules, heat_j


@inlined
def _leave(s: Any, missing: Any, world: World) -> Any:
    """What the caches of the layers that an exit skips take now, or they go missing: ``(seconds, joules, heat)``."""
    prices, layers = world.prices, world.rules[0].layers
    if world.rules[0].kv != PROPAGATE:
        for layer in range(s.layer, layers):
            missing[layer] += 1
        return 0.0, 0.0, 0.0
    context = min(s.prompt + s.token, prices.fill.shape[2] - 1)
    price = prices.fill[s.variant, layers - s.layer, context, s.point]
    seconds, joules, heat_j = _charged(s, prices.at[s.variant, s.point].rate, price)
    s.kv_fill_j += joules
    return seconds, joules, heat_j


@inlined
def _run_layer(s: Any, missing: Any, world: World) -> Any:
    """Run the next layer, with the tokens that it lacks and owes: ``(seconds, joules, heat)``."""
    prices, layer, kv = world.prices, s.layer, world.rules[0].kv
    rate = prices.at[s.variant, s.point].rate
    if kv == EXACT and missing[layer] > 0:
        rows = 1.0 + missing[layer]
        work, point = prices.work[s.variant, LAYER + layer], prices.points[s.variant, s.point]
        context = float(s.prompt + s.token) - rows
        latency_s, quiet_j, quiet_heat_j = undisturbed(prices.chip[s.variant], point, work, rows, context, True)
        seconds, joules, heat_j = _stretched(s, rate, latency_s, quiet_j, quiet_heat_j)
        whole = prices.layer[s.variant, prices.kind[layer], place(s, world, 0), s.point]
        _, alone_j, _ = _charged(s, rate, whole)
        s.kv_fill_j += joules - alone_j
        s.layer_j += alone_j
        missing[layer] = 0
    else:
        at = place(s, world, missing[layer] if kv == SKIP else 0)
        price = prices.layer[s.variant, prices.kind[layer], at, s.point]
        seconds, joules, heat_j = _charged(s, rate, price)
        s.layer_j += joules
    s.layer += 1
    return seconds, joules, heat_j


@inlined
def _switch(s: Any, world: World, wanted: int) -> Any:
    """Change the operating point: ``(seconds, joules, heat)``."""
    change = world.prices.switch[s.variant, s.point, wanted]
    leakage_j = change.stall_s * change.leakage_w * s.growth
    joules = change.energy_j + leakage_j
    s.switch_j += joules
    s.switches += 1
    s.point = wanted
    _elapse(s, world, change.stall_s)
    return change.stall_s, joules, change.heat_j + leakage_j


@inlined
def _act(s: Any, missing: Any, world: World, action: int, decision: Any) -> Any:
    """Run the next layer at point ``action``, or exit if ``action`` is one past the top point.

    ``decision`` is what came before it in this step, ``(seconds, joules, heat)``: only the clock has run on by it.

    Returns:
        What it amounted to, in the order of ``state.AMOUNTS``.
    """
    before_s, joules, heat_j = decision
    rules, points = world.rules[0], world.prices.at.shape[1]
    exits = action >= points and may_exit(s)
    depth, switches = s.layer, 0.0
    if exits:
        seconds, piece_j, piece_heat_j = _leave(s, missing, world)
    else:
        wanted: Any = min(action if action < points and may_change(s, rules) else s.point, top_point(s, world))
        wanted = np.uint32(wanted)  # as ``s.point`` is: not counted from the end
        if wanted != s.point:
            stall_s, stall_j, stall_heat_j = _switch(s, world, wanted)
            switches = 1.0
            before_s += stall_s
            joules += stall_j
            heat_j += stall_heat_j
        seconds, piece_j, piece_heat_j = _run_layer(s, missing, world)
        depth += 1
    joules += piece_j
    heat_j += piece_heat_j
    emits = exits or depth == rules.layers
    if emits:
        here = world.prices.at[s.variant, s.point]
        head_s, head_j, head_heat_j = _charged(s, here.rate, here.head)
        s.head_j += head_j
        seconds += head_s
        joules += head_j
        heat_j += head_heat_j
    _elapse(s, world, seconds)
    s.heat_j += heat_j
    s.heated_s += before_s + seconds
    if emits or s.token == 0:
        _warm(s, world)
    late = disagree = nats = kl = tokens = 0.0
    if emits:
        tokens = 1.0
        late, disagree, nats, kl, idle_j = _emit(s, world, depth)
        joules += idle_j
    elif s.token > 0 and rules.probe:
        seen = world.seen[s.row + s.token]
        s.sure_before = s.sure if depth > 1 else float(seen[0, 0])
        s.sure, s.kl_shown = float(seen[depth - 1, 0]), float(seen[depth - 1, 1])
    s.energy_j += joules
    return late, disagree, nats, kl, joules / world.prices.reference_j[s.variant], switches, tokens


@inlined
def _rewarded(rules: Any, late: float, disagree: float, kl: float, energy: float) -> float:
    return float(-energy - rules.late * late - rules.disagree * disagree - rules.kl * kl)


@inlined
def layer_step(s: Any, missing: Any, world: World, action: int, amounts: Any) -> float:
    """One decision of layer control.

    Args:
        s: Record of ``STATE``, changed in place.
        missing: (L,) tokens whose keys and values each layer lacks, changed in place; untouched by ``propagate``.
        world: Constants.
        action: 0 to the top operating point, or one more to exit (counts as the current point where not allowed).
        amounts: What this step amounts to is written here, see ``state.AMOUNTS``.

    Returns:
        The reward.
    """
    s.step += 1
    decision = _decide(s, world, may_exit(s))
    if world.rules[0].delay:
        action, s.pending = s.pending, action
    late, disagree, nats, kl, energy, switches, tokens = _act(s, missing, world, action, decision)
    amounts[LATE], amounts[DISAGREE], amounts[DNLL], amounts[KL] = late, disagree, nats, kl
    amounts[ENERGY], amounts[SWITCHES], amounts[TOKENS] = energy, switches, tokens
    return _rewarded(world.rules[0], late, disagree, kl, energy)


@inlined
def token_step(s: Any, missing: Any, world: World, action: Any, pending: Any, amounts: Any) -> float:
    """One decision of token control: a point for each group of layers, then the exit depth in groups.

    Args:
        s, missing, world, amounts: As in ``layer_step``.
        action: (groups + 1,) points of the groups; ``action[groups]`` = g exits after group g + 1 (the last: full depth).
        pending: (2, groups + 1) the action in force, and the one that a decision delay holds back.

    Returns:
        The reward.
    """
    s.step += 1
    groups, layers, token = len(action) - 1, world.rules[0].layers, s.token
    decision = _decide(s, world, token > 1)  # the signal that the token before was left with
    for head in range(groups + 1):
        pending[0, head] = pending[1, head] if world.rules[0].delay else action[head]
        pending[1, head] = action[head]
    exit_at = -(-(pending[0, groups] + 1) * layers // groups)  # first layer of the next group
    for amount in range(len(amounts)):
        amounts[amount] = 0.0
    while s.token == token and s.done == 0:
        exits = token > 0 and s.layer == exit_at
        chosen = world.prices.at.shape[1] if exits else pending[0, s.layer * groups // layers]
        late, disagree, nats, kl, energy, switches, tokens = _act(s, missing, world, chosen, decision)
        amounts[LATE] += late
        amounts[DISAGREE] += disagree
        amounts[DNLL] += nats
        amounts[KL] += kl
        amounts[ENERGY] += energy
        amounts[SWITCHES] += switches
        amounts[TOKENS] += tokens
        decision = (0.0, 0.0, 0.0)
    return _rewarded(world.rules[0], amounts[LATE], amounts[DISAGREE], amounts[KL], amounts[ENERGY])


@inlined
def hold(pending: Any, points: int) -> None:
    """The action in force before the first decision takes effect: the top point, full depth."""
    groups = pending.shape[1] - 1
    for head in range(groups):
        pending[1, head] = points - 1
    pending[1, groups] = groups - 1
