"""The study of granularity: how often may the operating point change, how long may a change take, before it stops to pay.

A cell is a chip, a granularity and a switching time. In each the same candidates are tuned by the same search on the training
split. A short search finds now better, now worse settings, which would show as differences between cells that are none: so
every cell then chooses, on the training split, among what was found in all cells of its chip. The best is held against the
clairvoyant oracle on the same test requests, and where the two differ by more than ``TRAINED_ABOVE``, a policy may be trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clone_rl.agents.controller import Controller
from clone_rl.agents.heuristics import Baseline, Pace, find_baseline
from clone_rl.agents.heuristics.exit_bars import exit_bars
from clone_rl.agents.heuristics.hold import SPANS, HoldBaseline
from clone_rl.agents.judge import Judge, figures_of
from clone_rl.agents.oracle_set import oracle_set, recorded_depths
from clone_rl.agents.rollout import run_requests
from clone_rl.agents.tuned import identity
from clone_rl.agents.tuning import tune
from clone_rl.envs.control import Control, load_control
from clone_rl.envs.randomness import check_seed
from clone_rl.envs.scenario import GRANULARITIES, Limits, Scenario
from clone_rl.envs.scenario_file import write_scenario
from clone_rl.envs.trace import load_traces
from clone_rl.errors import BadValueError, CloneRLError, UnknownNameError
from clone_rl.evaluation.comparable import comparable, mean_context
from clone_rl.evaluation.journal import Journal, each_once
from clone_rl.evaluation.mixing import mixing_gain, point_use, token_curve
from clone_rl.evaluation.statistics import ratio_interval, resamples
from clone_rl.files import WriteError, writing
from clone_rl.hw_emulator.switching import mechanism, time_name
from clone_rl.version import __version__

CHIPS = ("asic28-sram", "asic28-lpddr4", "orin-nano")
"""Weights in SRAM, weights streamed from DRAM, a board with measured laws: a layer of the embedded model takes 17 to 170 us,
13 us whatever the point, and 0.9 to 1.8 ms."""

STUDIED = ("request", "phase", "token", "layer")
SWITCH_S = (0.0, 100e-9, 1e-6, 100e-6, 5e-3)
"""An ideal regulator; LDO and all-digital clock; slow on-chip regulators; a PMIC; clocks set by an operating system."""

TRAINED_ABOVE = 0.05
"""Regret of the best heuristic above which a policy is trained."""

_ROUNDS, _GAP, _OPERATIONS = 6, 0.005, 2e7
"""Of the oracle. On a board the bound lets every layer wait for what a probe may take, and narrower buckets help little."""

_FORMAT = 2  # of the rows
_SAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class GranularityStudy:
    """What to study. The field docs are the help of ``clone-rl study granularity``.

    Attributes:
        scenario: Scenario on its own chip, a shipped name or a TOML file; its times are scaled to the speed of the others.
        traces: Trace set, a shipped name or a folder; empty takes the scenario's.
        chips: Chips, shipped names or TOML files.
        granularities: Where the operating point may change: request, phase, token, group or layer.
        switching: Times of a change, such as 100ns or 5ms, or mechanisms.
        trials: Settings to try for each of the heuristics in every cell, on the training split.
        requests: Test requests that the oracle solves, spread evenly over the split.
        ppo_steps: Decisions to train PPO for where heuristic and oracle differ by more than 5 %; 0 trains none.
        seed: Of the search, the training and the requests.

    Raises:
        BadValueError: A list is empty or names one thing twice, or a number is out of range.
        UnknownNameError: No such granularity or mechanism.
    """

    scenario: str = "default"
    traces: str = ""
    chips: tuple[str, ...] = CHIPS
    granularities: tuple[str, ...] = STUDIED
    switching: tuple[str, ...] = tuple(map(time_name, SWITCH_S))
    trials: int = 50
    requests: int = 12
    ppo_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, value := tuple(value))
            if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
                raise BadValueError(f"{field.name} is {list(value)}", "at least one, and each of them once")
        for name in self.granularities:
            if name not in GRANULARITIES:
                raise UnknownNameError("granularity", name, GRANULARITIES)
        for name in self.switching:
            mechanism(name)
        for name, least in (("trials", 1), ("requests", 1), ("ppo_steps", 0)):
            if getattr(self, name) < least:
                raise BadValueError(f"{name} is {getattr(self, name)}", f"{least} or more")
        check_seed(self.seed)

    def controls(self) -> list[Control]:
        """For each chip, the scenario in proportion to its speed, made ready.

        Raises:
            CloneRLError: A name or file is wrong, or the model does not fit a chip.
        """
        base = Scenario.load(self.scenario, **({"traces": self.traces} if self.traces else {}))
        traces = load_traces(base.traces)
        return [Control.of("layer", comparable(base, chip, traces), traces, "train") for chip in self.chips]


class Cell(NamedTuple):
    """A cell of the study, with all that a process needs to work on it.

    Attributes:
        scenario: With the chip, the granularity and the switching of this cell.
        switch_s: Stall of a change from the lowest point to the top one.
        world: Hashes of chip and traces.
        study: What it belongs to.
    """

    scenario: Scenario
    switch_s: float
    world: tuple[str, ...]
    study: GranularityStudy

    @property
    def name(self) -> str:
        """For files and people."""
        scenario = self.scenario
        return f"{Path(scenario.chip_name).stem}-{scenario.granularity}-{scenario.switching.replace(' ', '')}"

    def key(self, stage: str) -> str:
        """Hash of everything that the results of a stage depend on: ``search``, ``oracles`` or ``policy``."""
        study = self.study
        told: list[Any] = [stage, _FORMAT, __version__, study.seed]
        if stage == "search":
            told += [study.trials, [one.name for one in candidates()]]
        else:
            told += [study.requests, _ROUNDS, _GAP, _OPERATIONS] if stage == "oracles" else [study.requests, study.ppo_steps]
        content = [told, self.world, self.scenario.as_dict()]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def control(self) -> Control:
        """The scenario made ready."""
        return load_control("layer", self.scenario, "train")

    def documents(self, control: Control) -> NDArray[np.int64]:
        """(R,) test requests, spread evenly."""
        documents = control.traces.documents("test")
        count = min(self.study.requests, len(documents))
        return documents[np.linspace(0, len(documents) - 1, count).astype(np.int64)]

    def row(self, controller: str, role: str) -> dict[str, Any]:
        """What every row begins with."""
        return {
            "chip": self.scenario.chip_name,
            "granularity": self.scenario.granularity,
            "switch_s": self.switch_s,
            "controller": controller,
            "role": role,
        }


def candidates() -> list[Baseline]:
    """The heuristics that are tuned in every cell.

    A rule that decides more often than the cell lets it is searched as well, and one that decides less often: a finer
    granularity is never behind a coarser one for want of a rule.
    """
    return [*map(HoldBaseline, SPANS), *map(find_baseline, ("pace", "edgebert", "static-phase"))]


def cells(study: GranularityStudy, controls: Sequence[Control]) -> list[Cell]:
    """All cells of a study, from what ``GranularityStudy.controls`` gave."""
    found = []
    for control in controls:
        scenario, known = control.scenario, identity(control, control.scenario.limits)
        world = (known["chip"], known["traces"])
        found += [
            Cell(replace(scenario, granularity=granularity, switching=name), _switch_s(scenario, name), world, study)
            for granularity in study.granularities
            for name in study.switching
        ]
    return found


def _switch_s(scenario: Scenario, name: str) -> float:
    how, points = mechanism(name), scenario.load_chip().operating_points
    return how.relock_s + (points[-1].voltage_v - points[0].voltage_v) * how.slew_s_per_v


def _row_figures(figures: NDArray[np.void], limits: Limits, limit_w: float) -> dict[str, Any]:
    """Figures per token of (R,) requests."""
    found: dict[str, Any] = figures_of(figures)
    found["switches_per_token"] = float(figures["switches"].sum() / figures["tokens"].sum())
    found["overhead"] = float((figures["policy_j"].sum() + figures["probe_j"].sum()) / figures["energy_j"].sum())
    found["avg_power_w"] = float(figures["energy_j"].sum() / figures["time_s"].sum())
    held = found["miss_rate"] <= limits.miss and found["disagreement"] <= limits.disagree and found["dnll"] <= limits.dnll
    return {**found, "within_constraints": bool(held and found["avg_power_w"] <= limit_w)}


def _judged(cell: Cell, control: Control, controller: Controller, role: str, oracle_j: float | None) -> dict[str, Any]:
    """A causal controller: on the oracle's requests, and on the whole test split, which says whether it holds the limits."""
    documents, seed, limits = cell.documents(control), cell.study.seed, cell.scenario.limits
    paired = run_requests(control, controller, "test", documents, seed)
    whole = run_requests(control, controller, "test", control.traces.documents("test"), seed)
    limit_w, energy_j = control.emulator.chip.limit_w, float(paired["energy_j"].sum())
    split = _row_figures(whole, limits, limit_w)
    samples = resamples(control.traces.kind[control.traces.documents("test")], _SAMPLES, seed)
    split["energy_per_token_j_ci"] = list(ratio_interval(whole["energy_j"], whole["tokens"].astype(float), samples))
    return {
        **cell.row(controller.name, role),
        **_row_figures(paired, limits, limit_w),
        "within_constraints": split["within_constraints"],
        "energy_j": energy_j,
        "regret": energy_j / oracle_j - 1.0 if oracle_j else None,
        "requests": len(documents),
        "tokens": int(paired["tokens"].sum()),
        "seed": seed,
        "test_split": split,
        "settings": controller.describe(),
    }


def _solved(cell: Cell, control: Control, role: str) -> dict[str, Any]:
    """An oracle's row; figures are None where it refuses, which ``refused`` explains.

    ``oracle`` is free to exit. ``oracle-points`` is given the exits of bars read off the training traces, which are the same
    in every cell, and chooses the operating points: what is left when nobody can foresee what an exit would emit.
    """
    documents, limits, seed = cell.documents(control), cell.scenario.limits, cell.study.seed
    row, depths = {**cell.row(role, role), "requests": len(documents), "seed": seed}, None
    if role == "oracle-points":
        bars = Pace(control.points, *exit_bars(control.traces, "train", limits))
        depths = recorded_depths(control, bars, "test", documents, seed)
    try:
        found = oracle_set(
            control, "test", documents, seed, depths=depths, rounds=_ROUNDS, gap=_GAP, most_operations=_OPERATIONS
        )
    except BadValueError as error:
        return {**row, "energy_per_token_j": None, "within_constraints": False, "regret": None, "refused": str(error)}
    tokens = int(found.figures["tokens"].sum())
    return {
        **row,
        **_row_figures(found.figures, limits, control.emulator.chip.limit_w),
        "energy_j": found.energy_j,
        "lower_bound_j": found.lower_bound_j,
        "lower_bound_per_token_j": found.lower_bound_j / tokens,
        "gap": found.gap,
        "regret": 0.0 if depths is None else None,
        "tokens": tokens,
        **point_use(found.schedules, control.traces.layers, control.points),
    }


def _with_bound(row: dict[str, Any], oracle: dict[str, Any]) -> dict[str, Any]:
    return {**row, **{name: oracle.get(name) for name in ("lower_bound_j", "lower_bound_per_token_j")}}


def search_cell(cell: Cell) -> list[dict[str, Any]]:
    """What the search finds for every candidate in a cell."""
    control, study = cell.control(), cell.study
    found = []
    for candidate in candidates():
        tuned = tune(candidate, control, trials=study.trials, seed=study.seed)
        train = {**tuned.train, "within_constraints": tuned.within_constraints}  # by a standard error
        found.append({"controller": candidate.name, "settings": tuned.settings, "train": train})
    return found


def oracle_cell(cell: Cell) -> list[dict[str, Any]]:
    """The rows of both oracles in a cell."""
    control = cell.control()
    return [_solved(cell, control, role) for role in ("oracle", "oracle-points")]


class Choice(NamedTuple):
    """A cell that chooses among what the searches of all cells of its chip found.

    Attributes:
        cell: The cell.
        own: What its own search found.
        pool: ``controller``, ``settings``, and ``found_at``: granularity and switching time of the cell that found them.
        oracle: Row of its oracle.
    """

    cell: Cell
    own: list[dict[str, Any]]
    pool: list[dict[str, Any]]
    oracle: dict[str, Any]

    @property
    def key(self) -> str:
        """Hash of everything that the choice depends on."""
        content = [self.cell.key("search"), self.cell.key("oracles"), self.pool]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def choices(found: Sequence[Cell], known: Mapping[str, Any]) -> dict[str, Choice]:
    """By key, every cell with the distinct settings that were found for its chip, those of its own search first."""
    pools: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in found:
        for one in known[cell.key("search")]:
            entry = {"controller": one["controller"], "settings": one["settings"]}
            at = {**entry, "found_at": [cell.scenario.granularity, cell.switch_s]}
            pools.setdefault(cell.scenario.chip_name, {}).setdefault(json.dumps(entry, sort_keys=True), at)
    made = []
    for cell in found:
        pool = list(pools[cell.scenario.chip_name].values())
        made.append(Choice(cell, known[cell.key("search")], pool, known[cell.key("oracles")][0]))
    return {one.key: one for one in made}


def choose_cell(task: Choice) -> dict[str, Any]:
    """The row of the heuristic that is best in a cell on the training split, whichever cell found it.

    That is the least energy within the limits; where none holds them, what breaks them least.
    """
    cell, control = task.cell, task.cell.control()
    judge, specs = Judge(control, cell.scenario.limits, cell.study.seed), {one.name: one for one in candidates()}
    tried = []
    for number, entry in enumerate(task.pool):
        controller = specs[entry["controller"]].make(control, entry["settings"])
        excess, train = judge(controller)[:2]
        tried.append((excess, train["energy_per_token_j"], number, controller, train))
    excess, _, number, controller, train = min(tried, key=lambda one: one[:3])
    row = _with_bound(_judged(cell, control, controller, "heuristic", task.oracle.get("energy_j")), task.oracle)
    row["train"] = {**train, "within_constraints": excess == 0.0}
    own = {one["controller"]: one["train"] for one in task.own}
    return {**row, "found_at": task.pool[number]["found_at"], "own_search": own}


def train_cell(task: tuple[Cell, dict[str, Any]], folder: Path | None) -> list[dict[str, Any]]:
    """The row of a policy that was trained in a cell.

    Args:
        task: The cell and its oracle's row.
        folder: Where scenarios, checkpoints and policies lie; None keeps nothing.
    """
    from tempfile import TemporaryDirectory

    from clone_rl.agents.train_config import TrainConfig
    from clone_rl.agents.training import train

    cell, oracle = task
    with TemporaryDirectory() as scratch:
        place = (folder or Path(scratch)) / "policies" / f"{cell.name}-{cell.key('policy')}"
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        file = write_scenario(place / "scenario.toml", cell.scenario.self_contained())
        config = TrainConfig(scenario=str(file), steps=cell.study.ppo_steps, seed=cell.study.seed)
        try:
            policy = train(config, place, resume=True)
        except WriteError:
            raise
        except CloneRLError as error:
            return [{**cell.row("ppo", "policy"), "energy_per_token_j": None, "regret": None, "refused": str(error)}]
    control = cell.control()
    row = _judged(cell, control, replace(policy, name="ppo"), "policy", oracle.get("energy_j"))
    return [_with_bound({**row, "ppo_steps": cell.study.ppo_steps}, oracle)]


def describe_chips(controls: Sequence[Control]) -> list[dict[str, Any]]:
    """By chip, what decides what granularity can gain: a token's time and energy by point, and the most that mixing gains."""
    found = []
    for control in controls:
        scenario = control.scenario
        seconds, joules = token_curve(control.emulator, mean_context(control.traces))
        layers = control.traces.layers
        most, mean = mixing_gain(seconds, joules)
        most_whole, mean_whole = mixing_gain(seconds, joules, layers)
        found.append(
            {
                "chip": scenario.chip_name,
                "voltage_v": [point.voltage_v for point in control.emulator.chip.operating_points],
                "token_s": seconds.tolist(),
                "token_beyond_idle_j": joules.tolist(),
                "layer_s": (seconds / layers).tolist(),
                "least_energy_point": int(joules.argmin()),
                "mixing_gain": {"most": most, "mean": mean, "most_by_layers": most_whole, "mean_by_layers": mean_whole},
                "slo": [asdict(level) for level in scenario.slo],
                "interference": asdict(scenario.interference),
            }
        )
    return found


def run_study(
    study: GranularityStudy,
    folder: Path | None = None,
    jobs: int = 1,
    progress: Callable[[str, int, int], Any] | None = None,
) -> dict[str, Any]:
    """Work through all cells; what an earlier run in the folder finished is taken from its journal.

    Args:
        study: What to study.
        folder: Run folder, which exists: a journal of cells, their scenarios, and policies. None keeps nothing.
        jobs: Cells to work on at a time, each in a process of its own.
        progress: Makes a progress bar from the stage, how many cells it has, and how many are done.

    Returns:
        ``cells``: rows, ``chips``: see ``describe_chips``.

    Raises:
        CloneRLError: A name, file or value is wrong; found out before any work is done.
        KeyboardInterrupt: Ctrl-C; finished cells are in the journal.
    """
    if jobs < 1:
        raise BadValueError(f"jobs is {jobs}", "1 or more")
    journal = Journal(folder / "cells.jsonl" if folder else None)
    controls = study.controls()
    every = cells(study, controls)
    if folder:
        with writing(folder / "scenarios"):
            (folder / "scenarios").mkdir(exist_ok=True)
        for cell in every:
            path = folder / "scenarios" / f"{cell.name}.toml"
            if not path.exists():
                write_scenario(path, cell.scenario.self_contained(), f"cell {cell.name} of a study of granularity")
    stages = (("search", search_cell), ("oracles", oracle_cell))
    for stage, job in stages:
        _work(stage, {cell.key(stage): cell for cell in every}, job, journal, jobs, progress)
    chosen = choices(every, journal.known)
    _work("choice", chosen, choose_cell, journal, jobs, progress)
    policies: dict[str, tuple[Cell, dict[str, Any]]] = {}
    rows = []
    for key, choice in chosen.items():
        heuristic, cell = journal.known[key], choice.cell
        rows.append([heuristic, *journal.known[cell.key("oracles")]])
        if study.ppo_steps and heuristic["regret"] is not None and heuristic["regret"] > TRAINED_ABOVE:
            policies[cell.key("policy")] = (cell, choice.oracle)
    _work("policy", policies, partial(train_cell, folder=folder), journal, jobs, progress)
    for cell, of_cell in zip(every, rows, strict=True):
        of_cell += journal.known[cell.key("policy")] if cell.key("policy") in policies else []
    return {"study": asdict(study), "cells": [row for of in rows for row in of], "chips": describe_chips(controls)}


def _work(unit: str, tasks: Any, work: Any, journal: Journal, jobs: int, progress: Any) -> None:
    """Do the tasks that are left, with a progress bar if there are any."""
    done = sum(key in journal.known for key in tasks)
    if done == len(tasks):
        return
    if progress is None:
        each_once(tasks, work, journal, jobs)
        return
    with progress(unit, len(tasks), done) as bar:
        each_once(tasks, work, journal, jobs, bar.update)
