import dataclasses
import itertools
import math
import re
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadValueError
from clone_rl.hw_emulator import Board, Chip, Emulator, Workload
from clone_rl.hw_emulator.emulator import HEAD, LAYER, POLICY, PROBE

BOARDS = ["orin-agx", "orin-agx-eager", "orin-nano", "orin-nx"]
LLAMA = Workload.from_config("llama-3.2-1b", "bf16")


def on_board(name, workload=LLAMA, dram=None, **laws):
    chip = Chip.load(name)
    chip = dataclasses.replace(chip, board=dataclasses.replace(chip.board, **laws))
    return Emulator(dataclasses.replace(chip, dram=dataclasses.replace(chip.dram, **(dram or {}))), workload)


@pytest.mark.parametrize("name", BOARDS)
def test_effective_voltages_follow_the_fitted_energy_per_cycle(name):
    text = (resources.files("clone_rl.hw_emulator") / "chips" / f"{name}.toml").read_text(encoding="utf-8")
    (law,) = re.findall(r"\(V/Vtop\)\^2 = ([\d.]+) \+ ([\d.]+) \(f / ([\d.]+) MHz\)\^2", text)
    constant, slope, top_mhz = map(float, law)
    points = Emulator(Chip.load(name), LLAMA).points
    energy = constant + slope * (points["frequency_hz"] / (top_mhz * 1e6)) ** 2
    assert points["dynamic_scale"] == pytest.approx(energy / energy[-1], rel=2e-3)
    assert points["dynamic_scale"][-1] == 1.0


@pytest.mark.parametrize("vf", [0, 5, 10])
def test_a_token_takes_the_cycles_that_stream_its_weights_and_cache_and_multiply(vf):
    emulator = on_board("orin-agx")
    frequency, stored = emulator.points[vf]["frequency_hz"], 2 * LLAMA.macs_per_token
    cache = 16 * 100 * 2 * 512 * 2
    cost = emulator.token(context=100, vf=vf)
    laws = emulator.chip.board
    cycles = (stored + cache) / laws.stream_bytes_per_cycle
    cycles += (LLAMA.macs_per_token + 16 * 100 * 2 * 2048) / laws.gemm_macs_per_cycle
    assert cost.latency_s == pytest.approx(cycles / frequency, rel=1e-3)
    assert cost.clock_j == pytest.approx(cycles * laws.cycle_energy_j * emulator.points[vf]["dynamic_scale"])
    assert cost.dram_j == pytest.approx((stored + cache + 16 * 2048) * 60e-12)  # the caches of this token are written
    assert cost.leakage_j == pytest.approx(cost.latency_s * laws.static_w)
    assert cost.energy_j == pytest.approx(cost.clock_j + cost.dram_j + cost.leakage_j)


def test_no_clock_beats_what_dram_delivers():
    emulator = on_board("orin-agx", dram={"bandwidth_bytes_per_s": 20e9})
    seconds = 2 * LLAMA.macs_per_token / (20e9 * 0.85)
    slowest, fastest = (emulator.token(vf=vf).latency_s for vf in (0, 10))
    assert fastest == pytest.approx(seconds, rel=0.01)
    assert slowest < 1.2 * fastest


def test_a_host_hides_behind_the_device_and_the_device_behind_the_host():
    device, host = (on_board("orin-agx", host_s_per_token=s).token(vf=0).latency_s for s in (0.0, 1e-4))
    assert host == pytest.approx(device, rel=1e-6)
    waits = on_board("orin-agx", host_s_per_token=1.0).token(vf=10).latency_s
    assert waits == pytest.approx(1.0, rel=1e-6)


@given(st.floats(1e-4, 0.3), st.floats(1.0, 64.0), st.integers(0, 10))
def test_host_and_device_join_between_the_longer_of_the_two_and_their_sum(host_s, power, vf):
    alone = on_board("orin-agx").layer(vf=vf).latency_s
    joined = on_board("orin-agx", host_s_per_token=host_s, overlap_power=power).layer(vf=vf).latency_s
    share = host_s * LLAMA.layer_bytes / LLAMA.weight_bytes
    assert max(alone, share) * (1 - 1e-9) <= joined <= (alone + share) * (1 + 1e-9)


def test_overhead_cycles_are_hidden_by_nothing_and_shrink_with_the_clock():
    for vf in (0, 3):
        with_s, without_s = (on_board("orin-nano", overhead_cycles_per_token=c).token(vf=vf).latency_s for c in (6.222e6, 0.0))
        assert with_s - without_s == pytest.approx(6.222e6 / Chip.load("orin-nano").operating_points[vf].frequency_hz)


def test_rows_share_one_read_of_the_weights_and_pay_their_products():
    emulator = on_board("orin-agx")
    one, many = (emulator.layer(tokens=rows).latency_s for rows in (1, 33))
    assert many - one == pytest.approx(32 * LLAMA.layer_parameters / emulator.chip.board.gemm_macs_per_cycle / 1300.5e6)


def test_adapters_add_their_bytes_to_every_layer():
    plain, lora = (on_board("orin-agx", dataclasses.replace(LLAMA, lora_rank=rank)).work[LAYER] for rank in (0, 8))
    assert lora["dram_bytes"] - plain["dram_bytes"] == 2 * dataclasses.replace(LLAMA, lora_rank=8).lora_parameters


def test_an_extra_kernel_costs_a_twelfth_of_a_layer_s_launches():
    emulator = Emulator(Chip.load("orin-agx-eager"), LLAMA, policy_macs=900)
    share_s = emulator.chip.board.host_s_per_token * LLAMA.layer_bytes / LLAMA.weight_bytes
    assert emulator.work[LAYER]["floor_s"] == pytest.approx(share_s)
    for piece in (PROBE, POLICY, emulator.kv_fill_row(1)):
        assert emulator.cost(piece, 10).latency_s == pytest.approx(share_s / 12, rel=1e-6)


def test_a_token_pays_all_of_the_host_s_time_once():
    emulator = on_board("orin-agx-eager")
    assert sum(emulator.work[row]["floor_s"] for row in (HEAD, *range(LAYER, LAYER + 16))) == pytest.approx(
        emulator.chip.board.host_s_per_token
    )


@pytest.mark.parametrize(("name", "precision", "number"), [("orin-agx-eager", "fp8", "fp8"), ("orin-agx", "fp32", "fp32")])
def test_formats_without_a_measurement_are_refused_with_the_measured_ones(name, precision, number):
    with pytest.raises(BadValueError, match=rf"{name} has no measured {number} products \(formats: .*bf16"):
        Emulator(Chip.load(name), LLAMA.with_precision(precision))


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_idles_at_its_idle_power_and_keeps_nothing_on_chip(name):
    emulator = Emulator(Chip.load(name), LLAMA)
    assert isinstance(emulator.chip, Board)
    assert list(emulator.idle_states()) == ["idle"]
    assert emulator.idle_w() == emulator.idle_states()["idle"].power_w == emulator.chip.board.idle_w
    assert (emulator.resident, emulator.kv_tokens) == (0.0, 0.0)


def test_static_power_grows_with_temperature_from_where_it_was_measured():
    emulator = on_board("orin-agx")
    measured, hot = (emulator.layer(temperature_c=emulator.chip.board.reference_c + t).leakage_j for t in (0.0, 20.0))
    assert emulator.layer().leakage_j == measured
    assert hot / measured == pytest.approx(math.exp(20 * emulator.chip.board.static_per_kelvin))


@pytest.mark.parametrize("name", BOARDS)
def test_filling_the_caches_of_skipped_layers_costs_less_than_running_them(name):
    emulator = Emulator(Chip.load(name), LLAMA)
    fills = [emulator.cost(emulator.kv_fill_row(n), emulator.top) for n in range(16)]
    assert fills[0].latency_s == fills[0].energy_j == 0
    assert all(a.energy_j < b.energy_j for a, b in itertools.pairwise(fills))
    assert fills[15].energy_j < 15 * emulator.layer().energy_j
    assert fills[15].latency_s < 15 * emulator.layer().latency_s
