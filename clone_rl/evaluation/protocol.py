"""The paired protocol: every controller meets the same requests, service levels and interference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.control import Control
from clone_rl.envs.figures import as_dict
from clone_rl.envs.scenario import Limits
from clone_rl.errors import BadValueError
from clone_rl.evaluation.statistics import ratio_interval, resamples, wilson

_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Evaluation:
    """Results of several controllers on the same requests.

    Attributes:
        scenario, split, seed: What was run.
        summary: One row per controller: the keys of ``summarise``.
        requests: One row per controller and request, for files.
    """

    scenario: str
    split: str
    seed: int
    summary: list[dict[str, Any]]
    requests: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"scenario": self.scenario, "split": self.split, "seed": self.seed, "rows": self.summary}


def summarise(
    name: str, figures: NDArray[np.void], strata: NDArray[np.int64], limits: Limits, power_limit_w: float, seed: int
) -> dict[str, Any]:
    """One controller's row.

    Args:
        name: Of the controller.
        figures: (R,) records of ``clone_rl.envs.figures.FIGURES``, one per request.
        strata: (R,) request type, which the bootstrap keeps in proportion.
        limits: ``within_limits`` tells whether all three are held.
        power_limit_w: Of the chip; average power above it is flagged as well.
        seed: Of the bootstrap.

    Returns:
        ``energy_per_token_j`` and ``avg_power_w`` (idling until the last deadline included), ``miss_rate``,
        ``disagreement``, ``dnll``, ``mean_depth``, each with ``<key>_ci``; TTFT and TPOT percentiles, s; ``switches``
        and ``overhead`` (controller and probe, share of energy) per token; ``within_limits``.
    """
    samples = resamples(strata, _BOOTSTRAP, seed)
    tokens = figures["tokens"].astype(float)
    row: dict[str, Any] = {"name": name}
    ratios = {
        "energy_per_token_j": (figures["energy_j"], tokens),
        "avg_power_w": (figures["energy_j"], figures["time_s"]),
        "miss_rate": (figures["late"], tokens),
        "disagreement": (figures["disagree"], tokens),
        "dnll": (figures["dnll"], tokens),
        "mean_depth": (figures["depth"], tokens),
    }
    for key, (top, bottom) in ratios.items():
        row[key] = float(top.sum() / bottom.sum())
        row[f"{key}_ci"] = list(ratio_interval(top, bottom, samples))
    row["miss_rate_ci"] = list(wilson(figures["late"].sum(), tokens.sum()))
    for key in ("ttft_s", "tpot_s"):
        for quantile in (50, 99):
            row[f"{key[:-2]}_p{quantile}_s"] = float(np.percentile(figures[key], quantile))
    row["switches_per_token"] = float(figures["switches"].sum() / tokens.sum())
    row["overhead"] = float((figures["policy_j"].sum() + figures["probe_j"].sum()) / figures["energy_j"].sum())
    row["within_limits"] = bool(
        row["miss_rate"] <= limits.miss
        and row["disagreement"] <= limits.disagree
        and row["dnll"] <= limits.dnll
        and row["avg_power_w"] <= power_limit_w
    )
    return row


def evaluate(
    control: Control,
    controllers: Sequence[Controller],
    split: str = "test",
    seed: int = 0,
    repeats: int = 1,
    limits: Limits | None = None,
    progress: Callable[[Sequence[Controller]], Any] = iter,
) -> Evaluation:
    """Run every controller on every document of a split.

    Args:
        control: The scenario.
        controllers: Who is judged; names must differ.
        split: ``train``, ``validation`` or ``test``.
        seed: Key of service levels, slack and interference.
        repeats: Draws of them for each document.
        limits: What ``within_limits`` means; the scenario's if None.
        progress: Wraps the list of controllers (a progress bar).

    Raises:
        BadValueError: Two controllers have one name, or ``repeats`` is below 1.
        UnknownNameError: Unknown split.
    """
    names = [c.name for c in controllers]
    if len(set(names)) < len(names):
        raise BadValueError(f"controllers {', '.join(names)}", "give each of them once")
    if repeats < 1:
        raise BadValueError(f"repeats is {repeats}", "at least 1")
    if seed < 0:
        raise BadValueError(f"seed is {seed}", "0 or more")
    documents = np.repeat(control.traces.documents(split), repeats)
    strata = control.traces.kind[documents]
    kinds = control.traces.kinds
    summary, requests = [], []
    for controller in progress(controllers):
        figures = run_requests(control, controller, split, documents, seed)
        row = summarise(
            controller.name, figures, strata, limits or control.scenario.limits, control.emulator.chip.limit_w, seed
        )
        summary.append({**row, "settings": controller.describe()})
        for i in range(len(documents)):
            requests.append(
                {
                    "controller": controller.name,
                    "request": i,
                    "seed": seed + i,
                    "kind": kinds[strata[i]],
                    **as_dict(figures[i]),
                }
            )
    return Evaluation(control.scenario.name, split, seed, summary, requests)
