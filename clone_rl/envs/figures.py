"""From requests to figures: totals of each, and the few that people compare controllers by."""

from __future__ import annotations

from typing import Any

import numpy as np

from clone_rl.envs.compiling import inlined

FIGURES = np.dtype(
    [
        ("document", "i8"),
        ("slo", "i8"),
        ("variant", "i8"),  # which of the randomised chips
        ("tokens", "i8"),
        ("decisions", "i8"),
        ("energy_j", "f8"),
        ("layer_j", "f8"),
        ("head_j", "f8"),
        ("kv_fill_j", "f8"),
        ("probe_j", "f8"),
        ("policy_j", "f8"),
        ("switch_j", "f8"),
        ("idle_j", "f8"),
        ("time_s", "f8"),  # with idling
        ("ttft_s", "f8"),
        ("tpot_s", "f8"),  # mean after the first token; 0 for a single token
        ("late", "f8"),
        ("disagree", "f8"),
        ("dnll", "f8"),  # nats
        ("kl", "f8"),  # nats
        ("depth", "f8"),  # layers
        ("switches", "f8"),
        ("reward_energy", "f8"),
        ("reward_late", "f8"),
        ("reward_disagree", "f8"),
        ("reward_kl", "f8"),
    ]
)
"""Totals of one request; counts and nats are sums over its tokens."""

KPIS = np.dtype(
    [
        ("energy_per_token_j", "f8"),
        ("relative_energy", "f8"),  # energy per token over that of a full-depth token at the top point
        ("avg_power_w", "f8"),
        ("miss_rate", "f8"),
        ("disagreement", "f8"),
        ("dnll", "f8"),
        ("mean_depth", "f8"),
    ]
)
"""The same per token; of the first token before it came."""


@inlined
def write_figures(s: Any, reference_j: float, figures: Any) -> None:
    """Write the totals of a state into a record of ``FIGURES``; ``reference_j`` is that of ``prices.Prices``."""
    figures.document, figures.slo, figures.variant, figures.tokens = s.document, s.slo, s.variant, s.token
    figures.decisions = s.step
    figures.energy_j, figures.layer_j, figures.head_j, figures.kv_fill_j = s.energy_j, s.layer_j, s.head_j, s.kv_fill_j
    figures.probe_j, figures.policy_j, figures.switch_j, figures.idle_j = s.probe_j, s.policy_j, s.switch_j, s.idle_j
    figures.time_s, figures.ttft_s = s.clock_s, s.first_s
    figures.tpot_s = (s.last_s - s.first_s) / (s.token - 1) if s.token > 1 else 0.0
    figures.late, figures.disagree, figures.dnll, figures.kl = s.late, s.disagree, s.dnll, s.kl_sum
    figures.depth, figures.switches = s.depth, s.switches
    figures.reward_energy, figures.reward_late = -s.energy_j / reference_j, s.reward_late
    figures.reward_disagree, figures.reward_kl = s.reward_disagree, s.reward_kl


@inlined
def write_kpis(s: Any, reference_j: float, kpis: Any) -> None:
    """Write what people compare into a record of ``KPIS``."""
    tokens = max(1, s.token)
    kpis.energy_per_token_j = s.energy_j / tokens
    kpis.relative_energy = kpis.energy_per_token_j / reference_j
    kpis.avg_power_w = s.energy_j / s.clock_s
    kpis.miss_rate, kpis.disagreement, kpis.dnll = s.late / tokens, s.disagree / tokens, s.dnll / tokens
    kpis.mean_depth = s.depth / tokens


def as_dict(record: Any) -> dict[str, Any]:
    """A record of figures as plain numbers by name."""
    return dict(zip(record.dtype.names, record.item(), strict=True))
