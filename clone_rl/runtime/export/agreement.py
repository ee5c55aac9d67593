"""How often an export decides as its source does, and how close the logits are where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.policy import Policy
from clone_rl.runtime.export.c import rule_logits


def margins(policy: Policy, observations: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, heads) by how much the largest logit of each action component exceeds the next, in double precision."""
    parts = np.split(rule_logits(policy, observations), np.cumsum(policy.heads)[:-1], axis=1)
    found = np.full((len(observations), len(parts)), np.inf)
    for head, part in enumerate(parts):
        if part.shape[1] > 1:
            two = np.partition(part, -2, axis=1)[:, -2:]
            found[:, head] = two[:, 1] - two[:, 0]
    return found


def agreement(policy: Policy, observations: NDArray[np.float32], actions: NDArray[np.int64]) -> dict[str, Any]:
    """An export beside its source.

    Args:
        policy: The source; its compiled rule decides.
        observations: (N, width) as ``observations.collect`` gives them.
        actions: (N, heads) what the export does there.

    Returns:
        ``agreement``, share of observations with the same action; ``agreement_own``, of those without random actions before;
        ``differing``, how many differ; ``widest_margin``, the largest margin of the source's logits among these, None without.
    """
    differs = actions != policy.act(observations)
    any_differs = differs.any(1)
    widest = float(margins(policy, observations)[differs].max()) if any_differs.any() else None
    return {
        "observations": len(observations),
        "agreement": float(1.0 - any_differs.mean()),
        "agreement_own": float(1.0 - any_differs[::2].mean()),
        "differing": int(any_differs.sum()),
        "widest_margin": widest,
    }
