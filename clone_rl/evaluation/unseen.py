"""Conditions that neither tuning nor training met: who still holds the limits there, and who spends least?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from clone_rl.agents.controller import Controller
from clone_rl.agents.own import accepted
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.control import Control
from clone_rl.envs.randomise import constants
from clone_rl.envs.scenario import Limits, Scenario
from clone_rl.errors import BadValueError
from clone_rl.evaluation.protocol import check_asked, chosen_documents, evaluation_seeds
from clone_rl.evaluation.summary import paired, summarise

KNOWN = "as known"
"""The scenario itself, beside which the others are read."""

MOVED = (0.8, 1.2)
"""Range of the factors on constants of the chip, each with its own draw."""

_VARIANTS, _CHIPS_SEED = 16, 20_000  # other chips than ``many-chips`` trains on
_CONSTANTS = {
    "compute.mac_energy_j", "sram.bank_energy_j_per_byte", "sram.leakage_w_per_byte", "power.logic_leakage_w_per_mm2",
    "dram.read_energy_j_per_byte", "dram.write_energy_j_per_byte", "dram.bandwidth_bytes_per_s",
    "board.cycle_energy_j", "board.static_w", "board.stream_bytes_per_cycle",
    "operating_points.frequency_hz", "thermal.package_resistance_k_per_w",
}  # fmt: skip


def unseen_conditions(scenario: Scenario) -> dict[str, Scenario]:
    """The scenario as it is, and changed in one respect each: co-runner, service levels, ambient temperature, chip.

    Args:
        scenario: What controllers were tuned and trained for.

    Returns:
        By name. A temperature at which the chip would throttle from the start is left out.
    """
    runner, chip = scenario.interference, scenario.load_chip()
    by_tpot = sorted(scenario.slo, key=lambda level: level.tpot_s)
    moving = dict.fromkeys(sorted(_CONSTANTS & set(constants(chip))), MOVED)

    def co_runner(**fields: float) -> Scenario:
        return replace(scenario, interference=replace(runner, **fields))

    found = {
        KNOWN: scenario,
        "co-runner 20 % heavier": co_runner(slowdown=1.2 * runner.slowdown),
        "co-runner half the time": co_runner(mean_busy_s=runner.mean_idle_s),
        "co-runner in bursts 5 times as long": co_runner(
            mean_busy_s=5 * runner.mean_busy_s, mean_idle_s=5 * runner.mean_idle_s
        ),
        f"only {by_tpot[0].name}, the tightest": replace(scenario, slo=tuple(by_tpot[:1])),
        f"only {by_tpot[-1].name}, the loosest": replace(scenario, slo=tuple(by_tpot[-1:])),
        "targets 10 % tighter": replace(
            scenario, slack_low=0.9 * scenario.slack_low, slack_high=0.9 * scenario.slack_high
        ),
        f"{_VARIANTS} chips, constants moved by up to 20 %": replace(
            scenario, randomise=replace(scenario.randomise, variants=_VARIANTS, seed=_CHIPS_SEED, chip=moving)
        ),
    }  # fmt: skip
    fixed = replace(scenario.randomise, ambient_c=None)
    for celsius in (chip.thermal.ambient_c - 20.0, chip.thermal.ambient_c + 20.0):
        if celsius < chip.thermal.throttle_c:
            found[f"ambient {celsius:g} C"] = replace(scenario, ambient_c=celsius, randomise=fixed)
    return found


def unseen(
    control: Control,
    controllers: Sequence[Controller],
    split: str = "test",
    seed: int = 0,
    seeds: int = 1,
    limits: Limits | None = None,
    requests: int | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> list[dict[str, Any]]:
    """Run controllers under ``unseen_conditions`` as they are, with and without the shield.

    Args:
        control: The scenario that they were made for.
        controllers: Who is judged; the first is what the others are compared with.
        split: ``train``, ``validation`` or ``test``.
        seed: The first evaluation seed, see ``clone_rl.evaluation.protocol``.
        seeds: Evaluation seeds.
        limits: What ``within_constraints`` means; the scenario's if None.
        requests: Documents at most, spread evenly over the split; None takes all.
        progress: Wraps the conditions (a progress bar).

    Returns:
        One row for each condition, with and without ``shield``, and controller: the keys of ``summary.summarise``,
        ``condition``, ``shield``, ``over_first`` (energy over the first controller's, minus 1) and ``over_first_ci``.

    Raises:
        BadValueError: None or no controllers, two of one name, or one that decides per token; or a number is too small.
        UnknownNameError: Unknown split.
    """
    controllers = [accepted(one) for one in controllers]
    names = [controller.name for controller in controllers]
    if not names:
        raise BadValueError("controllers (none)", "give one at least")
    check_asked(controllers, 1, seeds=seeds)
    check_asked(controllers, 0, seed=seed)
    limits, documents = limits or control.scenario.limits, chosen_documents(control, split, 1, requests)
    firsts = evaluation_seeds(seed, seeds, len(documents))
    strata, rows = np.tile(control.traces.kind[documents], seeds), []
    for condition, scenario in progress(list(unseen_conditions(control.scenario).items())):
        changed = control.serving("layer", scenario, split)
        for shield in (False, True):
            run = partial(run_requests, shield=shield, limits=limits)
            figures = [np.concatenate([run(changed, c, split, documents, first) for first in firsts]) for c in controllers]
            for name, own in zip(names, figures, strict=True):
                row = summarise(name, own, strata, limits, changed.emulator.chip.limit_w, seed)
                over = paired(own, figures[0], strata, seed, "over_first")
                rows.append({**row, "condition": condition, "shield": shield, **over})
    return rows
