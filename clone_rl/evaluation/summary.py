"""One controller's figures over many requests, with intervals over documents, and who wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError
from clone_rl.evaluation.regret import Regret
from clone_rl.evaluation.statistics import Clusters, wilson

RATIOS = {
    "energy_per_token_j": ("energy_j", "tokens"),
    "avg_power_w": ("energy_j", "time_s"),
    "miss_rate": ("late", "tokens"),
    "disagreement": ("disagree", "tokens"),
    "dnll": ("dnll", "tokens"),
    "mean_depth": ("depth", "tokens"),
}
"""Figures that are ratios of sums over requests."""


def summarise(
    name: str,
    figures: NDArray[np.void],
    strata: NDArray[np.int64],
    limits: Limits,
    power_limit_w: float,
    seed: int,
    regret: Regret | None = None,
) -> dict[str, Any]:
    """One controller's row.

    Args:
        name: Of the controller.
        figures: (R,) records of ``clone_rl.envs.figures.FIGURES``, one per request.
        strata: (R,) request type, which the bootstrap keeps in proportion.
        limits: ``within_constraints`` tells whether all three are held.
        power_limit_w: Of the chip; average power above it breaks a constraint as well.
        seed: Of the bootstrap.
        regret: To the clairvoyant oracle, where it was measured.

    Returns:
        ``requests``; ``energy_per_token_j`` and ``avg_power_w`` (idling until the last deadline included), ``miss_rate``,
        ``disagreement``, ``dnll``, ``mean_depth``, each with ``<key>_ci``; ``energy_per_request_j``; percentiles of TTFT and
        TPOT, s (a request of one token has no TPOT; None where all are of one); ``switches_per_token`` and ``overhead``
        (controller and probe, share of energy); ``within_constraints``; the keys of
        ``Regret.as_json``, None where it was not measured.

    Raises:
        BadValueError: A figure is no finite number: nothing is concluded from it.
    """
    _check_finite(name, figures)
    clusters = Clusters(figures["document"], strata, seed)
    tokens = figures["tokens"].astype(float)
    row: dict[str, Any] = {"name": name, "requests": len(figures)}
    for key, (top, bottom) in RATIOS.items():
        row[key] = float(figures[top].sum() / figures[bottom].sum())
        row[f"{key}_ci"] = clusters.interval(figures[top], figures[bottom])
    row["miss_rate_ci"] = list(wilson(figures["late"].sum(), tokens.sum()))
    row["energy_per_request_j"] = float(figures["energy_j"].mean())
    for key, shown in (("ttft_s", figures), ("tpot_s", figures[figures["tokens"] > 1])):
        for quantile in (50, 99):
            row[f"{key[:-2]}_p{quantile}_s"] = float(np.percentile(shown[key], quantile)) if len(shown) else None
    row["switches_per_token"] = float(figures["switches"].sum() / tokens.sum())
    row["overhead"] = float((figures["policy_j"].sum() + figures["probe_j"].sum()) / figures["energy_j"].sum())
    row["within_constraints"] = bool(
        row["miss_rate"] <= limits.miss
        and row["disagreement"] <= limits.disagree
        and row["dnll"] <= limits.dnll
        and row["avg_power_w"] <= power_limit_w
    )
    return {**row, **(regret or Regret.none()).as_json(figures, strata, seed)}


def _check_finite(name: str, figures: NDArray[np.void]) -> None:
    for key in figures.dtype.names or ():
        if not (finite := np.isfinite(figures[key])).all():
            at = int(np.argmin(finite))
            raise BadValueError(
                f"{key} of request {at} under {name} is {figures[key][at]}",
                "check the chip's constants, the scenario's times and the traces: all are in SI units",
            )


def winner(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name of the row with the least energy of those within the constraints; empty where there is none.

    >>> cheap = {"name": "late", "energy_per_token_j": 1.0, "within_constraints": False}
    >>> winner([cheap, {"name": "sound", "energy_per_token_j": 2.0, "within_constraints": True}]), winner([cheap])
    ('sound', '')
    """
    held = [row for row in rows if row["within_constraints"]]
    return str(min(held, key=lambda row: row["energy_per_token_j"])["name"]) if held else ""


def paired(
    figures: NDArray[np.void], reference: NDArray[np.void], strata: NDArray[np.int64], seed: int, key: str = "over_best"
) -> dict[str, Any]:
    """Energy per token over that of another controller on the same requests, minus 1, with its paired interval.

    Args:
        figures, reference: (R,) records of the same requests.
        strata: (R,) request type.
        seed: Of the bootstrap.
        key: What the figure is called; ``<key>_ci`` is its interval.
    """
    clusters = Clusters(figures["document"], strata, seed)
    # On a replay both have the same tokens; with a model in the loop each has its own.
    scale = float(reference["tokens"].sum() / figures["tokens"].sum())
    ratio = float(figures["energy_j"].sum() / reference["energy_j"].sum() * scale)
    low, high = clusters.interval(figures["energy_j"] * scale, reference["energy_j"])
    return {key: ratio - 1.0, f"{key}_ci": [low - 1.0, high - 1.0]}
