"""No request runs for ever, and none of its figures is no number, whatever units its chip and scenario are written in."""

import dataclasses
import re
from importlib import resources

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clone_rl.agents.heuristics import Fixed
from clone_rl.agents.runner import PolicyRunner
from clone_rl.envs.bounds import HOTTEST_C, MOST_SLOTS, check_bounds, longest_s
from clone_rl.envs.control import load_control
from clone_rl.envs.prices import price_list
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Interference, Scenario, Weights, scenario_names
from clone_rl.envs.world import build_world
from clone_rl.errors import BadFileError, BadValueError, CloneRLError
from clone_rl.hw_emulator import chip_names
from clone_rl.hw_emulator.workload import stored_workload

TEXTS = {
    name: (resources.files("clone_rl.hw_emulator") / "chips" / f"{name}.toml").read_text(encoding="utf-8")
    for name in chip_names()
}
NUMBER = re.compile(r"^(\w+) = (-?[\d.]+(?:e-?\d+)?)\b", re.MULTILINE)


def in_other_units(text, slips):
    """The text of a chip with some of its keys, wherever they stand, times powers of a thousand."""
    keys = sorted({found[1] for found in NUMBER.finditer(text)})
    for which, power in slips:
        key = keys[which % len(keys)]

        def other(found, key=key, power=power):
            value = float(found[2]) * 1000.0**power
            whole = found[2].isdigit() and value == int(value)
            return f"{key} = {int(value) if whole else repr(value)}" if found[1] == key else found[0]

        text = NUMBER.sub(other, text)
    return text


def longest_of(control):
    return longest_s(control.world, int(np.diff(control.world.offset).max()))


def run(control, point, requests=2):
    return PolicyRunner(control, Fixed("fixed", point)).run(np.arange(requests), 0)


def is_finite(figures):
    return all(np.isfinite(figures[name]).all() for name in figures.dtype.names)


@pytest.mark.parametrize("name", scenario_names())
def test_no_request_of_a_shipped_scenario_comes_near_the_bound(name):
    control = load_control("layer", name)
    documents = control.world.documents
    for point in (0, control.points - 1):
        found = PolicyRunner(control, Fixed("fixed", point)).run(documents, 3)
        assert is_finite(found)
        assert found["time_s"].max() <= longest_of(control)
    assert longest_of(control) < 1e-3 * MOST_SLOTS * control.world.rules[0]["slot_s"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.sampled_from(["asic28-sram", "asic28-lpddr4", "orin-nano"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(-4, 4).filter(bool)), min_size=1, max_size=2),
)
def test_a_chip_in_other_units_is_refused_or_its_requests_end_and_have_figures(tmp_path, name, slips):
    path = tmp_path / "mine.toml"
    path.write_text(in_other_units(TEXTS[name], slips), encoding="utf-8")
    try:
        control = load_control("layer", Scenario.load("default", chip=str(path)))
    except CloneRLError as error:
        assert error.hint
        return
    assert longest_of(control) <= MOST_SLOTS * control.world.rules[0]["slot_s"]
    for point in (0, control.points - 1):
        found = run(control, point)
        assert is_finite(found)
        assert found["time_s"].max() <= longest_of(control)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"slo": [{"name": "a", "ttft_s": 1e9, "tpot_s": 1.0}]},
            r"slo\[0\]: ttft_s is 1000000000\.0 .seconds, 1e-09 to 100000",
        ),
        ({"slo": [{"name": "a", "ttft_s": 0.02, "tpot_s": 1e-12}]}, r"slo\[0\]: tpot_s is 1e-12 .seconds"),
        ({"interference": {"slot_s": 1e-30}}, r"\[interference\]: slot_s is 1e-30 .seconds, 1e-07 to 10000"),
        ({"interference": {"slowdown": 1e5}}, r"\[interference\]: slowdown is 100000\.0 .times as long"),
        ({"interference": {"mean_busy_s": 1e9}}, r"mean_busy_s is 1000000000\.0 .seconds"),
    ],
    ids=str,
)
def test_times_of_a_scenario_beyond_reason_are_refused_with_their_unit(changes, message):
    with pytest.raises(BadFileError, match=message):
        Scenario.load("default", **changes)


def test_interference_made_in_python_has_the_same_ranges():
    with pytest.raises(BadValueError, match=r"interference: slot_s is 1e-30 .seconds"):
        Interference(slot_s=1e-30)


def test_weights_stay_below_what_adds_up_to_infinity():
    with pytest.raises(BadValueError, match=r"weight late is 1e\+308 .energies of a token, at most 1e\+09"):
        Weights(late=1e308)


@pytest.mark.parametrize(
    "changes",
    [
        {"slo": [{"name": "a", "ttft_s": 9e4, "tpot_s": 1e-3}]},
        {"slo": [{"name": "a", "ttft_s": 1.0, "tpot_s": 1e4}]},
        {"interference": {"slot_s": 1e-7, "mean_idle_s": 1.0}, "slack_high": 100.0},
        {"slack_high": 1e300},
        {"policy_macs": 10**15},
        {"randomise": {"targets": [1.0, 1e200]}},
        {"randomise": {"slowdown": [1.0, 1e200]}},
        {"switching": "10 s", "interference": {"slot_s": 1e-5}},
    ],
    ids=str,
)
def test_a_request_that_could_span_endless_slots_is_refused_before_it_runs(changes):
    with pytest.raises(BadValueError, match=r"can last .* s in scenario default, and interference\.slot_s is") as caught:
        load_control("layer", Scenario.load("default", **changes))
    assert "seconds" in caught.value.hint


def test_the_slowest_switches_that_can_be_written_are_still_taken():
    assert is_finite(run(load_control("layer", Scenario.load("default", switching="10 s")), 0))


@pytest.mark.parametrize("kv", ["propagate", "exact", "skip"])
@pytest.mark.parametrize("granularity", ["layer", "token"])
def test_the_longest_request_bounds_every_sequence_of_actions(kv, granularity):
    control = load_control(granularity, Scenario.load("bursty", kv=kv, switching="pmic"))
    rows, rng = Rows(control.world, 32, len(control.heads)), np.random.default_rng(0)
    rows.reset(np.arange(32), np.zeros(32, np.int64))
    while not (rows.state["done"] == 1).all():
        rows.step(rng.integers(0, control.heads, (32, len(control.heads))))
    assert rows.state["clock_s"].max() <= longest_of(control)
    assert rows.state["slot"].max() <= longest_of(control) / control.world.rules[0]["slot_s"] + 1


def test_a_die_that_runs_away_is_refused_and_a_throttled_one_is_not(tmp_path):
    def control(*changes):
        text = TEXTS["asic28-sram"]
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "hot.toml").write_text(text, encoding="utf-8")
        return load_control("layer", Scenario.load("default", chip=str(tmp_path / "hot.toml")))

    leaks = (
        ("leakage_w_per_byte = 1.46e-9", "leakage_w_per_byte = 9e-7"),
        ("die_resistance_k_per_w = 5.0", "die_resistance_k_per_w = 99.0"),
    )
    with pytest.raises(BadValueError, match=f"heat the die of its chip beyond {HOTTEST_C:g} C .*K/W"):
        control(*leaks, ("leakage_per_kelvin = 0.032", "leakage_per_kelvin = 0.12"))
    warm = control(("leakage_w_per_byte = 1.46e-9", "leakage_w_per_byte = 1e-7"))
    assert is_finite(run(warm, warm.points - 1))


def test_prices_that_are_no_numbers_are_refused():
    control = load_control("layer")
    control.emulator.points["dynamic_scale"][3] = np.nan
    with pytest.raises(BadValueError, match=r"on asic28-sram is no finite number .*SI units"):
        price_list(control.emulators, 4, 8)


def test_worlds_are_checked_where_they_are_built():
    control = load_control("layer")
    scenario = dataclasses.replace(control.scenario, slack_high=1e9)
    workload = stored_workload(control.traces.card["shape"], "traces")
    with pytest.raises(BadValueError, match="can last"):
        build_world(scenario, control.traces, "test", workload, control.prices)
    check_bounds(control.world, "default")
