"""What mixing operating points within a token can gain, and how far schedules do it.

Of identical layers and an energy that is convex in time, one speed for all is best (Jensen). A table of points is convex only
at its points: between two of them the best is a mixture of both, which a token of one point has to round up. The difference is
all that changing points within a token can gain on a chip that nothing disturbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.hw_emulator.cost import idle_power
from clone_rl.hw_emulator.emulator import HEAD, Emulator

_BUDGETS = 2001


def token_curve(emulator: Emulator, context: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P,) seconds and joules of a decoded token at full depth, joules beyond what idling for as long would take.

    What counts where every request lasts until its last due time: a second saved is a second idled.
    """
    table, points = emulator.table(context=context), range(len(emulator.points))
    heads = [emulator.cost(HEAD, point) for point in points]
    seconds = table["latency_s"].sum(0) + np.array([head.latency_s for head in heads])
    joules = table["energy_j"].sum(0) + np.array([head.energy_j for head in heads])
    chip = emulator.constants[0]
    return seconds, joules - seconds * float(idle_power(chip, chip["ambient_c"]))


def mixing_gain(seconds: NDArray[np.float64], joules: NDArray[np.float64], layers: int = 0) -> tuple[float, float]:
    """Largest and mean share of a token's energy that mixing points saves over the best single one.

    Args:
        seconds, joules: (P,) of a token at every point, ascending in speed.
        layers: Of which each may have a point of its own; 0 for any mixture.

    Returns:
        Over time budgets spread evenly from the top point's to that of the point of least energy. (0, 0) where the top one is.
    """
    best = int(joules.argmin())
    budgets = np.linspace(seconds[-1], seconds[best], _BUDGETS)
    single = np.where(seconds <= budgets[:, None] * (1 + 1e-12), joules, np.inf).min(1)
    mixed = single.copy()
    for slow in range(len(seconds)):
        for fast in range(len(seconds)):
            if seconds[fast] < seconds[slow]:
                share = np.clip((budgets - seconds[fast]) / (seconds[slow] - seconds[fast]), 0.0, 1.0)
                share = np.floor(share * layers + 1e-9) / layers if layers else share
                found = share * joules[slow] + (1.0 - share) * joules[fast]
                mixed = np.minimum(mixed, np.where(seconds[fast] <= budgets * (1 + 1e-12), found, np.inf))
    saved = 1.0 - mixed / single
    return float(saved.max()), float(saved.mean())


def point_use(schedules: Sequence[NDArray[np.int64]], layers: int, points: int) -> dict[str, Any]:
    """How schedules use the points in decoding.

    Args:
        schedules: Actions in force at every layer boundary: points, or one past the top to leave.
        layers: Of the model.
        points: Of the chip.

    Returns:
        ``point_share``: share of decoded layers at every point; ``mixed_tokens``: share of decoded tokens that run at more
        than one point; ``adjacent_changes``: share of the changes within a token that are to a neighbouring point (None where
        there are none).
    """
    share, mixed, decoded, changes, adjacent = np.zeros(points), 0, 0, 0, 0
    for schedule in schedules:
        at = layers  # behind prefill
        while at < len(schedule):
            token: list[int] = []
            while len(token) < layers and schedule[at] < points:
                token.append(int(schedule[at]))
                at += 1
            at += len(token) < layers  # the action that leaves
            steps = np.abs(np.diff(token))
            share += np.bincount(token, minlength=points)
            decoded, mixed = decoded + 1, mixed + bool(steps.any())
            changes, adjacent = changes + int((steps > 0).sum()), adjacent + int((steps == 1).sum())
    return {
        "point_share": (share / max(1.0, share.sum())).tolist(),
        "mixed_tokens": mixed / max(1, decoded),
        "adjacent_changes": adjacent / changes if changes else None,
    }
