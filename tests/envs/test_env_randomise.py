"""Chips, targets and co-runners that differ from episode to episode."""

import numpy as np
import pytest

from clone_rl.envs.control import load_control
from clone_rl.envs.randomise import Randomise, constants, moved, variants
from clone_rl.envs.rows import Rows
from clone_rl.envs.scenario import Scenario
from clone_rl.errors import BadFileError, BadValueError, CloneRLError, UnknownNameError
from clone_rl.hw_emulator import load_chip

RANGES = {"variants": 6, "ambient_c": [10.0, 45.0], "chip": {"compute.mac_energy_j": [0.8, 1.2]}}


def test_every_variant_is_priced_as_its_own_chip(trace_folder):
    control = load_control("layer", traces=trace_folder, randomise=RANGES)
    assert len(control.emulators) == len(control.prices.chip) == 6
    energies = {emulator.token_energy_j(7) for emulator in control.emulators}
    assert len(energies) == 6
    np.testing.assert_array_equal(control.prices.reference_j, [e.token_energy_j(7) for e in control.emulators])
    rows = Rows(control.world, 64)
    rows.reset(np.arange(64), np.zeros(64, np.int64))
    assert set(rows.state["variant"]) == set(range(6))
    for s in rows.state:
        assert s["die_c"] == control.emulators[s["variant"]].chip.thermal.ambient_c


def test_factors_stay_in_their_ranges_and_do_not_depend_on_the_episodes_seed():
    chip = load_chip("asic28-sram")
    drawn = variants(chip, Randomise(**RANGES))
    assert drawn == variants(chip, Randomise(**RANGES))
    for other in drawn:
        factor = other.compute.mac_energy_j["int4"] / chip.compute.mac_energy_j["int4"]
        assert 0.8 <= factor <= 1.2
        assert 10 <= other.thermal.ambient_c <= 45
    assert variants(chip, Randomise()) == (chip,)


def test_targets_and_interference_are_drawn_by_episode(trace_folder):
    ranges = {"targets": [0.5, 0.9], "slowdown": [1.0, 2.0], "mean_busy": [0.5, 2.0]}
    control = load_control("layer", traces=trace_folder, slack_high=1.0, randomise=ranges)
    rows = Rows(control.world, 200)
    rows.reset(np.arange(200), np.zeros(200, np.int64))
    targets = np.array([control.scenario.slo[s["slo"]].tpot_s for s in rows.state])
    factors = rows.state["tpot_s"] / targets
    assert 0.5 <= factors.min() < 0.55 < 0.85 < factors.max() <= 0.9
    assert 1.44 <= rows.state["slowdown"].min() < 1.6 < 2.7 < rows.state["slowdown"].max() <= 2.88
    assert len(set(rows.state["to_idle"])) > 100


@pytest.mark.parametrize(
    ("ranges", "error", "message"),
    [
        ({"variants": 0}, CloneRLError, "variants"),
        ({"variants": 4, "chip": {"compute.mac_energy": [0.8, 1.2]}}, UnknownNameError, "did you mean 'compute.mac_energy_j'"),
        ({"variants": 4, "chip": {"compute.mac_energy_j": [1.2, 0.8]}}, BadValueError, "smaller to the larger"),
        ({"variants": 4, "chip": {"compute.mac_energy_j": 1.2}}, BadValueError, "two numbers"),
        ({"variants": 4, "chip": {"power.regulator_efficiency": [1.3, 1.4]}}, BadFileError, "at most 1"),
        ({"variants": 4, "ambient_c": [90.0, 95.0]}, BadFileError, "ascend"),
        ({"chip": {"compute.mac_energy_j": [0.8, 1.2]}}, BadValueError, "variants is 1"),
        ({"slowdown": [0.5, 1.0]}, BadValueError, "at least 1"),
        ({"targets": [0.0, 1.0]}, BadValueError, "above 0"),
        ({"targets": [float("nan"), 1.0]}, BadValueError, "above 0"),
        ({"chips": {}}, BadFileError, "did you mean 'chip'"),
    ],
    ids=str,
)
def test_ranges_that_make_no_sense_are_refused(trace_folder, ranges, error, message):
    with pytest.raises(error, match=message):
        load_control("layer", traces=trace_folder, randomise=ranges)


@pytest.mark.parametrize("name", ["asic28-sram", "asic28-lpddr4", "orin-agx"])
def test_every_constant_that_is_offered_can_be_moved(name):
    chip = load_chip(name)
    for constant in constants(chip):
        assert moved(chip, {constant: 1.0}) == chip


def test_a_scenario_survives_plain_data():
    for name in ("many-chips", "hot", "slow-switching"):
        scenario = Scenario.load(name)
        assert Scenario.parse(scenario.as_dict(), name) == scenario
        assert Scenario.load(scenario.as_dict(), probe=False).probe is False
