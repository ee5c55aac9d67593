"""From requests to figures: totals of each, and the few that people compare controllers by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.kernel import compiled, inlined

FIGURES = (
    "document",
    "slo",
    "variant",  # which of the randomised chips
    "tokens",
    "energy_j",
    "layer_j",
    "head_j",
    "kv_fill_j",
    "probe_j",
    "policy_j",
    "switch_j",
    "idle_j",
    "time_s",  # with idling
    "ttft_s",
    "tpot_s",  # mean after the first token; 0 for a single token
    "late",
    "disagree",
    "dnll",  # nats
    "kl",  # nats
    "depth",  # layers
    "switches",
    "reward_energy",
    "reward_late",
    "reward_disagree",
    "reward_kl",
)
"""Totals of one request; counts and nats are sums over its tokens."""

KPIS = (
    "energy_per_token_j",
    "relative_energy",  # energy per token over that of a full-depth token at the top point
    "avg_power_w",
    "miss_rate",
    "disagreement",
    "dnll",
    "mean_depth",
)
"""The same per token; 0 before the first token."""

_COUNTS = FIGURES[:4]


@inlined
def write_figures(s: Any, reference_j: float, out: Any) -> None:
    """Write ``FIGURES`` and then ``KPIS`` of a state into ``out``, (len(FIGURES) + len(KPIS),) float64."""
    out[0], out[1], out[2], out[3] = s.document, s.slo, s.variant, s.token
    out[4], out[5], out[6], out[7] = s.energy_j, s.layer_j, s.head_j, s.kv_fill_j
    out[8], out[9], out[10], out[11] = s.probe_j, s.policy_j, s.switch_j, s.idle_j
    out[12], out[13] = s.clock_s, s.first_s
    out[14] = (s.last_s - s.first_s) / (s.token - 1) if s.token > 1 else 0.0
    out[15], out[16], out[17], out[18] = s.late, s.disagree, s.dnll, s.kl_sum
    out[19], out[20] = s.depth, s.switches
    out[21], out[22], out[23], out[24] = s.reward_energy, s.reward_late, s.reward_disagree, s.reward_kl
    tokens = max(1, s.token)
    out[25] = s.energy_j / tokens
    out[26] = out[25] / reference_j
    out[27] = s.energy_j / s.clock_s
    out[28], out[29], out[30], out[31] = s.late / tokens, s.disagree / tokens, s.dnll / tokens, s.depth / tokens


@compiled
def _write_all(state: Any, reference_j: Any, out: Any) -> None:
    for i in range(len(state)):
        write_figures(state[i], reference_j[state[i].variant], out[i])


def named(values: NDArray[np.float64]) -> dict[str, dict[str, NDArray[Any]]]:
    """``{"figures": ..., "kpis": ...}``, each by name, from rows of ``write_figures``; counts become integers."""
    columns = values.T
    found: dict[str, NDArray[Any]] = dict(zip(FIGURES, columns, strict=False))
    for name in _COUNTS:
        found[name] = found[name].astype(np.int64)
    return {"figures": found, "kpis": dict(zip(KPIS, columns[len(FIGURES) :], strict=True))}


def write_all(state: NDArray[np.void], reference_j: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of ``write_figures`` of many states.

    Args:
        state: (N,) records of ``STATE``.
        reference_j: (V,) see ``prices.Prices``.
    """
    values = np.empty((len(state), len(FIGURES) + len(KPIS)))
    _write_all(state, reference_j, values)
    return values
