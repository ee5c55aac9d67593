"""What share of the limits may tokens earn, and how far should a policy follow the balance? ``EARNED`` and ``LEAN``.

    python experiments/error_budget.py --out error_budget.json

Streams of two hundred requests whose documents did not count when exits' costs were learned: the training requests in fifths,
each with costs from everything else, and the validation requests. Both parts of the shield are up. The test requests are not
touched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.budgeted import LEAN, budgeted
from clone_rl.agents.error_budget import EARNED, ErrorBudget
from clone_rl.agents.policy import Policy
from clone_rl.agents.rollout import charged_for, stream_order
from clone_rl.agents.runner import PolicyRunner
from clone_rl.bars import Bar
from clone_rl.cli.controllers import make_controller
from clone_rl.envs.control import Control, load_control
from clone_rl.envs.scenario import scenario_names
from clone_rl.envs.shield_tables import Shield
from clone_rl.envs.trace import SPLITS, TraceSet
from clone_rl.files import replacing

FOLDS = 5
SHARES, LEANS = (0.8, EARNED, 0.9, 1.0), (0.0, 4.0, LEAN, 16.0)


def streams(traces: TraceSet, requests: int | None) -> Iterator[tuple[str, NDArray[np.int64], TraceSet]]:
    """Split, documents, and the traces in which they do not count for what exits cost."""
    shuffled = np.random.default_rng(0).permutation(traces.documents("train"))
    parts = [("train", shuffled[fold::FOLDS]) for fold in range(FOLDS)] + [("validation", traces.documents("validation"))]
    for split, documents in parts:
        known = traces.split.copy()
        known[documents] = SPLITS.index("test")
        yield split, documents[:requests], replace(traces, split=known)


def run(
    control: Control, controller: Any, split: str, documents: NDArray[np.int64], known: TraceSet, seed: int,
    share: float, lean: float,
) -> list[float]:  # fmt: skip
    """Energy per token, uJ, and disagreement and dNLL as shares of their limits."""
    own, limits = charged_for(control, controller, split), control.scenario.limits
    budget = ErrorBudget.of(known, limits, controller.probes)
    for amount in (budget.earned, budget.balance):
        amount *= share / EARNED
    runner = PolicyRunner(own, budgeted(controller, budget, own.points, lean), Shield.of(own))
    figures = runner.run(documents, seed, stream_order(seed, len(documents)))
    sums = [float(figures[name].sum() / figures["tokens"].sum()) for name in ("energy_j", "disagree", "dnll")]
    return [sums[0] * 1e6, sums[1] / limits.disagree, sums[2] / limits.dnll]


def main() -> int:
    """Run the policies of the scenarios that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", nargs="+", default=scenario_names(), help="scenarios (default: all)")
    parser.add_argument("--seeds", type=int, default=2, help="draws of each stream (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=None, help="of each stream at most")
    parser.add_argument("--out", default="error_budget.json", help="file (default: %(default)r)")
    options = parser.parse_args()
    settings = [(EARNED, lean) for lean in LEANS] + [(share, LEAN) for share in SHARES if share != EARNED]
    rows: list[dict[str, Any]] = []
    for scenario in options.scenario:
        control, policy = load_control("layer", scenario), Policy.load(scenario)
        pace = make_controller("pace", control)
        found: dict[Any, list[list[float]]] = {}
        for split, documents, known in Bar(list(streams(control.traces, options.requests)), desc=scenario, unit="stream"):
            for seed in 5000 * np.arange(options.seeds):
                found.setdefault(None, []).append(run(control, pace, split, documents, known, int(seed), EARNED, 0.0))
                for setting in settings:
                    own = run(control, policy, split, documents, known, int(seed), *setting)
                    found.setdefault(setting, []).append(own)
        base = np.mean(found.pop(None), 0)[0]
        for (share, lean), figures in found.items():
            spent = np.array(figures)[:, 1:]
            rows.append({
                "scenario": scenario, "earned": share, "lean": lean, "over_pace": np.mean(figures, 0)[0] / base - 1.0,
                "spent": spent.mean(0).tolist(), "spent_most": spent.max(0).tolist(), "held": (spent <= 1.0).all(1).mean(),
            })  # fmt: skip
            most, over, held = spent.max(0).round(2), rows[-1]["over_pace"], rows[-1]["held"]
            print(
                f"{scenario}: earned {share:.2f}, lean {lean:g}: {over:+.2%} over pace, {held:.0%} of {len(figures)} streams "
                f"held, spent {spent.mean(0).round(2)}, at most {most}",
                flush=True,
            )
        with replacing(Path(options.out)) as aside:
            aside.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
