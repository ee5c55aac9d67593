import csv
import json
import shutil
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clone_rl.agents.heuristics.hold import SPANS, Hold, HoldBaseline
from clone_rl.agents.oracle_set import oracle_set
from clone_rl.agents.policy import Policy
from clone_rl.agents.rollout import run_requests
from clone_rl.agents.tuning import tune
from clone_rl.envs.control import load_control
from clone_rl.envs.scenario import Scenario
from clone_rl.envs.scenario_file import scenario_toml, write_scenario
from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError
from clone_rl.evaluation.comparable import Speed, comparable
from clone_rl.evaluation.granularity import CHIPS, GranularityStudy, candidates, cells, describe_chips, run_study
from clone_rl.evaluation.granularity_figure import draw_granularity
from clone_rl.evaluation.journal import Journal, each_once
from clone_rl.evaluation.mixing import mixing_gain, point_use
from clone_rl.hw_emulator.switching import Mechanism, mechanism, time_name

SMALL = {"trials": 1, "requests": 2, "chips": ("asic28-sram",)}


@pytest.fixture(scope="module")
def study(trace_folder):
    return GranularityStudy(**SMALL, traces=trace_folder, granularities=("layer",), switching=("0 s", "5 ms"))


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, run_study(study, folder)


# Switching times.


@pytest.mark.parametrize(
    ("name", "seconds"), [("0 s", 0.0), ("100ns", 1e-7), ("1 us", 1e-6), ("5 ms", 0.005), ("2.5e1 us", 25e-6), ("1s", 1.0)]
)
def test_a_time_is_a_mechanism_whose_every_change_takes_that_long(name, seconds):
    assert mechanism(name) == Mechanism(seconds, 0.0)
    assert mechanism(time_name(seconds)).relock_s == seconds
    control = load_control("layer", switching=name)
    stalls = control.prices.switch_s[0]
    assert np.array_equal(stalls, seconds * (1 - np.eye(len(stalls))))


@pytest.mark.parametrize("name", ["-1 us", "5", "nan s", "1 hour", "us", "1e400 s", "11 s"])
def test_what_is_no_time_is_refused(name):
    with pytest.raises(CloneRLError):
        mechanism(name)


# A scenario on another chip.


@pytest.mark.parametrize("chip", CHIPS)
def test_targets_are_the_same_multiples_of_every_chips_own_speed(chip):
    base = load_control("layer")
    moved = load_control("layer", comparable(base.scenario, chip, base.traces))
    here, there = (Speed.of(control.emulator, base.traces) for control in (base, moved))
    for mine, theirs in zip(base.scenario.slo, moved.scenario.slo, strict=True):
        assert theirs.ttft_s / there.prefill_s == pytest.approx(mine.ttft_s / here.prefill_s, rel=1e-12)
        assert theirs.tpot_s / there.token_s == pytest.approx(mine.tpot_s / here.token_s, rel=1e-12)
    other, own = moved.scenario.interference, base.scenario.interference
    for name in ("slot_s", "mean_idle_s", "mean_busy_s"):
        assert getattr(other, name) / there.token_s == pytest.approx(getattr(own, name) / here.token_s, rel=1e-12)
    assert (other.slowdown, moved.scenario.limits) == (own.slowdown, base.scenario.limits)


@pytest.mark.parametrize("name", ["default", "many-chips", "slow-switching", "voice", "hot"])
def test_a_scenario_survives_its_file(name, tmp_path):
    scenario = Scenario.load(name, switching="100 ns", signals=["margin"], limits={"dnll": 1e-3})
    assert Scenario.parse(tomllib.loads(scenario_toml(scenario)), "text") == scenario
    path = write_scenario(tmp_path / "mine.toml", scenario, "a note")
    assert path.read_text().startswith("# a note\n")
    assert Scenario.load(str(path)) == scenario


# What mixing gains.


def test_mixing_gains_nothing_at_the_points_and_the_hull_between_them():
    seconds, joules = np.array([3.0, 2.0, 1.0]), np.array([1.0, 1.2, 2.0])
    most, mean = mixing_gain(seconds, joules)
    # Just below 2 s a single point costs 2 J and the mixture 1.2 J.
    assert most == pytest.approx(0.4, abs=2e-3)
    assert 0.1 < mean < most
    by_layers = mixing_gain(seconds, joules, layers=10)
    assert all(0 < few <= all_ for few, all_ in zip(by_layers, (most, mean), strict=True))
    assert mixing_gain(seconds, joules, layers=1) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert mixing_gain(seconds, np.array([3.0, 2.0, 1.0])) == (0.0, 0.0)  # racing is best: nothing to mix


def test_use_of_points_is_read_off_schedules():
    prefill = [2, 2, 2]
    schedule = np.array([*prefill, 0, 1, 3, 1, 3, 0, 2, 2])  # 3 layers, 3 points, 3 leaves
    use = point_use([schedule], 3, 3)
    assert use["point_share"] == pytest.approx([2 / 6, 2 / 6, 2 / 6])
    assert use["mixed_tokens"] == pytest.approx(2 / 3)
    assert use["adjacent_changes"] == 0.5
    assert point_use([np.array(prefill)], 3, 3)["adjacent_changes"] is None


# The rule for coarse granularities.


@pytest.mark.parametrize("span", SPANS)
def test_a_held_point_changes_no_more_often_than_its_span(control, span):
    found = tune(HoldBaseline(span), control, trials=2)
    assert found.baseline == found.controller.name == f"hold-{span}"
    figures = run_requests(control, found.controller, "train", control.traces.documents("train"), 0)
    most = {"request": 1, "phase": 2}.get(span)
    assert (figures["switches"] <= (most or figures["tokens"])).all()
    assert figures["switches"].any()


@pytest.mark.parametrize("span", SPANS)
def test_a_point_that_is_held_anyway_is_the_same_at_any_finer_granularity(control, span):
    hold = Hold(HoldBaseline(span).make(control, {}).table, span, 0.9, 0.1)
    documents, finer = control.traces.documents("test"), ["request", "phase", "token", "layer"]
    runs = [
        run_requests(control.serving("layer", replace(control.scenario, granularity=name), "test"), hold, "test", documents, 0)
        for name in finer[finer.index(span) :]
    ]
    assert all((run == runs[0]).all() for run in runs)


# The oracle where a change takes long: a plan that does not look as far as a change reaches takes it for free.


@pytest.mark.parametrize("granularity", ["token", "layer"])
def test_slow_switching_does_not_lure_the_oracle_into_worse_than_never_switching(trace_folder, granularity):
    documents = None
    energies = {}
    for name in ("request", granularity):
        control = load_control("layer", "default", "test", traces=trace_folder, granularity=name, switching="5 ms")
        documents = control.traces.documents("test")
        energies[name] = oracle_set(control, "test", documents, 0, rounds=6, gap=0.01, most_operations=2e7)
    finer, coarse = energies[granularity], energies["request"]
    assert finer.energy_j <= 1.01 * coarse.energy_j
    assert finer.gap < 0.05


# The study.


def test_cells_have_rows_of_heuristic_and_oracles(finished, study):
    _, found = finished
    assert [row["role"] for row in found["cells"]] == ["heuristic", "oracle", "oracle-points"] * 2
    for heuristic, oracle, points in zip(*(found["cells"][i::3] for i in range(3)), strict=True):
        cell = ("chip", "granularity", "switch_s", "requests", "tokens", "seed")
        assert [heuristic[key] for key in cell] == [oracle[key] for key in cell] == [points[key] for key in cell]
        assert heuristic["regret"] == pytest.approx(heuristic["energy_j"] / oracle["energy_j"] - 1)
        assert heuristic["energy_per_token_j"] * heuristic["tokens"] == pytest.approx(heuristic["energy_j"])
        assert oracle["lower_bound_j"] <= oracle["energy_j"]
        assert heuristic["lower_bound_j"] == oracle["lower_bound_j"]
        assert oracle["within_constraints"]
        low, high = heuristic["test_split"]["energy_per_token_j_ci"]
        assert low <= heuristic["test_split"]["energy_per_token_j"] <= high
        own = heuristic["own_search"]
        assert set(own) == {one.name for one in candidates()}
        held = [train["energy_per_token_j"] for train in own.values() if train["within_constraints"]]
        # Found by whichever cell, it is no worse than what the cell's own search found.
        assert not held or (heuristic["train"]["within_constraints"] and heuristic["train"]["energy_per_token_j"] <= min(held))
        assert sum(oracle["point_share"]) == pytest.approx(1.0)
    assert {row["switch_s"] for row in found["cells"]} == {0.0, 0.005}
    assert len(json.dumps(found["cells"])) < 60_000


def test_finished_cells_are_not_worked_on_again_and_a_torn_line_is(finished, study, tmp_path, monkeypatch):
    import clone_rl.evaluation.granularity as granularity

    folder, found = shutil.copytree(finished[0], tmp_path / "study"), finished[1]
    journal = folder / "cells.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    worked = []
    real = granularity.oracle_cell
    monkeypatch.setattr(granularity, "oracle_cell", lambda cell: worked.append(cell.name) or real(cell))
    assert run_study(study, folder) == found
    assert not worked
    # The second cell's oracles are the fourth line, after two searches: part of it is left, and nothing of what follows.
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:-20])
    assert run_study(study, folder) == found
    assert len(worked) == 1
    assert journal.read_bytes() == b"".join(lines)


def test_every_cell_leaves_a_scenario_that_is_the_cell(finished, study):
    folder, _ = finished
    for cell in cells(study, study.controls()):
        kept = Scenario.load(str(folder / "scenarios" / f"{cell.name}.toml"))
        assert replace(kept, traces=cell.scenario.traces) == cell.scenario


def test_the_key_of_a_cell_is_of_everything_that_its_rows_depend_on(study):
    def keys(**changes):
        changed = replace(study, **changes)
        return {cell.key("search") for cell in cells(changed, changed.controls())}

    base = keys()
    assert len(base) == 2
    assert keys(ppo_steps=100) == base
    assert keys(switching=("0 s",)) < base
    assert keys(requests=3) == base  # which the search does not look at
    for changes in ({"trials": 2}, {"seed": 1}, {"scenario": "voice"}, {"chips": ("asic28-lpddr4",)}):
        assert not keys(**changes) & base


def test_a_policy_is_trained_where_the_heuristic_is_far_from_the_oracle(study, finished, tmp_path, monkeypatch):
    import clone_rl.evaluation.granularity as granularity

    folder, found = shutil.copytree(finished[0], tmp_path / "study"), finished[1]
    trained = []

    def train(task, folder):
        cell, oracle = task
        trained.append(cell.name)
        return [{**cell.row("ppo", "policy"), "regret": 0.01, "energy_per_token_j": oracle["energy_per_token_j"]}]

    monkeypatch.setattr(granularity, "train_cell", train)
    regrets = [row["regret"] for row in found["cells"] if row["role"] == "heuristic"]
    above = max(regrets) - 1e-9
    monkeypatch.setattr(granularity, "TRAINED_ABOVE", above)
    more = run_study(replace(study, ppo_steps=64), folder)
    assert len(trained) == sum(regret > above for regret in regrets)
    assert [row["role"] for row in more["cells"]].count("policy") == len(trained)


def test_a_trained_cell_is_judged_and_keeps_what_it_was_trained_on(study, tmp_path, monkeypatch):
    import clone_rl.agents.training as training
    from clone_rl.evaluation.granularity import train_cell

    asked = []

    def train(config, folder, resume):
        asked.append((config, folder, resume))
        return Policy.load("default")

    monkeypatch.setattr(training, "train", train)
    small = replace(study, ppo_steps=64, granularities=("token",), switching=("5 ms",))
    (cell,) = cells(small, small.controls())
    (row,) = train_cell((cell, {"energy_j": 1.0}), tmp_path)
    assert (row["controller"], row["role"], row["granularity"], row["ppo_steps"]) == ("ppo", "policy", "token", 64)
    assert row["regret"] == pytest.approx(row["energy_j"] - 1.0)
    ((config, folder, resume),) = asked
    assert (config.steps, config.seed, resume) == (64, 0, True)
    kept = Scenario.load(config.scenario)
    assert (kept.granularity, kept.switching, folder.parent) == ("token", "5 ms", tmp_path / "policies")

    def refuse(config, folder, resume):
        raise BadValueError("cannot be held")

    monkeypatch.setattr(training, "train", refuse)
    (row,) = train_cell((cell, {"energy_j": 1.0}), tmp_path)
    assert row["energy_per_token_j"] is None
    assert "cannot be held" in row["refused"]


def test_chips_are_described_by_what_mixing_can_gain(study):
    (chip,) = describe_chips(study.controls())
    assert np.diff(chip["token_s"]).max() < 0
    assert 0 < chip["mixing_gain"]["mean"] < chip["mixing_gain"]["most"] < 0.5


def test_the_picture_has_a_panel_for_every_chip(finished, tmp_path):
    _, found = finished
    draw_granularity(tmp_path / "one.png", found)
    twice = [{**row, "chip": chip} for chip in ("asic28-sram", "other") for row in found["cells"]]
    refused = [{**row, "energy_per_token_j": None} if row["role"] == "oracle" else row for row in twice]
    draw_granularity(tmp_path / "two.png", {**found, "cells": refused})
    one, two = (Image.open(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert two.width > 1.5 * one.width
    assert len(np.unique(np.asarray(one.convert("RGB")).reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"granularities": ("tokens",)}, UnknownNameError),
        ({"switching": ("fast",)}, UnknownNameError),
        ({"switching": ("20 s",)}, BadValueError),
        ({"chips": ()}, BadValueError),
        ({"chips": ("asic28-sram", "asic28-sram")}, BadValueError),
        ({"trials": 0}, BadValueError),
        ({"requests": 0}, BadValueError),
        ({"ppo_steps": -1}, BadValueError),
        ({"seed": -1}, BadValueError),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes, error):
    with pytest.raises(error):
        GranularityStudy(**changes)


# The journal.


def test_pieces_are_done_once_in_several_processes(tmp_path):
    journal, steps = Journal(tmp_path / "j.jsonl"), []
    journal.add("1", 1)
    each_once({str(n): -n for n in range(4)}, abs, journal, 2, lambda: steps.append(1))
    assert journal.known == Journal(tmp_path / "j.jsonl").known == {str(n): n for n in range(4)}
    assert len(steps) == 3


def test_an_error_of_a_process_is_an_error_here_and_leaves_none_behind(tmp_path):
    from multiprocessing import active_children

    with pytest.raises(ValueError):
        each_once({"a": "1", "b": "x"}, int, Journal(), 2)
    for child in active_children():
        child.join(60)  # one that was just started imports first
    assert not active_children()


def test_what_is_no_journal_is_refused(tmp_path):
    (tmp_path / "notes.jsonl").write_text("hello\n")
    with pytest.raises(BadFileError, match="line 1"):
        Journal(tmp_path / "notes.jsonl")


def test_rows_fit_a_table(finished, tmp_path):
    from clone_rl.cli.study import COLUMNS, _write_csv

    _, found = finished
    _write_csv(tmp_path / "cells.csv", found["cells"])
    with (tmp_path / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found["cells"])
    assert set(COLUMNS) <= set(rows[0])
    assert float(rows[0]["energy_per_token_j"]) == found["cells"][0]["energy_per_token_j"]
    assert float(rows[0]["test_split_miss_rate"]) == found["cells"][0]["test_split"]["miss_rate"]
