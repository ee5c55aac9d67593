import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadValueError, CloneRLError, UnknownNameError
from clone_rl.hw_emulator import Chip, Emulator, LayerCost, Workload, chip_names
from clone_rl.hw_emulator.cost import positions, work_parts
from clone_rl.hw_emulator.emulator import HEAD, LAYER, POLICY, PROBE, TERMS

SMALL = Workload(layers=10, hidden_size=256, heads=4, kv_heads=2, ff_size=768)
BILLION = Workload.from_config("llama-3.2-1b", context=2048)
SRAM, LPDDR4 = Chip.load("asic28-sram"), Chip.load("asic28-lpddr4")
ON_SRAM, ON_LPDDR4 = Emulator(SRAM, SMALL, policy_macs=900), Emulator(LPDDR4, BILLION)


def altered(chip, section, **changes):
    return dataclasses.replace(chip, **{section: dataclasses.replace(getattr(chip, section), **changes)})


def on(chip, workload=SMALL, section=None, **changes):
    return Emulator(altered(chip, section, **changes) if section else chip, workload)


def windowed(*windows, **changes):
    return dataclasses.replace(SMALL, windows=windows, **changes)


# One layer, by hand.


def test_a_decode_layer_takes_the_cycles_that_arithmetic_says():
    macs, scores = SMALL.layer_parameters, 64
    attention = scores * 2 * 256
    cycles = macs / (128 * 0.8) + attention / (64 * 0.8)  # INT8 caches run at half the rate of INT4 weights
    serial = (2 * 256 + 256 + 128 + 768 + scores * 4) / 16
    scale = (1.0 / 0.9) ** 2 / 0.85
    cost = ON_SRAM.layer(context=64)
    assert cost.latency_s == pytest.approx((cycles + serial) / 500e6)
    assert cost.mac_j == pytest.approx((macs * 0.1e-12 + attention * 0.2e-12) * scale)
    assert cost.sfu_j == pytest.approx(((2 * 256 + 256 + 128 + 768) * 4e-12 + scores * 4 * 6e-12) * scale)
    assert cost.clock_j == pytest.approx((cycles + serial) * 128 * 0.015e-12 * scale)
    moved = sum(k + n for k, n in SMALL.products.values())
    read = macs * 4.25 / 8 + 2 * 128 + moved + scores * 2 * 128
    wires_j = moved * 0.6e-12 * math.sqrt(SRAM.area_mm2) / 2 / 2
    assert cost.sram_j == pytest.approx((read * 0.65e-12 + wires_j) * scale)
    leakage_w = 8388608 * 1.46e-9 + SRAM.compute.area_mm2 * 0.3e-3
    assert cost.leakage_j == pytest.approx(cost.latency_s * leakage_w * (1 / 0.9) * math.exp(0.25) / 0.85)
    assert (cost.dram_j, cost.lpu_j) == (0.0, 0.0)


def test_a_streamed_layer_takes_the_time_and_energy_of_its_transfer():
    cost = ON_LPDDR4.layer(context=100)
    read, bandwidth = BILLION.layer_bytes, 12.8e9 * 0.85
    assert ON_LPDDR4.resident == 0
    assert ON_LPDDR4.kv_tokens > 101
    transfer_s = read / bandwidth + 100e-9 + 7.5e-9
    computed_s = work_parts(ON_LPDDR4.constants[0], ON_LPDDR4.work[LAYER], 1.0, 100.0, False)[1] / 500e6
    serial_s = (2 * 2048 + 2048 + 512 + 8192 + 100 * 32) / 64 / 500e6
    assert cost.latency_s == pytest.approx(transfer_s + computed_s / (read / (8 * 16384)) + serial_s)
    waiting_s = cost.latency_s - transfer_s
    assert cost.dram_j == pytest.approx(read * 84e-12 + transfer_s * (0.076 + 0.0168) + waiting_s * (0.0126 + 0.0168))


def test_what_is_streamed_is_written_into_the_buffer_and_read_again():
    wireless = on(LPDDR4, BILLION, "compute", wire_energy_j_per_byte_mm=0.0)
    cost, work = wireless.layer(), wireless.work[LAYER]
    moved = 2 * BILLION.layer_bytes + work["activation_bytes_per_row"] + work["kv_bytes_per_row"]
    assert cost.sram_j == pytest.approx(moved * 0.65e-12 * (1.0 / 0.9) ** 2 / 0.85)


def test_every_normalisation_of_the_residual_takes_its_elements():
    two, four = (Emulator(SRAM, dataclasses.replace(SMALL, norms=norms)).layer() for norms in (2, 4))
    assert four.latency_s - two.latency_s == pytest.approx(2 * 256 / 16 / 500e6)
    assert four.sfu_j - two.sfu_j == pytest.approx(2 * 256 * 4e-12 * (1.0 / 0.9) ** 2 / 0.85)


def test_prefill_uses_the_array_where_it_beats_the_vector_mode():
    one, few, many = (ON_SRAM.layer(context=0, tokens=rows).latency_s for rows in (1, 8, 200))
    assert few == pytest.approx(8 * one)
    assert many < 0.95 * 200 * one


def test_a_narrow_port_makes_a_layer_wait_for_sram():
    narrow = on(SRAM, section="sram", bytes_per_cycle_per_tile=1.0)
    work = narrow.work[LAYER]
    bytes_read = work["weight_bytes"] + work["activation_bytes_per_row"] + work["kv_bytes_per_row"]
    assert narrow.layer().latency_s == pytest.approx((bytes_read / 2 + work["elements_per_row"] / 16) / 500e6)


@pytest.mark.parametrize("tiles", [1, 2, 9])
def test_wires_cross_half_the_die_to_the_other_tiles_and_vanish_with_one_tile(tiles):
    chip = SRAM.with_tiles(tiles)
    with_j, without_j = (on(chip, section="compute", wire_energy_j_per_byte_mm=e).layer().sram_j for e in (0.6e-12, 0.0))
    moved = sum(k + n for k, n in SMALL.products.values())
    share = {1: 0, 2: 1 / 2, 9: 8 / 9}[tiles]
    expected = moved * 0.6e-12 * math.sqrt(chip.area_mm2) / 2 * share * (1.0 / 0.9) ** 2 / 0.85
    assert with_j - without_j == pytest.approx(expected, abs=1e-20)


def test_larger_banks_cost_the_square_root_more_per_byte():
    small, large = (on(SRAM, section="sram", bank_bytes=size).constants[0]["sram_j_per_byte"] for size in (65536, 4 * 65536))
    assert (small, large) == pytest.approx((0.65e-12, 1.3e-12))


def test_temperature_moves_leakage_alone_and_doubles_it_every_22_kelvin():
    cold, hot = (ON_LPDDR4.layer(context=64, vf=3, temperature_c=t) for t in (25.0, 25.0 + math.log(2) / 0.032))
    assert hot.leakage_j == pytest.approx(2 * cold.leakage_j)
    assert dataclasses.replace(hot, leakage_j=0.0) == dataclasses.replace(cold, leakage_j=0.0)
    assert ON_LPDDR4.layer(context=64, vf=3) == cold


@given(st.integers(0, 7), st.integers(1, 256), st.integers(0, 2048), st.floats(1.0, 3.0), st.booleans())
def test_a_slowdown_stretches_latency_and_leakage_and_leaves_the_work_alone(vf, rows, context, slowdown, streamed):
    emulator = ON_LPDDR4 if streamed else ON_SRAM
    quiet, busy = (emulator.layer(context=context, tokens=rows, vf=vf, slowdown=s) for s in (1.0, slowdown))
    assert busy.latency_s == pytest.approx(quiet.latency_s * slowdown)
    assert busy.leakage_j == pytest.approx(quiet.leakage_j * slowdown)
    assert (busy.mac_j, busy.sram_j, busy.sfu_j, busy.lpu_j) == (quiet.mac_j, quiet.sram_j, quiet.sfu_j, quiet.lpu_j)
    more_s = busy.latency_s - quiet.latency_s
    point, constants = emulator.points[vf], emulator.constants[0]
    gated_w = 0.1 * constants["clock_j_per_cycle"] * point["frequency_hz"] * point["dynamic_scale"]
    assert busy.clock_j - quiet.clock_j == pytest.approx(more_s * gated_w, rel=1e-6, abs=1e-18)
    assert busy.dram_j - quiet.dram_j == pytest.approx(more_s * constants["dram_waiting_w"], rel=1e-6, abs=1e-15)


def test_a_stalled_cycle_takes_the_gated_share_of_the_clock_s_energy():
    gated, running, off = (on(LPDDR4, BILLION, "compute", clock_gated_fraction=share).layer() for share in (0.1, 1.0, 0.0))
    per_second = 2048 * 0.015e-12 * 500e6 * (1.0 / 0.9) ** 2 / 0.85
    assert running.clock_j == pytest.approx(running.latency_s * per_second)
    assert gated.clock_j == pytest.approx(off.clock_j + 0.1 * (running.clock_j - off.clock_j))
    assert off.clock_j < 0.05 * running.clock_j


# Attention.


@given(st.integers(1, 200), st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_prefill_attends_to_exactly_the_positions_that_a_causal_window_allows(tokens, cached, window, held):
    chip, work = ON_LPDDR4.constants[0].copy(), ON_LPDDR4.work[LAYER].copy()
    work["window"], chip["kv_tokens"] = window or np.inf, held
    seen = [min(i, window or i) for i in range(cached + 1, cached + tokens + 1)]
    scores, read, spilled = positions(chip, work, float(tokens), float(cached), True)
    assert scores == sum(seen)
    beyond = sum(max(0, s - held) for s in seen)
    assert spilled / read == pytest.approx(beyond / sum(seen), abs=1e-12)
    assert sum(seen) / min(tokens, 16) <= read * (1 + 1e-12)
    assert read <= sum(seen) * (1 + 1e-12)
    if not window and tokens <= 16:
        assert read == pytest.approx(cached + tokens)


@given(st.integers(1, 64), st.integers(0, 3000), st.integers(0, 300), st.integers(0, 300))
def test_decoding_attends_to_the_context_within_the_window_once_per_sequence(sequences, context, window, held):
    chip, work = ON_LPDDR4.constants[0].copy(), ON_LPDDR4.work[LAYER].copy()
    work["window"], chip["kv_tokens"] = window or np.inf, held
    seen = min(context, window or context)
    expected = (sequences * seen, sequences * seen, sequences * max(0, seen - held))
    assert positions(chip, work, float(sequences), float(context), False) == expected


def test_a_prompt_s_energy_counts_every_score():
    alone = ON_SRAM.layer(phase="prefill", context=0, tokens=1).mac_j
    prompt = ON_SRAM.layer(phase="prefill", context=7, tokens=50).mac_j
    scale = (1.0 / 0.9) ** 2 / 0.85
    scores = sum(range(8, 58))
    per_row = SMALL.layer_parameters * 0.1e-12 * scale
    per_score = 2 * 256 * 0.2e-12 * scale
    assert alone == pytest.approx(per_row + per_score)
    assert prompt == pytest.approx(50 * per_row + scores * per_score)


def test_a_sliding_window_caps_what_a_layer_costs_and_leaves_the_others_alone():
    emulator = Emulator(SRAM, windowed(*(0, 40) * 5))
    assert emulator.layer(1, context=40) == emulator.layer(1, context=200)
    assert emulator.layer(1, context=39).energy_j < emulator.layer(1, context=40).energy_j
    assert emulator.layer(0, context=200) == ON_SRAM.layer(0, context=200)
    assert emulator.layer(0, context=200).energy_j > emulator.layer(1, context=200).energy_j
    assert emulator.layer(1, context=30) == emulator.layer(0, context=30)
    assert emulator.classes == [0, 1]
    assert emulator.remaining[[0, 1, 9, 10]].tolist() == [[5, 5], [4, 5], [0, 1], [0, 0]]


# Where weights and caches lie.


def test_only_what_does_not_fit_is_streamed():
    assert on(SRAM).resident == 1.0
    assert on(LPDDR4, BILLION).resident == 0.0
    emulator = on(LPDDR4, section="sram", size_bytes=3 << 20)
    caches = 256 * 10 * SMALL.kv_bytes_per_token
    free = 3 * 2**20 - 2 * 8 * 16384 - caches
    assert emulator.resident == pytest.approx(free / SMALL.weight_bytes)
    assert 0.3 < emulator.resident < 0.6
    assert emulator.work[LAYER]["dram_bytes"] == pytest.approx((1 - emulator.resident) * SMALL.layer_bytes)
    assert emulator.work[HEAD]["dram_bytes"] == pytest.approx((1 - emulator.resident) * SMALL.head_bytes + 256)
    fills = emulator.work[emulator.kv_fill_row(3)]
    assert fills["dram_bytes"] == pytest.approx((1 - emulator.resident) * 256 * 128 * 2 * 3 * 4.25 / 8)


def test_a_model_that_fits_needs_no_transfers_although_there_is_dram():
    emulator = on(LPDDR4, section="sram", size_bytes=16 << 20)
    cost = emulator.layer(context=200)
    assert (emulator.resident, emulator.kv_tokens) == (1.0, emulator.context)
    assert cost.dram_j == pytest.approx(cost.latency_s * (0.0126 + 0.0168))


def test_more_reserved_context_leaves_less_room_for_weights():
    shares = [Emulator(altered(LPDDR4, "sram", size_bytes=3 << 20), SMALL, context=c).resident for c in (1, 100, 200)]
    assert shares == sorted(set(shares), reverse=True)


def test_caches_beyond_what_sram_holds_are_read_from_dram_and_written_to_it():
    emulator = ON_LPDDR4
    held = (4194304 - 2 * 8 * 16384) / (1024 * 16)
    assert emulator.kv_tokens == held == 240.0
    inside, at, beyond = (
        work_parts(emulator.constants[0], emulator.work[LAYER], 1.0, float(context), False) for context in (100, 240, 300)
    )
    assert inside[4] == at[4] == emulator.work[LAYER]["dram_bytes"]
    assert beyond[4] - at[4] == 60 * 1024
    assert (inside[5], at[5], beyond[5]) == (0, 0, 1024)
    costs = [emulator.layer(context=c).dram_j for c in (240, 300)]
    assert costs[1] - costs[0] > 60 * 1024 * 84e-12 + 1024 * 56e-12


def test_reads_and_writes_of_spilled_caches_cost_their_own_energy():
    free = {"active_w": 0.0, "standby_w": 0.0, "power_down_w": 0.0, "refresh_w": 0.0}
    emulator = on(LPDDR4, BILLION, "dram", **free)
    read = BILLION.layer_bytes + (1000 - emulator.kv_tokens) * 1024
    assert emulator.layer(context=1000).dram_j == pytest.approx(read * 84e-12 + 1024 * 56e-12, rel=1e-12)


def test_layers_with_a_window_reserve_room_for_it_alone():
    chip = altered(LPDDR4, "sram", size_bytes=3 << 20)
    full, narrow = Emulator(chip, SMALL), Emulator(chip, windowed(*(0, 40) * 5))
    saved = 5 * (256 - 40) * SMALL.kv_bytes_per_token
    assert narrow.resident - full.resident == pytest.approx(saved / SMALL.weight_bytes)


def test_a_prompt_writes_to_dram_the_caches_that_sram_does_not_hold():
    written = [work_parts(ON_LPDDR4.constants[0], ON_LPDDR4.work[LAYER], 100.0, float(c), True)[5] for c in (0, 140, 200, 500)]
    assert written == [0, 0, 60 * 1024, 100 * 1024]


def test_a_model_that_does_not_fit_a_chip_without_dram_is_refused_with_both_sizes():
    with pytest.raises(BadValueError, match=r"llama-3.2-1b needs 7\d\d\.\d MiB at int4 .* asic28-sram has 8\.0 MiB.*\[dram\]"):
        Emulator(SRAM, BILLION)
    with pytest.raises(BadValueError, match="context of 8000"):
        Emulator(SRAM, SMALL, context=8000)


def test_a_format_without_multipliers_is_refused():
    with pytest.raises(BadValueError, match="no fp32 multipliers"):
        Emulator(LPDDR4, SMALL.with_precision("fp32"))


# Overlap.


@pytest.mark.parametrize("rows", [1, 8, 64, 256])
@pytest.mark.parametrize("vf", [0, 7])
def test_double_buffering_hides_the_shorter_of_transfer_and_computation_but_for_one_tile(rows, vf):
    seconds = {}
    for buffered in (False, True):
        emulator = on(LPDDR4, BILLION, "sram", double_buffered=buffered)
        frequency = emulator.points[vf]["frequency_hz"]
        _, cycles, serial, _, read, written, dram_s = work_parts(emulator.constants[0], emulator.work[LAYER], rows, 0.0, True)
        first_s = 107.5e-9
        computed_s, transfer_s = cycles / frequency, dram_s - first_s
        tiles = (read + written) / (8 * 16384) if buffered else 1
        expected_s = first_s + max(computed_s, transfer_s) + min(computed_s, transfer_s) / tiles
        seconds[buffered] = emulator.layer(phase="prefill", tokens=rows, vf=vf).latency_s
        assert seconds[buffered] == pytest.approx(expected_s + serial / frequency)
    assert seconds[True] < seconds[False]


def test_a_transfer_smaller_than_a_buffer_hides_nothing():
    chip = altered(altered(LPDDR4, "sram", buffer_bytes_per_tile=1 << 20, size_bytes=1 << 25), "dram", latency_s=1e-6)
    emulator = Emulator(chip, dataclasses.replace(SMALL, layers=100, hidden_size=320, heads=5, kv_heads=5))
    assert 0 < emulator.work[LAYER]["dram_bytes"] < 8 << 20
    _, cycles, serial, *_, dram_s = work_parts(emulator.constants[0], emulator.work[LAYER], 1.0, 0.0, False)
    assert emulator.layer().latency_s == pytest.approx((cycles + serial) / 500e6 + dram_s)


# DRAM states.


def test_dram_that_stays_in_standby_wakes_faster_and_draws_more():
    down, stay = (on(LPDDR4, BILLION, "dram", between_transfers=state) for state in ("power-down", "standby"))
    assert down.layer(vf=0).latency_s - stay.layer(vf=0).latency_s == pytest.approx(7.5e-9, rel=1e-3)
    per_s = stay.constants[0]["dram_waiting_w"] - down.constants[0]["dram_waiting_w"]
    assert per_s == pytest.approx(0.068 - 0.0126)
    prompts = [e.layer(phase="prefill", tokens=256, vf=0) for e in (down, stay)]
    waited_s = prompts[0].latency_s - BILLION.layer_bytes / (12.8e9 * 0.85)
    assert prompts[1].dram_j - prompts[0].dram_j == pytest.approx(waited_s * per_s, rel=1e-3)


def test_refresh_is_paid_in_every_state_but_self_refresh():
    plain, more = (on(LPDDR4, BILLION, "dram", refresh_w=w) for w in (0.0168, 0.1168))
    costs = [e.layer() for e in (plain, more)]
    assert costs[1].dram_j - costs[0].dram_j == pytest.approx(0.1 * costs[0].latency_s)
    assert more.idle_states()["clock-gated"].power_w - plain.idle_states()["clock-gated"].power_w == pytest.approx(0.1)
    for state in ("retention", "off"):
        assert more.idle_states()[state] == plain.idle_states()[state]


# Head, probe, controller, skipped caches.


def test_the_head_multiplies_the_vocabulary_once():
    cost = ON_SRAM.cost(HEAD, 7)
    scale = (1.0 / 0.9) ** 2 / 0.85
    assert cost.mac_j == pytest.approx(256 * 2048 * 0.2e-12 * scale)
    assert cost.latency_s == pytest.approx((256 * 2048 / (64 * 0.8) + (256 + 2048) / 16) / 500e6)
    assert cost.sfu_j == pytest.approx((256 + 2048) * 4e-12 * scale)


@pytest.mark.parametrize("signals", [1, 2, 5])
def test_an_exit_probe_is_a_norm_and_its_dot_products_on_the_special_functions(signals):
    emulator = Emulator(SRAM, SMALL, signals=signals)
    cost = emulator.cost(PROBE, 7)
    scale = (1.0 / 0.9) ** 2 / 0.85
    assert cost.mac_j == 0
    assert cost.sfu_j == pytest.approx(((256 + signals) * 4e-12 + 256 * signals * 0.2e-12) * scale)
    assert cost.latency_s == pytest.approx(((256 + signals + 256 * signals) / 16 + 256 * signals / 128) / 500e6)
    assert cost.energy_j < 0.02 * emulator.layer().energy_j


def test_a_controller_s_network_costs_its_products_and_a_table_hardly_anything():
    costs = [Emulator(SRAM, SMALL, policy_macs=macs).cost(POLICY, 3) for macs in (0, 900, 1800)]
    assert costs[0].energy_j == costs[0].latency_s == 0
    assert costs[1].latency_s == pytest.approx((900 / 16 + 900 / 128) / 260e6)
    assert costs[2].dynamic_j == pytest.approx(2 * costs[1].dynamic_j)
    tables = [Emulator(SRAM, SMALL, policy_lut_bytes=size).cost(POLICY, 3) for size in (1024, 4096)]
    assert 0 < tables[0].energy_j < tables[1].energy_j < costs[1].energy_j / 10
    assert tables[1].latency_s < costs[1].latency_s / 50
    assert tables[1].sram_j == pytest.approx(2 * tables[0].sram_j)


@pytest.mark.parametrize("emulator", [ON_SRAM, Emulator(LPDDR4, SMALL), ON_LPDDR4], ids=["sram", "mixed", "lpddr4"])
@pytest.mark.parametrize("vf", [0, 7])
def test_filling_the_caches_of_skipped_layers_grows_with_them_and_costs_less_than_running_them(emulator, vf):
    layer = emulator.layer(context=200, vf=vf)
    fills = [emulator.cost(emulator.kv_fill_row(n), vf, 200) for n in range(emulator.workload.layers)]
    assert fills[0].latency_s == fills[0].energy_j == 0
    for n in range(1, len(fills)):
        assert fills[n - 1].latency_s < fills[n].latency_s < n * layer.latency_s
        assert fills[n - 1].energy_j < fills[n].energy_j < n * layer.energy_j
    products = 2 * emulator.workload.kv_heads * emulator.workload.head_dim * emulator.workload.hidden_size
    assert emulator.work[emulator.kv_fill_row(3)]["macs_per_row"] == 3 * products


# Tables and tokens.


SUITED = {"asic28-sram": (SMALL,), "asic28-lpddr4": (BILLION, windowed(*(0, 40) * 5, lora_rank=8))}


@pytest.mark.parametrize("name", chip_names())
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_layer_and_table_agree(name, phase):
    contexts = [0, 1, 64, 255, 700]
    for workload in SUITED.get(name, (BILLION.with_precision("bf16"),)):
        emulator = Emulator(Chip.load(name), workload)
        table = emulator.table(phase, contexts, 3, 60.0, 1.44)
        assert table["energy_j"].shape == (workload.layers, len(emulator.points), len(contexts))
        for i in range(min(workload.layers, 3)):
            for vf in range(len(emulator.points)):
                for column, context in enumerate(contexts):
                    cost = emulator.layer(i, phase, context, 3, vf, 60.0, 1.44)
                    for term in ("latency_s", "energy_j", *TERMS):
                        assert table[term][i, vf, column] == pytest.approx(getattr(cost, term), rel=1e-9, abs=0), term


def test_one_context_gives_a_table_without_an_axis_for_it():
    table = ON_SRAM.table(context=40)
    assert {values.shape for values in table.values()} == {(10, 8)}
    assert list(table) == ["latency_s", "energy_j", *TERMS]
    assert table["latency_s"][4, 2] == ON_SRAM.layer(4, context=40, vf=2).latency_s


@pytest.mark.parametrize("name", chip_names())
@given(st.data(), st.integers(1, 10), st.integers(0, 300), st.integers(1, 5), st.floats(1, 2), st.floats(0, 90))
def test_a_token_is_the_sum_of_its_layers_caches_and_head(name, data, depth, context, tokens, slowdown, celsius):
    workload = windowed(*(0, 40) * 5)
    emulator = Emulator(Chip.load(name), workload.with_precision("bf16") if name == "orin-agx-eager" else workload)
    points = data.draw(st.lists(st.integers(0, emulator.top), min_size=depth, max_size=depth))
    token = emulator.token(context=context, tokens=tokens, vf=points, depth=depth, temperature_c=celsius, slowdown=slowdown)
    pieces = [emulator.layer(i, "decode", context, tokens, vf, celsius, slowdown) for i, vf in enumerate(points)]
    pieces.append(emulator.cost(emulator.kv_fill_row(10 - depth), points[-1], context, tokens, celsius, slowdown))
    pieces.append(emulator.cost(HEAD, points[-1], 0, tokens, celsius, slowdown))
    for term in ("latency_s", *TERMS):
        assert getattr(token, term) == pytest.approx(sum(getattr(piece, term) for piece in pieces), rel=1e-9), term


def test_a_prompt_runs_the_head_once_and_a_batch_once_per_sequence():
    layers = ON_SRAM.layer(phase="prefill", tokens=9).latency_s * 10
    assert ON_SRAM.token("prefill", tokens=9).latency_s - layers == pytest.approx(ON_SRAM.cost(HEAD, 7).latency_s)
    layers = ON_SRAM.layer(tokens=9, context=5).latency_s * 10
    assert ON_SRAM.token(tokens=9, context=5).latency_s - layers == pytest.approx(ON_SRAM.cost(HEAD, 7, rows=9).latency_s)


def test_short_hands_for_a_full_token():
    token = ON_SRAM.token(context=64.0, vf=2)
    assert (ON_SRAM.token_latency_s(2), ON_SRAM.token_energy_j(2)) == (token.latency_s, token.energy_j)
    assert ON_SRAM.token(vf=np.array([1, 2]), depth=2) == ON_SRAM.token(vf=[1, 2], depth=2)


def test_costs_add_and_scale_by_their_terms():
    cost = ON_LPDDR4.layer()
    assert LayerCost.total([cost, cost]) == cost + cost == cost * 2
    assert LayerCost.total([]).power_w == 0.0


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 10}, "layer 10 .model has layers 0 to 9"),
        ({"layer": -1}, "layer -1"),
        ({"layer": 1.5}, "layer 1.5"),
        ({"layer": True}, "layer True"),
        ({"vf": 8}, "operating point 8 .asic28-sram has points 0 to 7"),
        ({"vf": -1}, "operating point -1"),
        ({"vf": 1.0}, "operating point 1.0"),
        ({"vf": True}, "operating point True"),
        ({"vf": "3"}, "operating point 3"),
        ({"context": math.nan}, "context is nan .0 or more tokens"),
        ({"context": -1}, "context is -1"),
        ({"context": math.inf}, "context is inf"),
        ({"tokens": 0}, "tokens is 0 .at least 1"),
        ({"tokens": math.nan}, "tokens is nan"),
        ({"temperature_c": math.nan}, "temperature_c is nan .a finite"),
        ({"slowdown": 0.9}, "slowdown is 0.9 .a factor on the latency, at least 1"),
        ({"slowdown": math.nan}, "slowdown is nan"),
    ],
)
def test_a_bad_argument_of_a_layer_is_refused_with_what_is_allowed(changes, message):
    with pytest.raises(BadValueError, match=message):
        ON_SRAM.layer(**changes)


@pytest.mark.parametrize("method", ["layer", "token", "table"])
def test_an_unknown_phase_gets_a_suggestion(method):
    with pytest.raises(UnknownNameError, match=r"unknown phase 'decoding' .did you mean 'decode'"):
        getattr(ON_SRAM, method)(phase="decoding")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth is 0 .1 to 10"),
        ({"depth": 11}, "depth is 11"),
        ({"depth": 2.5}, "depth is 2.5"),
        ({"vf": [1, 2, 3]}, "3 operating points for 10 layers"),
        ({"vf": [1, 9], "depth": 2}, "operating point 9"),
        ({"vf": 1.5}, "operating point 1.5"),
        ({"phase": "prefill", "depth": 3}, "depth 3 in prefill .a prompt runs at full depth"),
    ],
)
def test_a_bad_argument_of_a_token_is_refused(changes, message):
    with pytest.raises(BadValueError, match=message):
        ON_SRAM.token(**changes)


@pytest.mark.parametrize("changes", [{"context": [1, -1]}, {"context": [math.nan]}, {"tokens": 0}, {"slowdown": 0}])
def test_a_bad_argument_of_a_table_is_refused(changes):
    with pytest.raises(BadValueError, match=f"{next(iter(changes))} is"):
        ON_SRAM.table(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"context": 0}, {"context": -5}, {"signals": -1}, {"policy_macs": -1}, {"policy_lut_bytes": -1}, {"switching": "pmics"}],
)
def test_a_bad_argument_of_an_emulator_is_refused(changes):
    with pytest.raises(CloneRLError, match=str(next(iter(changes.values())))):
        Emulator(SRAM, SMALL, **changes)


def test_something_else_is_no_chip():
    with pytest.raises(BadValueError, match=r"is not a chip .use Chip\.load"):
        Emulator("asic28-sram", SMALL)


def test_a_window_that_fits_is_never_written_to_dram_and_leaves_its_room_to_the_others():
    """Five layers of 40 positions and five of any number share what the SRAM holds."""
    workload = windowed(*(0, 40) * 5, context=8192)
    tight = altered(LPDDR4, "sram", size_bytes=LPDDR4.buffers_bytes + 256 * (5 * 40 + 5 * 100))
    emulator = Emulator(tight, workload, context=2048)
    assert emulator.kv_tokens == pytest.approx(100)
    constants = emulator.constants[0]
    written = [work_parts(constants, emulator.work[LAYER + i], 1.0, 4000.0, False)[5] for i in (0, 1)]
    assert written == [256, 0]


def test_positions_beyond_the_reserved_context_lie_in_dram():
    emulator = Emulator(altered(LPDDR4, "sram", size_bytes=16 << 20), windowed(context=8192), context=512)
    inside, beyond = (emulator.layer(context=c).dram_j for c in (512, 600))
    assert inside == pytest.approx(emulator.layer(context=512).latency_s * float(emulator.constants[0]["dram_waiting_w"]))
    assert beyond > inside + 88 * 256 * 84e-12


def test_an_untied_embedding_needs_room_on_a_chip_without_dram():
    model = Workload(4, 512, 8, 8, 1024, 8000, context=64)
    tight = altered(SRAM, "sram", size_bytes=int(model.weight_bytes) + 512 * 1024)
    Emulator(tight, model)
    with pytest.raises(BadValueError, match="no DRAM"):
        Emulator(tight, dataclasses.replace(model, tied=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": 1.5}, r"tokens is 1\.5"),
        ({"context": "5"}, "context is '5'"),
        ({"temperature_c": True}, "temperature_c is True"),
        ({"slowdown": None, "context": [1]}, r"context is \[1\]"),
    ],
)
def test_arguments_that_are_no_numbers_are_refused(arguments, message):
    with pytest.raises(BadValueError, match=message):
        ON_SRAM.layer(**arguments)


def test_a_name_is_no_workload():
    with pytest.raises(BadValueError, match=r"use Workload\.from_config"):
        Emulator(SRAM, "llama-3.2-1b")
