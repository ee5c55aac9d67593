"""Conditions that controllers have not met."""

from dataclasses import replace

import numpy as np
import pytest

from clone_rl.agents.heuristics import Fixed, Pace
from clone_rl.agents.rollout import run_requests
from clone_rl.envs.scenario import Scenario, scenario_names
from clone_rl.errors import BadValueError
from clone_rl.evaluation.unseen import KNOWN, MOVED, unseen, unseen_conditions


@pytest.mark.parametrize("name", scenario_names())
def test_every_condition_differs_from_its_scenario_in_one_respect(name):
    scenario = Scenario.load(name)
    conditions = unseen_conditions(scenario)
    assert conditions.pop(KNOWN) is scenario
    assert len(conditions) == 9
    before = scenario.as_dict()
    for condition, changed in conditions.items():
        after = changed.as_dict()
        fields = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} - {"scale"}
        assert changed.scale == scenario.scale  # a target is observed as it was known
        allowed = {
            "co-runner": {"interference"},
            "only": {"slo"},
            "targets": {"slack_low", "slack_high"},
            "ambient": {"ambient_c", "randomise"},
            "16": {"randomise"},
        }[condition.split()[0]]
        assert fields, condition
        assert fields <= allowed, condition


def test_the_moved_chips_are_others_and_within_a_fifth():
    scenario = Scenario.load("default")
    (moved,) = (each for name, each in unseen_conditions(scenario).items() if "constants" in name)
    assert set(moved.randomise.chip.values()) == {MOVED} == {(0.8, 1.2)}
    assert "operating_points.frequency_hz" in moved.randomise.chip
    assert moved.randomise.seed != Scenario.load("many-chips").randomise.seed


def test_a_temperature_that_would_throttle_from_the_start_is_left_out():
    scenario = Scenario.load("default")
    hottest = scenario.load_chip().thermal.throttle_c
    names = list(unseen_conditions(replace(scenario, ambient_c=hottest - 10.0)))
    assert [name for name in names if name.startswith("ambient")] == [f"ambient {hottest - 30:g} C"]


def test_rows_are_those_of_the_changed_scenario_and_compare_with_the_first(control):
    controllers = [Fixed("performance", control.points - 1), Pace(control.points, 0.95, 0.1)]
    rows = unseen(control, controllers, seed=3, seeds=2)
    conditions = unseen_conditions(control.scenario)
    assert len(rows) == len(conditions) * 4
    documents = control.traces.documents("test")
    for row in rows:
        changed = control.serving("layer", conditions[row["condition"]], "test")
        controller = controllers[row["name"] == "pace"]
        own = np.concatenate(
            [
                run_requests(changed, controller, "test", documents, first, shield=row["shield"])
                for first in (3, 3 + len(documents))
            ]
        )
        assert row["energy_per_token_j"] == own["energy_j"].sum() / own["tokens"].sum()
        assert (row["over_first"] == 0.0) == (row["name"] == "performance")
    heavier = {
        row["condition"]: row["tpot_p99_s"] for row in rows if row["name"] == "performance" and not row["shield"]
    }  # fmt: skip
    assert heavier["co-runner 20 % heavier"] > heavier[KNOWN]


@pytest.mark.parametrize(("names", "seeds", "said"), [([], 1, "none"), (["a", "a"], 1, "a, a"), (["a"], 0, "seeds is 0")])
def test_bad_questions_are_refused(control, names, seeds, said):
    with pytest.raises(BadValueError, match=said):
        unseen(control, [Fixed(name, 0) for name in names], seeds=seeds)
