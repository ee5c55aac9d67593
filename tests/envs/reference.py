"""The dynamics once more, slowly: written from the docstrings, plain floats and dicts, no compiled state."""

import math
from types import SimpleNamespace

import numpy as np

from clone_rl.hw_emulator.cost import highest_allowed, idle_power, switch_cost, warm
from clone_rl.hw_emulator.emulator import HEAD, LAYER, POLICY, PROBE

TERMS = ("layer", "head", "kv_fill", "probe", "policy", "switch", "idle")
REQUEST, INTERFERENCE = 1, 2
WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def uniform(seed, episode, stream, index):
    x = mix((seed * GOLDEN + 1) % WORD)
    for key in (episode, stream, index):
        x = mix((x + key * GOLDEN) % WORD)
    return (x >> 11) / 2**53


def start(control, seed, episode=0):
    """A request at its beginning."""
    scenario, traces, points = control.scenario, control.traces, control.emulator.points
    documents = control.traces.documents("train")
    document = int(documents[int(uniform(seed, episode, REQUEST, 0) * len(documents))])
    level = scenario.slo[int(uniform(seed, episode, REQUEST, 1) * len(scenario.slo))]
    slack = scenario.slack_low + (scenario.slack_high - scenario.slack_low) * uniform(seed, episode, REQUEST, 2)
    interference = scenario.interference
    to_busy = min(1.0, interference.slot_s / interference.mean_idle_s)
    to_idle = min(1.0, interference.slot_s / interference.mean_busy_s)
    ambient = control.emulator.chip.thermal.ambient_c
    first, after = int(traces.offset[document]), int(traces.offset[document + 1])
    same_kind = (traces.split == 0) & (traces.kind == traces.kind[document])
    return SimpleNamespace(
        control=control,
        seed=seed,
        episode=episode,
        document=document,
        first=first,
        tokens=after - first,
        prompt=int(traces.prompt_tokens[document]),
        expected=float(np.mean(np.diff(traces.offset)[same_kind])),
        ttft=level.ttft_s * slack,
        tpot=level.tpot_s * slack,
        to_busy=to_busy,
        to_idle=to_idle,
        busy=uniform(seed, episode, INTERFERENCE, 0) < to_busy / (to_busy + to_idle),
        slot=0,
        clock=float(control.emulator.constants[0]["wake_s"]),
        die=ambient,
        package=ambient,
        point=len(points) - 1,
        held=None,
        token=0,
        layer=0,
        done=False,
        due=level.ttft_s * slack,
        spent=0.0,
        heat=0.0,
        agree=0.5,
        agree_before=0.5,
        kl=1.0,
        left=None,
        owed=[[] for _ in range(traces.layers)],
        absent=[[] for _ in range(traces.layers)],
        energy=dict.fromkeys(TERMS, 0.0),
        late=0,
        disagree=0.0,
        dnll=0.0,
        kl_sum=0.0,
        depth=0,
        switches=0,
    )


def rows_and_context(s):
    """Prefill sees the whole prompt at once, causally; decoding one token and everything before it."""
    return (s.prompt, 0.0) if s.token == 0 else (1, s.prompt + s.token)


def layer_work(s, layer):
    """Rows, context and whether they are consecutive tokens of one text, for what a layer has to do next."""
    rows, context = rows_and_context(s)
    if s.token == 0:
        return rows, context, True
    assert s.owed[layer] == list(range(s.token - len(s.owed[layer]), s.token))  # consecutive tokens, up to this one
    if s.owed[layer]:
        return len(s.owed[layer]) + 1, s.prompt + s.owed[layer][0] - 1, True
    return 1, context - len(s.absent[layer]), False


def work(s, piece, rows=1, context=0.0, causal=False):
    slowdown = s.control.scenario.interference.slowdown if s.busy else 1.0
    cost = s.control.emulator.cost(piece, s.point, context, rows, s.die, slowdown, causal)
    return cost.latency_s, cost.energy_j, cost.energy_j - elsewhere(s) * cost.dram_j


def elsewhere(s):
    """Share of the DRAM's energy that does not warm the die."""
    return float(s.control.emulator.constants[0]["dram_elsewhere"])


def pass_time(s, seconds, heat):
    """The clock runs on; what has warmed the die counts from the next token on, or from the next layer in prefill."""
    s.clock += seconds
    s.spent += seconds
    s.heat += heat
    while s.clock >= (s.slot + 1) * s.control.scenario.interference.slot_s:
        s.slot += 1
        draw = uniform(s.seed, s.episode, INTERFERENCE, s.slot)
        s.busy = draw >= s.to_idle if s.busy else draw < s.to_busy


def settle(s):
    if s.spent > 0:
        s.die, s.package = warm(s.control.emulator.constants[0], s.die, s.package, s.heat / s.spent, s.spent)
    s.spent = s.heat = 0.0


def exit_allowed(s):
    return s.token > 0 and s.layer > 0


def group_of(s, layer):
    return layer * s.control.groups // s.control.traces.layers


def change_allowed(s):
    return {
        "layer": True,
        "token": s.layer == 0,
        "group": group_of(s, s.layer) != group_of(s, s.layer - 1),
        "phase": s.layer == 0 and s.token <= 1,
        "request": s.layer == 0 and s.token == 0,
    }[s.control.scenario.granularity]


def overheads(s, reads_probe):
    """The probe behind this decision and the controller's arithmetic; a delayed decision is off the critical path."""
    scenario = s.control.scenario
    seconds = heat = 0.0
    if scenario.probe and reads_probe:
        seconds, joules, heat = work(s, PROBE)
        s.energy["probe"] += joules
    if scenario.policy_macs:
        policy_s, policy_j, policy_heat = work(s, POLICY)
        s.energy["policy"] += policy_j
        heat += policy_heat
        if not scenario.decision_delay:
            seconds += policy_s
    pass_time(s, seconds, heat)


def emit(s, depth):
    """A token leaves after ``depth`` layers, and perhaps the request ends."""
    scenario, traces, layers = s.control.scenario, s.control.traces, s.control.traces.layers
    s.depth += depth
    s.left = depth
    s.late += s.clock > s.due
    if depth < layers:
        at = (s.first + s.token, depth - 1)
        s.disagree += 1.0 - float(traces.agree[at])
        s.dnll += float(traces.dnll[at])
        s.kl_sum += float(traces.kl[at])
    s.token += 1
    s.layer = 0
    s.done = s.token == s.tokens
    s.agree_before = s.agree
    last_due = s.due
    s.due = (s.clock if scenario.deadline == "per-token" else s.due) + s.tpot
    if s.done and scenario.deadline == "carry-over" and last_due > s.clock:
        seconds = last_due - s.clock
        joules = seconds * idle_power(s.control.emulator.constants[0], s.die)
        memory_w = float(s.control.emulator.constants[0]["idle_dram_w"])
        joules += float(s.control.emulator.constants[0]["wake_j"])
        s.energy["idle"] += joules
        pass_time(s, seconds, joules - seconds * memory_w * elsewhere(s))
        settle(s)


def finish_token(s, depth, seconds, heat):
    head_s, head_j, head_heat = work(s, HEAD)
    s.energy["head"] += head_j
    pass_time(s, seconds + head_s, heat + head_heat)
    settle(s)
    emit(s, depth)


def leave(s):
    """Fill the caches of the layers that are skipped, or note what they lack; then run the head."""
    depth, layers, kv = s.layer, s.control.traces.layers, s.control.scenario.kv
    seconds = joules = heat = 0.0
    if kv == "propagate":
        seconds, joules, heat = work(s, s.control.emulator.kv_fill_row(layers - depth), 1, s.prompt + s.token)
    for lacking in (s.owed if kv == "exact" else s.absent if kv == "skip" else [])[depth:]:
        lacking.append(s.token)
    s.energy["kv_fill"] += joules
    finish_token(s, depth, seconds, heat)


def allowed(s):
    return highest_allowed(s.control.emulator.constants[0], s.control.emulator.top, s.die)


def run_layer(s, point):
    emulator, traces = s.control.emulator, s.control.traces
    point = min(point if change_allowed(s) else s.point, allowed(s))
    if point != s.point:
        seconds, joules = switch_cost(emulator.constants[0], emulator.points[s.point], emulator.points[point], s.die)
        s.energy["switch"] += joules
        s.switches += 1
        s.point = point
        pass_time(s, seconds, joules - seconds * elsewhere(s) * float(emulator.constants[0]["dram_waiting_w"]))
    seconds, joules, heat = work(s, LAYER + s.layer, *layer_work(s, s.layer))
    if s.owed[s.layer]:
        alone = work(s, LAYER + s.layer, *rows_and_context(s))[1]
        s.energy["kv_fill"] += joules - alone
        joules = alone
        s.owed[s.layer].clear()
    s.energy["layer"] += joules
    s.layer += 1
    if s.layer == traces.layers:
        finish_token(s, s.layer, seconds, heat)
        return
    pass_time(s, seconds, heat)
    if s.token == 0:
        settle(s)
    if s.token > 0 and s.control.scenario.probe:
        signal = traces.signal[s.first + s.token]
        s.agree_before = float(signal[0, 0]) if s.layer == 1 else s.agree
        s.agree, s.kl = float(signal[s.layer - 1, 0]), float(signal[s.layer - 1, 1])


def total(s):
    """What the reward weighs: energy in full-depth tokens at the top point, late tokens, disagreements, nats."""
    emulator, weights = s.control.emulator, s.control.scenario.weights
    energy = sum(s.energy.values()) / emulator.token_energy_j(emulator.top, 64.0)
    return -energy - weights.late * s.late - weights.disagree * s.disagree - weights.kl * s.kl_sum


def layer_decision(s, action):
    """One step of layer control; returns the reward."""
    before, top = total(s), s.control.emulator.top
    overheads(s, exit_allowed(s))
    if s.control.scenario.decision_delay:
        action, s.held = (top if s.held is None else s.held), action
    if action > top and exit_allowed(s):
        leave(s)
    else:
        run_layer(s, s.point if action > top else action)
    return total(s) - before


def token_decision(s, action):
    """One step of token control; the probe behind it is the one that the token before was left with."""
    before, top = total(s), s.control.emulator.top
    overheads(s, s.token > 1)
    *points, last_group = action
    if s.control.scenario.decision_delay:
        default = [top] * len(points) + [len(points) - 1]
        s.held, (*points, last_group) = list(action), (default if s.held is None else s.held)
    token, layers = s.token, s.control.traces.layers
    for layer in range(layers):
        group = layer * len(points) // layers
        if token > 0 and group > last_group:
            leave(s)
            break
        run_layer(s, int(points[group]))
    return total(s) - before


def quiet_need(s, point):
    """Seconds that the rest of this token takes at full depth with nobody else there."""
    emulator = s.control.emulator
    layers = []
    for layer in range(s.layer, s.control.traces.layers):
        rows, context, causal = layer_work(s, layer)
        layers.append(emulator.layer(layer, "prefill" if causal else "decode", context, rows, point))
    decision = emulator.cost(PROBE, point).latency_s if s.control.scenario.probe and s.token else 0.0
    if s.control.scenario.policy_macs and not s.control.scenario.decision_delay:
        decision += emulator.cost(POLICY, point).latency_s
    return sum(layer.latency_s + decision for layer in layers) + emulator.cost(HEAD, point).latency_s


def clip(value, low=-1.0, high=1.0):
    return min(high, max(low, value))


def sureness(probability):
    return clip(math.log(max(probability, 1e-6) / max(1 - probability, 1e-6)) / 6)


def extra(s, name):
    """One of the signals that a scenario may add."""
    traces = s.control.traces
    if name in ("norm", "change", "cosine"):
        if not (s.token and s.layer and s.control.scenario.probe):
            return 0.0
        value = float(traces.hidden[s.first + s.token, s.layer - 1, ("norm", "change", "cosine").index(name)])
        return clip(value / {"norm": 3, "change": 2, "cosine": 1}[name])
    if s.left is None:
        return 0.0
    if name == "depth":
        return s.left / traces.layers
    bound, column = {"margin": (10, traces.margin), "entropy": (12, traces.entropy)}[name]
    return clip(float(column[s.first + s.token - 1, s.left - 1]) / bound)


def observation(s):
    """The 16 scalars and the scenario's extra ones."""
    scenario, emulator = s.control.scenario, s.control.emulator
    left, top = s.due - s.clock, emulator.top
    stretch = scenario.interference.slowdown if s.busy else 1.0
    highest = allowed(s)
    stall = [
        0.0
        if point == s.point
        else switch_cost(emulator.constants[0], emulator.points[s.point], emulator.points[point], s.die)[0]
        for point in range(highest + 1)
    ]
    need = [quiet_need(s, point) * stretch + stall[point] for point in range(highest + 1)]
    lowest = next((point for point in range(highest + 1) if need[point] <= left), highest)
    return [
        float(s.token > 0),
        s.layer / s.control.traces.layers,
        sureness(s.agree),
        (sureness(s.agree) - sureness(s.agree_before)) / 2 if s.layer > 0 else 0.0,
        clip(math.log10(max(s.kl, 1e-6)) / 3 + 1),
        clip(left / (2 * (s.tpot if s.token else s.ttft))),
        clip(need[highest] / left) if left > 0 else 1.0,
        lowest / top,
        s.point / top,
        float(s.busy),
        clip((s.prompt + s.token) / emulator.workload.context),
        clip(s.token / 128),
        clip(s.ttft / scenario.scale.ttft_s),
        clip(s.tpot / scenario.scale.tpot_s),
        clip((emulator.chip.thermal.throttle_c - s.die) / 100),
        clip(s.expected / 128),
        *(extra(s, name) for name in scenario.signals),
    ]
