import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import UnknownNameError
from clone_rl.hw_emulator import MECHANISMS, Emulator, ModelShape, load_chip
from clone_rl.hw_emulator.cost import switch_cost, warm

SMALL = ModelShape(layers=2, hidden_size=64, heads=2, kv_heads=1, ff_size=128)
CHIP = Emulator(load_chip("asic28-sram"), SMALL)


@pytest.mark.parametrize("name", MECHANISMS)
def test_up_waits_for_the_voltage_and_down_does_not(name):
    emulator = Emulator(load_chip("asic28-sram"), SMALL, switching=name)
    low, high, how = emulator.points[0], emulator.points[7], MECHANISMS[name]
    up_s, up_j = switch_cost(emulator.constants[0], low, high, 25.0)
    down_s, down_j = switch_cost(emulator.constants[0], high, low, 25.0)
    assert down_s == how.relock_s
    assert up_s == pytest.approx(how.relock_s + 0.44 * how.slew_s_per_v)
    charge_j = 0.5 * 5e-9 * (1.00**2 - 0.56**2)
    assert down_j == pytest.approx(charge_j + down_s * low["leakage_w"])
    assert up_j == pytest.approx(charge_j + up_s * low["leakage_w"])


def test_mechanisms_stall_as_long_as_their_sources_say():
    low, high = CHIP.points[0], CHIP.points[7]
    stalls = []
    for name in ("ideal", "on-chip", "pmic", "os"):
        stalls.append(switch_cost(Emulator(load_chip("asic28-sram"), SMALL, name).constants[0], low, high, 25.0)[0])
    assert stalls == pytest.approx([0, 53.44e-9, 46e-6, 316e-6])
    assert stalls == sorted(set(stalls))


def test_an_unknown_mechanism_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'pmic'"):
        Emulator(load_chip("asic28-sram"), SMALL, switching="pmics")


@given(st.floats(0, 2))
def test_the_steady_state_is_ambient_plus_power_times_both_resistances(power_w):
    die_c = package_c = 25.0
    for _ in range(50):
        die_c, package_c = warm(CHIP.constants[0], die_c, package_c, power_w, 100.0)
    assert die_c == pytest.approx(25.0 + power_w * (5.0 + 20.0), rel=1e-6)
    assert package_c == pytest.approx(25.0 + power_w * 20.0, rel=1e-6)


@given(st.floats(25, 100), st.floats(25, 100), st.floats(0, 2), st.floats(0, 2), st.floats(1e-6, 1e3))
def test_temperatures_never_fall_with_power(die_c, package_c, power_w, more_w, seconds):
    cool = warm(CHIP.constants[0], die_c, package_c, power_w, seconds)
    hot = warm(CHIP.constants[0], die_c, package_c, power_w + more_w, seconds)
    assert hot[0] >= cool[0]
    assert hot[1] >= cool[1]


def test_without_power_the_chip_cools_towards_ambient_and_no_further():
    die_c, package_c = 90.0, 80.0
    for _ in range(20):
        after = warm(CHIP.constants[0], die_c, package_c, 0.0, 10.0)
        assert 25.0 <= after[0] < die_c
        assert 25.0 <= after[1] < package_c
        die_c, package_c = after


def test_no_time_changes_no_temperature():
    assert warm(CHIP.constants[0], 60.0, 50.0, 1.0, 0.0) == (60.0, 50.0)


def test_the_die_warms_in_tenths_of_seconds_and_the_package_in_minutes():
    die_c, package_c = warm(CHIP.constants[0], 25.0, 25.0, 1.0, 1.0)
    assert die_c - 25.0 > 0.9 * 5.0
    assert package_c - 25.0 < 0.02 * 20.0
