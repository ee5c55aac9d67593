"""What a controller sees: scalars with fixed physical bounds, so that no statistics need to be carried along."""

from __future__ import annotations

from typing import Any

from clone_rl.envs.compiling import inlined
from clone_rl.envs.kernel import World, look_ahead, top_point
from clone_rl.envs.signals import observe_signals

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
    "ttft",  # target / the scale's: the longest of the scenario that a controller was made for
    "tpot",
    "headroom",  # (throttle temperature - die) / 100 K
    "length",  # predicted response length / 128
)
"""Names of the observation's standard scalars, in order; all within [-1, 1]. A scenario's extra signals follow them."""

N_OBS = len(OBSERVATION)


@inlined
def observe(s: Any, missing: Any, world: World, out: Any) -> None:
    """Write the observation of a state into ``out``: ``OBSERVATION``, then the scenario's extra signals."""
    rules, highest = world.rules[0], top_point(s, world)
    left = s.due_s - s.clock_s
    target = s.ttft_s if s.token == 0 else s.tpot_s
    need, lowest = look_ahead(s, missing, world, highest)
    out[0] = 1.0 if s.token > 0 else 0.0
    out[1] = s.layer * rules.layer_share
    out[2] = s.sure
    out[3] = 0.5 * (s.sure - s.sure_before) if s.layer > 0 else 0.0
    out[4] = s.kl_shown
    out[5] = min(1.0, max(-1.0, left / (2.0 * target)))
    out[6] = min(1.0, need / left) if left > 0.0 else 1.0
    out[7] = lowest * rules.point_share
    out[8] = s.point * rules.point_share
    out[9] = float(s.busy)
    out[10] = min(1.0, (s.prompt + s.token) * rules.context_share)
    out[11] = min(1.0, s.token * rules.token_share)
    out[12] = s.ttft_shown
    out[13] = s.tpot_shown
    out[14] = min(1.0, max(-1.0, (world.prices.chip[s.variant].throttle_c - s.die_c) * 0.01))
    out[15] = s.length_shown
    observe_signals(s, world, out)
