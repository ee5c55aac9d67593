"""The records that the kernel runs on: one request in flight, and the constants of a scenario."""

from __future__ import annotations

import numpy as np

STATE = np.dtype(
    [
        # what nearly every step touches
        ("energy_j", "f8"),
        ("layer_j", "f8"),
        ("probe_j", "f8"),
        ("policy_j", "f8"),
        ("switch_j", "f8"),
        ("die_c", "f8"),
        ("package_c", "f8"),
        ("growth", "f8"),  # of leakage at the die's temperature
        ("heat_j", "f8"),  # what has yet to reach the die, and the time in which it arose
        ("heated_s", "f8"),
        ("clock_s", "f8"),
        ("slot_end_s", "f8"),  # when the co-runner may change next
        ("due_s", "f8"),  # when the next token is due
        ("ttft_s", "f8"),  # targets, slack included
        ("tpot_s", "f8"),
        ("stretch", "f8"),  # of latencies by the co-runner, at this moment
        ("sure", "f4"),  # the probe at the last boundary read, as observed: see ``trace.scaled_signals``
        ("sure_before", "f4"),
        ("kl_shown", "f4"),
        ("ttft_shown", "f4"),  # as observed, as are the next two
        ("tpot_shown", "f4"),
        ("length_shown", "f4"),  # predicted response length
        # unsigned where it is an index: compiled code need not ask whether to count from the end
        ("token", "u4"),  # tokens emitted so far; 0 is prefill
        ("layer", "u4"),  # next layer to run
        ("point", "u4"),
        ("busy", "i4"),
        ("prompt", "i4"),
        ("row", "i4"),  # first token of the document in the world's columns
        ("variant", "u4"),  # which of the world's chips
        ("slot", "i4"),
        ("step", "i4"),
        ("done", "i4"),
        ("switches", "i4"),
        ("pending", "i4"),  # action that a decision delay holds back
        # what a token or an episode touches
        ("tokens", "i4"),  # length of the response
        ("left", "i4"),  # layers that the token before ran; 0 before the first
        ("document", "i4"),
        ("slo", "i4"),
        ("seed", "i8"),
        ("episode", "i8"),
        ("slowdown", "f8"),  # while the co-runner is busy
        ("to_busy", "f8"),  # probability per slot
        ("to_idle", "f8"),
        ("first_s", "f8"),  # when the first token came
        ("last_s", "f8"),  # when the last token came
        ("head_j", "f8"),
        ("kv_fill_j", "f8"),
        ("idle_j", "f8"),
        ("late", "f8"),
        ("disagree", "f8"),
        ("dnll", "f8"),
        ("kl_sum", "f8"),
        ("depth", "f8"),
        ("reward_late", "f8"),
        ("reward_disagree", "f8"),
        ("reward_kl", "f8"),
    ]
)
"""Everything about one request in flight, but for what ``rows.Machine`` keeps beside it; small, as every step reads it all."""

RULES = np.dtype(
    [
        ("layers", "i8"),
        ("groups", "i8"),
        ("slack_low", "f8"),
        ("slack_high", "f8"),
        ("target_low", "f8"),  # factor on both targets
        ("target_high", "f8"),
        ("slowdown_low", "f8"),
        ("slowdown_high", "f8"),
        ("slot_s", "f8"),
        ("idle_low_s", "f8"),  # mean duration of the co-runner's pauses
        ("idle_high_s", "f8"),
        ("busy_low_s", "f8"),
        ("busy_high_s", "f8"),
        ("per_token", "i8"),
        ("granularity", "i8"),
        ("delay", "i8"),
        ("probe", "i8"),
        ("policy", "i8"),
        ("kv", "i8"),  # index into ``hw_emulator.ledger.KV``
        ("late", "f8"),
        ("disagree", "f8"),
        ("kl", "f8"),
        ("max_ttft_s", "f8"),
        ("max_tpot_s", "f8"),
        ("max_length", "f8"),
        ("layer_share", "f8"),  # 1 / layers; multiplying takes a step less time than dividing
        ("point_share", "f8"),  # 1 / top point
        ("context_share", "f8"),
        ("token_share", "f8"),  # 1 / max_length
    ]
)
"""Constants of a scenario."""

ENERGY_TERMS = ("layer_j", "head_j", "kv_fill_j", "probe_j", "policy_j", "switch_j", "idle_j")
"""Fields of ``STATE`` that add up to ``energy_j``, the energy of a request."""

AMOUNTS = ("late", "disagree", "dnll", "kl", "energy", "switches", "tokens")
"""What one step amounted to: late tokens, disagreements with full depth, nats of dNLL, nats of KL(full || exit), energy in
units of one full-depth token at the top point, switches, and tokens emitted. Rewards and costs are made of these."""

LATE, DISAGREE, DNLL, KL, ENERGY, SWITCHES, TOKENS = range(len(AMOUNTS))

N_COSTS = 3
"""The first of ``AMOUNTS`` are the constraint costs."""

REQUEST_LEVEL, PHASE_LEVEL, TOKEN_LEVEL, GROUP_LEVEL, LAYER_LEVEL = range(5)
PROPAGATE, EXACT, SKIP = 0, 1, 2
