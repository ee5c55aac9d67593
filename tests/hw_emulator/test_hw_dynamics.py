import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator import MECHANISMS, Chip, Emulator, Workload, chip_names
from clone_rl.hw_emulator.cost import highest_allowed, warm
from clone_rl.hw_emulator.emulator import POLICY
from clone_rl.hw_emulator.switching import mechanism, transition

SMALL = Workload(layers=10, hidden_size=256, heads=4, kv_heads=2, ff_size=768)
SRAM, LPDDR4 = Chip.load("asic28-sram"), Chip.load("asic28-lpddr4")
EMULATOR = Emulator(SRAM, SMALL)


def altered(chip, section, **changes):
    return dataclasses.replace(chip, **{section: dataclasses.replace(getattr(chip, section), **changes)})


# Changes of voltage and frequency.


POINTS = [(point.voltage_v, point.frequency_hz) for point in SRAM.operating_points]
VOLTAGES, FREQUENCIES = zip(*POINTS, strict=True)
points = st.sampled_from(POINTS)


def carried(voltage):
    """Highest clock at a voltage between two operating points."""
    return float(np.interp(voltage, VOLTAGES, FREQUENCIES))


@given(st.sampled_from(sorted(MECHANISMS)), points, points)
def test_the_clock_is_never_above_what_the_voltage_of_the_moment_carries(name, old, new):
    (voltage, frequency), now = old, 0.0
    for step in transition(MECHANISMS[name], old, new):
        assert step.start_s == now <= step.end_s
        changes = {"voltage": step.voltage_v != voltage, "frequency": step.frequency_hz != frequency}
        assert not any(changed for action, changed in changes.items() if action != step.action)
        for share in np.linspace(0, 1, 11):
            moment_v = voltage + share * (step.voltage_v - voltage)
            clock = 0.0 if step.stalled and step.end_s > step.start_s else max(frequency, step.frequency_hz)
            assert clock <= carried(moment_v) * (1 + 1e-9)
            if step.action == "frequency":
                assert max(frequency, step.frequency_hz) <= carried(moment_v) * (1 + 1e-9)
        voltage, frequency, now = step.voltage_v, step.frequency_hz, step.end_s
    assert (voltage, frequency) == new


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize(("old", "new"), [(0, 7), (7, 0), (3, 4), (5, 2)])
def test_a_change_stalls_as_long_as_its_stalled_steps(name, old, new):
    emulator = Emulator(SRAM, SMALL, switching=name)
    steps = transition(MECHANISMS[name], POINTS[old], POINTS[new])
    stalled_s = sum(step.end_s - step.start_s for step in steps if step.stalled)
    assert emulator.switch(old, new)[0] == pytest.approx(stalled_s)
    assert [step.action for step in steps] == (["voltage", "frequency"] if new > old else ["frequency", "voltage"])


@pytest.mark.parametrize("name", MECHANISMS)
def test_up_waits_for_the_voltage_and_down_does_not(name):
    emulator, how = Emulator(SRAM, SMALL, switching=name), MECHANISMS[name]
    up_s, up_j = emulator.switch(0, 7)
    down_s, down_j = emulator.switch(7, 0)
    assert down_s == how.relock_s
    assert up_s == pytest.approx(how.relock_s + 0.44 * how.slew_s_per_v)
    charge_j, low_w = 0.5 * 5e-9 * (1.00**2 - 0.56**2), emulator.points[0]["leakage_w"]
    assert down_j == pytest.approx(charge_j + down_s * low_w)
    assert up_j == pytest.approx(charge_j + up_s * low_w)
    assert emulator.switch(0, 7, 80.0)[1] == pytest.approx(charge_j + up_s * low_w * math.exp(0.032 * 55))


def test_mechanisms_stall_as_long_as_their_sources_say():
    names = ["ideal", "on-chip", "pmic", "os", "devfreq"]
    stalls = [Emulator(SRAM, SMALL, name).switch(0, 7)[0] for name in names]
    assert stalls == pytest.approx([0, 53.44e-9, 46e-6, 316e-6, 100.016e-3])


def test_dram_waits_in_its_state_while_a_switch_stalls():
    for name, waiting_w in (("asic28-sram", 0.0), ("asic28-lpddr4", 0.0126 + 0.0168)):
        emulator = Emulator(Chip.load(name), SMALL, "os")
        stall_s, energy_j = emulator.switch(0, 1)
        charge_j = 0.5 * 5e-9 * (0.60**2 - 0.56**2)
        assert energy_j == pytest.approx(charge_j + stall_s * (emulator.points[0]["leakage_w"] + waiting_w))


def test_staying_costs_nothing_and_unknown_points_are_refused():
    assert Emulator(SRAM, SMALL, "os").switch(3, 3) == (0.0, 0.0)
    for pair in ((0, 8), (-1, 0), (1.5, 0)):
        with pytest.raises(BadValueError, match="points 0 to 7"):
            EMULATOR.switch(*pair)


def test_a_chip_switches_by_its_own_mechanism_unless_told():
    assert EMULATOR.switching == "on-chip"
    assert Emulator(SRAM, SMALL, switching="pmic").switching == "pmic"


@pytest.mark.parametrize("call", [mechanism, lambda name: Emulator(SRAM, SMALL, switching=name)])
def test_an_unknown_mechanism_is_refused_with_a_suggestion(call):
    with pytest.raises(UnknownNameError, match="did you mean 'pmic'"):
        call("pmics")


# Waiting between requests.


@pytest.mark.parametrize("celsius", [None, 0.0, 80.0])
def test_deeper_states_draw_less_and_take_longer_to_leave(celsius):
    states = Emulator(LPDDR4, SMALL).idle_states(celsius)
    assert list(states) == ["clock-gated", "retention", "off"]
    gated, retention, off = states.values()
    assert gated.power_w > retention.power_w > off.power_w > 0
    assert gated.wake_s < retention.wake_s < off.wake_s
    assert gated.wake_j < retention.wake_j < off.wake_j
    assert (gated.wake_s, gated.wake_j) == (0.0, 0.0)


def test_weights_that_cannot_be_reloaded_are_never_switched_off():
    assert list(EMULATOR.idle_states()) == ["clock-gated", "retention"]


def test_idle_powers_are_those_of_their_parts():
    emulator, gain = Emulator(LPDDR4, SMALL), 1 / 0.85
    low = 0.56 / 0.9 * math.exp(2.5 * (0.56 - 0.9))
    held = 0.45 / 0.9 * math.exp(2.5 * (0.45 - 0.9))
    sram_w, logic_w = 4194304 * 1.46e-9, LPDDR4.compute.area_mm2 * 0.3e-3
    clock_w = 0.1 * 2048 * 0.015e-12 * 50e6 * (0.56 / 0.9) ** 2
    powers = [state.power_w for state in emulator.idle_states().values()]
    assert powers == pytest.approx(
        [
            ((sram_w + logic_w) * low + clock_w) * gain + 0.0126 + 0.0168,
            (sram_w * held + 0.05 * logic_w * low) * gain + 0.0024,
            0.05 * (sram_w + logic_w) * low * gain + 0.0024,
        ]
    )
    assert emulator.idle_w() == pytest.approx(powers[1])


def test_waking_from_off_reloads_the_resident_weights():
    emulator = Emulator(LPDDR4, SMALL)
    states = emulator.idle_states()
    resident = emulator.resident * SMALL.weight_bytes
    assert 0 < emulator.resident < 1
    seconds = resident / (12.8e9 * 0.85)
    assert states["retention"].wake_s == pytest.approx(1e-6 + 0.29e-6)
    assert states["off"].wake_s == pytest.approx(1e-6 + 0.29e-6 + seconds)
    reload_j = resident * (84e-12 + 0.65e-12 / 0.85) + seconds * 0.076
    assert states["off"].wake_j - states["retention"].wake_j == pytest.approx(reload_j)


def test_idle_power_grows_with_temperature_and_dram_s_share_does_not():
    emulator = Emulator(LPDDR4, SMALL)
    for name, dram_w in (("clock-gated", 0.0294), ("retention", 0.0024), ("off", 0.0024)):
        cold, hot = (emulator.idle_states(t)[name].power_w - dram_w for t in (25.0, 25.0 + math.log(2) / 0.032))
        assert hot == pytest.approx(2 * cold)
    assert emulator.idle_w(80.0) == pytest.approx(emulator.idle_states(80.0)["retention"].power_w)


# Heat.


def exact(thermal, die_c, package_c, power_w, seconds):
    """Solution of the two-node network: C1 T1' = P - (T1 - T2) / R1, C2 T2' = (T1 - T2) / R1 - (T2 - Ta) / R2."""
    r1, c1 = thermal.die_resistance_k_per_w, thermal.die_capacity_j_per_k
    r2, c2 = thermal.package_resistance_k_per_w, thermal.package_capacity_j_per_k
    rates, modes = np.linalg.eig([[-1 / (r1 * c1), 1 / (r1 * c1)], [1 / (r1 * c2), -(1 / r1 + 1 / r2) / c2]])
    settled = np.array([thermal.ambient_c + power_w * (r1 + r2), thermal.ambient_c + power_w * r2])
    parts = np.linalg.solve(modes, np.array([die_c, package_c]) - settled)
    return settled + modes @ (parts * np.exp(rates * seconds))


def euler(thermal, die_c, package_c, power_w, seconds, steps):
    step = seconds / steps
    for _ in range(steps):
        through_w = (die_c - package_c) / thermal.die_resistance_k_per_w
        away_w = (package_c - thermal.ambient_c) / thermal.package_resistance_k_per_w
        die_c += step * (power_w - through_w) / thermal.die_capacity_j_per_k
        package_c += step * (through_w - away_w) / thermal.package_capacity_j_per_k
    return die_c, package_c


@pytest.mark.parametrize("name", chip_names())
def test_temperatures_follow_a_fine_integration_of_the_network(name):
    chip = Chip.load(name)
    emulator = Emulator(chip, dataclasses.replace(SMALL, layers=1).with_precision("int8"))
    power_w, start_c = chip.limit_w, chip.thermal.ambient_c
    for seconds in (0.01, 0.3, 3.0, 30.0):
        expected = euler(chip.thermal, start_c, start_c, power_w, seconds, 20_000)
        assert expected == pytest.approx(exact(chip.thermal, start_c, start_c, power_w, seconds), abs=0.02)
        rise = power_w * (chip.thermal.die_resistance_k_per_w + chip.thermal.package_resistance_k_per_w)
        assert warm(emulator.constants[0], start_c, start_c, power_w, seconds) == pytest.approx(expected, abs=0.015 * rise)


@given(st.floats(25, 90), st.floats(0, 10), st.floats(0, 2), st.floats(1e-3, 1e4))
def test_one_step_of_any_length_ends_where_the_network_does(package_c, hotter, power_w, seconds):
    got = warm(EMULATOR.constants[0], package_c + hotter, package_c, power_w, seconds)
    assert got == pytest.approx(exact(SRAM.thermal, package_c + hotter, package_c, power_w, seconds), abs=0.15)


@given(st.floats(25, 90), st.floats(0, 10), st.floats(0, 2), st.floats(1e-3, 100), st.integers(1, 20))
def test_many_short_steps_end_where_one_long_step_does(package_c, hotter, power_w, seconds, steps):
    die_c, middle_c = package_c + hotter, package_c
    for _ in range(steps):
        die_c, middle_c = warm(EMULATOR.constants[0], die_c, middle_c, power_w, seconds / steps)
    assert (die_c, middle_c) == pytest.approx(warm(EMULATOR.constants[0], package_c + hotter, package_c, power_w, seconds))


@given(st.floats(0, 2))
def test_heat_settles_at_ambient_plus_power_times_both_resistances(power_w):
    die_c, package_c = warm(EMULATOR.constants[0], 25.0, 25.0, power_w, 1e5)
    assert die_c == pytest.approx(25.0 + power_w * (5.0 + 20.0), rel=1e-6)
    assert package_c == pytest.approx(25.0 + power_w * 20.0, rel=1e-6)


@given(st.floats(25, 100), st.floats(25, 100), st.floats(0, 2), st.floats(0, 2), st.floats(1e-6, 1e3))
def test_temperatures_never_fall_with_power(die_c, package_c, power_w, more_w, seconds):
    cool = warm(EMULATOR.constants[0], die_c, package_c, power_w, seconds)
    hot = warm(EMULATOR.constants[0], die_c, package_c, power_w + more_w, seconds)
    assert hot[0] >= cool[0]
    assert hot[1] >= cool[1]


def test_without_power_the_chip_cools_towards_ambient_and_no_further():
    die_c, package_c = 90.0, 80.0
    for _ in range(20):
        after = warm(EMULATOR.constants[0], die_c, package_c, 0.0, 10.0)
        assert 25.0 <= after[0] < die_c
        assert 25.0 <= after[1] < package_c
        die_c, package_c = after


def test_no_time_changes_no_temperature():
    assert warm(EMULATOR.constants[0], 60.0, 50.0, 1.0, 0.0) == (60.0, 50.0)


def test_the_die_warms_in_tenths_of_seconds_and_the_package_in_minutes():
    die_c, package_c = warm(EMULATOR.constants[0], 25.0, 25.0, 1.0, 1.0)
    assert die_c - package_c > 0.9 * 5.0
    assert package_c - 25.0 < 0.02 * 20.0


# Throttling and the settled state.


@given(st.floats(-20, 200), st.floats(0, 50))
def test_throttling_takes_points_away_between_its_two_temperatures_and_gives_none_back(celsius, hotter):
    constants = EMULATOR.constants[0]
    allowed = highest_allowed(constants, 7, celsius)
    assert 0 <= highest_allowed(constants, 7, celsius + hotter) <= allowed <= 7
    assert (allowed == 7) == (celsius <= 85.0)
    if celsius >= 95.0:
        assert allowed == 0


def in_a_box(resistance, ambient_c=70.0):
    chip = altered(SRAM, "thermal", ambient_c=ambient_c, package_resistance_k_per_w=resistance)
    return Emulator(chip, SMALL)


@pytest.mark.parametrize("vf", [0, 3, 7])
@pytest.mark.parametrize("resistance", [10.0, 30.0, 60.0])
def test_a_steady_load_settles_where_heat_and_leakage_balance(vf, resistance):
    emulator = in_a_box(resistance)
    steady = emulator.steady(emulator.token(vf=vf))
    at = emulator.token(vf=vf, temperature_c=steady.die_c)
    assert steady.power_w == pytest.approx(at.power_w, rel=1e-6)
    assert steady.die_c == pytest.approx(70.0 + steady.power_w * (5.0 + resistance), rel=1e-6)
    assert steady.allowed == highest_allowed(emulator.constants[0], 7, steady.die_c)
    assert steady.die_c > 70.0 + emulator.token(vf=vf).power_w * (5.0 + resistance)


def test_a_hot_chip_throttles_a_load_that_a_cool_one_sustains():
    cool, hot = (in_a_box(250.0, ambient) for ambient in (25.0, 75.0))
    assert cool.steady(cool.token()).allowed == 7
    assert cool.steady(cool.token()).die_c < 85.0
    settled = hot.steady(hot.token())
    assert settled.die_c > 85.0
    assert settled.allowed < 7


def test_a_runaway_ends_at_a_finite_temperature_beyond_the_limit():
    emulator = in_a_box(5000.0)
    settled = emulator.steady(emulator.token())
    assert settled.die_c == 195.0
    assert settled.allowed == 0
    assert math.isfinite(settled.power_w)


def test_a_load_that_takes_no_time_has_no_steady_state():
    with pytest.raises(BadValueError, match=r"latency_s is 0\.0"):
        EMULATOR.steady(EMULATOR.cost(POLICY, 0))


@pytest.mark.parametrize("share", [0.0, 0.19, 1.0])
def test_of_the_energy_of_the_memory_only_its_share_warms_the_die(share):
    chip = altered(LPDDR4, "dram", on_die_fraction=share)
    emulator = Emulator(chip, Workload.from_config("llama-3.2-1b", context=256))
    cost = emulator.token(context=64)
    found = emulator.steady(cost)
    heat_w = found.power_w - (1 - share) * cost.dram_j / cost.latency_s
    assert found.die_c == pytest.approx(25.0 + heat_w * 25.0, abs=1e-3)
    assert found.power_w > cost.dram_j / cost.latency_s


def test_the_idle_power_of_a_board_was_measured_and_does_not_scale_with_its_temperature():
    emulator = Emulator(Chip.load("orin-agx"), SMALL)
    assert emulator.idle_w(20.0) == emulator.idle_w(90.0) == 11.2
