import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadValueError
from clone_rl.hw_emulator import Emulator, ModelShape, load_chip
from clone_rl.hw_emulator.cost import work_latency
from clone_rl.hw_emulator.emulator import HEAD, KV_FILL, LAYER, POLICY, PROBE, TERMS

SMALL = ModelShape(layers=10, hidden_size=256, heads=4, kv_heads=2, ff_size=768)
BILLION = ModelShape(
    layers=16, hidden_size=2048, heads=32, kv_heads=8, ff_size=8192, vocab_size=128256, head_dim=64, context=128
)
SRAM = Emulator(load_chip("asic28-sram"), SMALL, policy_macs=900)
LPDDR4 = Emulator(load_chip("asic28-lpddr4"), BILLION, policy_macs=900)

emulators = st.sampled_from([SRAM, LPDDR4])
points = st.integers(0, 7)
rows = st.integers(1, 256)
contexts = st.floats(0, 2048)
pieces = st.sampled_from([LAYER, HEAD, PROBE, POLICY, KV_FILL, KV_FILL + 1, KV_FILL + 9])


@given(emulators, pieces, rows, contexts, st.floats(1e6, 2e9), st.floats(1.0, 10.0))
def test_latency_never_rises_with_frequency(emulator, piece, rows, context, frequency, factor):
    slow, fast = emulator.points[0].copy(), emulator.points[0].copy()
    slow["frequency_hz"], fast["frequency_hz"] = frequency, frequency * factor
    chip, work = emulator.constants[0], emulator.work[piece]
    assert work_latency(chip, fast, work, rows, context) <= work_latency(chip, slow, work, rows, context)


@given(emulators, pieces, points, rows, contexts, st.integers(0, 64), st.floats(0, 512), st.floats(-20, 120))
def test_latency_and_energy_terms_never_fall_with_rows_or_context(
    emulator, piece, point, rows, context, more_rows, more_context, celsius
):
    less = emulator.cost(piece, point, context, rows, celsius)
    more = emulator.cost(piece, point, context + more_context, rows + more_rows, celsius)
    for name in ("latency_s", *TERMS):
        assert getattr(more, name) >= getattr(less, name) >= 0, name


@given(emulators, pieces, st.integers(0, 6), rows, contexts)
def test_dynamic_energy_never_falls_and_latency_never_rises_with_the_point(emulator, piece, point, rows, context):
    low, high = (emulator.cost(piece, point + up, context, rows) for up in (0, 1))
    assert high.dynamic_j >= low.dynamic_j
    assert high.latency_s <= low.latency_s


@given(emulators, points, rows, contexts, st.floats(25, 120), st.floats(1.0, 3.0))
def test_a_slowdown_stretches_latency_and_leakage_and_leaves_data_movement_alone(
    emulator, point, rows, context, celsius, slowdown
):
    quiet = emulator.layer(point, context, rows, celsius)
    busy = emulator.layer(point, context, rows, celsius, slowdown)
    assert busy.latency_s == pytest.approx(quiet.latency_s * slowdown)
    assert busy.leakage_j == pytest.approx(quiet.leakage_j * slowdown)
    assert busy.control_j == pytest.approx(quiet.control_j * slowdown)
    assert (busy.mac_j, busy.sram_j, busy.sfu_j) == (quiet.mac_j, quiet.sram_j, quiet.sfu_j)


def test_leakage_doubles_every_22_kelvin():
    cold, hot = (SRAM.layer(3, 64, temperature_c=celsius).leakage_j for celsius in (25.0, 25.0 + np.log(2) / 0.032))
    assert hot == pytest.approx(2 * cold)


def test_a_decode_layer_takes_the_cycles_that_arithmetic_says():
    macs = SMALL.layer_parameters + 64 * 2 * 256
    cycles = macs / (128 * 0.8) + (2 * 256 + 256 + 128 + 768 + 64 * 4) / 16
    assert SRAM.layer(7, 64).latency_s == pytest.approx(cycles / 500e6)
    assert SRAM.layer(7, 64).mac_j == pytest.approx(macs * 0.1e-12 * (1.0 / 0.9) ** 2 / 0.85)


def test_prefill_uses_the_array_where_it_beats_the_vector_mode():
    one, few, many = (SRAM.layer(7, 64, rows).latency_s for rows in (1, 16, 200))
    assert few == pytest.approx(16 * one)
    assert many < 0.95 * 200 * one


def test_voltage_and_frequency_follow_three_28_nm_chips():
    frequency = {round(float(p["voltage_v"]), 2): p["frequency_hz"] for p in SRAM.points}
    assert 0.9 * 0.207 <= frequency[0.60] / frequency[1.00] <= 1.1 * 0.220


def test_behind_a_dram_wall_voltage_and_frequency_hardly_matter():
    energy = [LPDDR4.token_energy_j(point) for point in range(8)]
    assert max(energy) / min(energy) < 1.06
    assert LPDDR4.layer(7, 64).dram_j > LPDDR4.layer(7, 64).dynamic_j


def test_with_resident_weights_crawling_and_racing_both_lose():
    energy = [SRAM.token_energy_j(point) for point in range(8)]
    assert max(energy) / min(energy) > 1.5
    assert 0 < int(np.argmin(energy)) < 7


@pytest.mark.parametrize("emulator", [SRAM, LPDDR4], ids=["sram", "lpddr4"])
def test_layer_and_table_agree(emulator):
    contexts = [0, 1, 64.5, 255]
    table = emulator.table(contexts, rows=3, temperature_c=60.0, slowdown=1.44)
    for point in range(8):
        for column, context in enumerate(contexts):
            cost = emulator.layer(point, context, 3, 60.0, 1.44)
            for name in ("latency_s", *TERMS):
                assert table[name][point, column] == pytest.approx(getattr(cost, name), rel=1e-9), name


def test_energy_is_the_sum_of_its_terms():
    cost = LPDDR4.layer(4, 100, rows=7, temperature_c=50)
    assert cost.energy_j == pytest.approx(sum(getattr(cost, name) for name in TERMS))


def test_a_token_is_every_layer_and_the_head():
    layer, head = SRAM.layer(2, 40), SRAM.cost(HEAD, 2)
    assert SRAM.token_energy_j(2, 40) == pytest.approx(10 * layer.energy_j + head.energy_j)
    assert SRAM.token_latency_s(2, 40) == pytest.approx(10 * layer.latency_s + head.latency_s)


def test_filling_the_caches_of_more_skipped_layers_costs_more():
    energy = [SRAM.cost(KV_FILL + n, 3).energy_j for n in range(10)]
    assert energy == sorted(set(energy))
    assert energy[9] < 9 * SRAM.layer(3, 0).energy_j


@pytest.mark.parametrize("point", [-1, 8])
def test_an_unknown_operating_point_is_refused(point):
    with pytest.raises(BadValueError, match="points 0 to 7"):
        SRAM.layer(point, 64)


def test_a_model_that_does_not_fit_a_chip_without_dram_is_refused():
    with pytest.raises(BadValueError, match="MiB of SRAM and no DRAM"):
        Emulator(load_chip("asic28-sram"), BILLION)


def test_only_what_does_not_fit_is_streamed():
    assert Emulator(load_chip("asic28-sram"), SMALL).layer(0, 64).dram_j == 0
    assert 0 < LPDDR4.resident < 0.02
    streamed = LPDDR4.work[LAYER]["dram_bytes"] / LPDDR4.work[LAYER]["weight_bytes"]
    assert streamed == pytest.approx(1 - LPDDR4.resident)


@pytest.mark.parametrize(("regulator", "exponent"), [("ideal", 2), ("switched-capacitor", 2), ("buck", 2), ("ldo", 1)])
def test_an_ldo_follows_the_voltage_and_other_regulators_its_square(regulator, exponent):
    chip = load_chip("asic28-sram")
    chip = dataclasses.replace(chip, power=dataclasses.replace(chip.power, regulator=regulator))
    points = Emulator(chip, SMALL).points
    ratio = points["dynamic_scale"] / points["dynamic_scale"][0]
    np.testing.assert_allclose(ratio, (points["voltage_v"] / points["voltage_v"][0]) ** exponent, rtol=1e-12)


def test_no_regulator_gives_more_than_it_takes():
    chip = load_chip("asic28-sram")
    ideal = Emulator(dataclasses.replace(chip, power=dataclasses.replace(chip.power, regulator="ideal")), SMALL).points
    for regulator in ("switched-capacitor", "buck", "ldo"):
        power = dataclasses.replace(chip.power, regulator=regulator)
        points = Emulator(dataclasses.replace(chip, power=power), SMALL).points
        assert (points["dynamic_scale"] > ideal["dynamic_scale"]).all()
        assert (points["leakage_w"] > ideal["leakage_w"]).all()


def test_idling_costs_less_than_the_leakage_of_the_lowest_point():
    assert 0 < SRAM.idle_w() < SRAM.points["leakage_w"][0]
    assert SRAM.idle_w(80.0) > SRAM.idle_w(25.0)
