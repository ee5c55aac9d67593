import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.hw_emulator import Chip, Emulator, Workload
from clone_rl.hw_emulator.emulator import LAYER, TERMS
from clone_rl.hw_emulator.workload import LORA_TARGETS

SMALL = Workload(layers=10, hidden_size=256, heads=4, kv_heads=2, ff_size=768)
SRAM, LPDDR4 = Chip.load("asic28-sram"), Chip.load("asic28-lpddr4")


def with_lora(rank, **changes):
    return dataclasses.replace(SMALL, lora_rank=rank, **changes)


def without_lpu(chip):
    return dataclasses.replace(chip, lpu=None)


def with_lpu(chip, **changes):
    return dataclasses.replace(chip, lpu=dataclasses.replace(chip.lpu, **changes))


def test_adapters_sit_beside_the_query_and_value_matrices_and_several_add_up():
    assert with_lora(8).lora_parameters == 8 * (256 + 256) + 8 * (256 + 128)
    assert with_lora(8, adapters=3).lora_parameters == 3 * with_lora(8).lora_parameters
    assert with_lora(0).lora_parameters == 0


@pytest.mark.parametrize("target", LORA_TARGETS)
def test_each_target_adds_rank_times_the_edges_of_its_matrix(target):
    inputs, outputs = SMALL.products[target]
    assert with_lora(4, lora_targets=(target,)).lora_parameters == 4 * (inputs + outputs)


def test_a_network_without_a_gate_has_no_adapter_beside_it():
    assert with_lora(4, lora_targets=("gate",), gated=False).lora_parameters == 0


def test_an_unknown_target_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'query'"):
        with_lora(4, lora_targets=("queries",))


@pytest.mark.parametrize("rank", [-1, 1.5, "8", True])
def test_a_rank_that_is_no_count_is_refused(rank):
    with pytest.raises(BadValueError, match=f"lora_rank is {rank!r}"):
        with_lora(rank)


@given(st.integers(0, 40), st.integers(1, 20), st.integers(0, 7), st.integers(1, 64), st.booleans(), st.booleans())
def test_a_higher_rank_never_makes_a_token_faster(rank, more, vf, rows, dram, beside):
    chip = LPDDR4 if dram else SRAM
    chip = chip if beside else without_lpu(chip)
    less, greater = (Emulator(chip, with_lora(r)).token("prefill", tokens=rows, vf=vf).latency_s for r in (rank, rank + more))
    assert greater >= less * (1 - 1e-12)


def test_small_adapters_hide_behind_the_array_and_cost_the_unit_s_energy():
    plain, lora = (Emulator(SRAM, with_lora(rank)).layer(context=64) for rank in (0, 2))
    assert lora.latency_s == plain.latency_s
    assert lora.lpu_j > plain.lpu_j == 0
    other = [name for name in TERMS if name not in ("lpu_j", "leakage_j")]
    assert [getattr(lora, name) for name in other] == [getattr(plain, name) for name in other]


def test_the_unit_leaks_where_an_adapter_is_in_use_and_is_gated_otherwise():
    plain, lora = (Emulator(SRAM, with_lora(rank)).points["leakage_w"][3] for rank in (0, 2))
    scale = plain / (SRAM.sram.size_bytes * 1.46e-9 + SRAM.compute.area_mm2 * 0.3e-3)
    assert lora - plain == pytest.approx(scale * (131072 * 1.46e-9 + 16 * 450e-6 * 0.3e-3))
    assert Emulator(without_lpu(SRAM), with_lora(0)).points["leakage_w"][3] == plain


def test_the_unit_and_the_array_run_side_by_side_so_the_slower_one_sets_the_time():
    chip = with_lpu(SRAM, macs=1, buffer_bytes=1 << 20)
    emulator, parameters = Emulator(chip, with_lora(16)), with_lora(16).lora_parameters
    serial = emulator.work[LAYER]["elements_per_row"] / 16
    assert parameters > Emulator(SRAM, SMALL).layer().latency_s * 500e6
    assert emulator.layer().latency_s == pytest.approx((parameters + serial) / 500e6)


def test_adapters_in_the_buffer_cost_their_products_and_their_reads():
    emulator = Emulator(SRAM, with_lora(8))
    parameters = with_lora(8).lora_parameters
    bank_j = 0.65e-12 * math.sqrt(131072 / 65536)
    scale = emulator.points[3]["dynamic_scale"]
    assert emulator.layer(vf=3).lpu_j == pytest.approx(parameters * (0.2e-12 + bank_j) * scale)


def test_adapters_that_do_not_fit_the_buffer_stream_from_envm_at_its_speed_and_energy():
    chip = with_lpu(SRAM, buffer_bytes=with_lora(8).lora_parameters * 10 - 1)
    emulator, parameters = Emulator(chip, with_lora(8)), with_lora(8).lora_parameters
    slow_envm = Emulator(with_lpu(chip, envm_bytes_per_s=1e7), with_lora(8)).layer(vf=7)
    serial = emulator.work[LAYER]["elements_per_row"] / 16 / 500e6
    assert slow_envm.latency_s == pytest.approx(parameters / 1e7 + serial)
    for vf in (0, 7):
        bank_j = 0.65e-12 * math.sqrt(chip.lpu.buffer_bytes / 65536)
        on_chip_j = parameters * (0.2e-12 + bank_j) * emulator.points[vf]["dynamic_scale"]
        assert emulator.layer(vf=vf).lpu_j == pytest.approx(on_chip_j + parameters * 8e-12)


def test_adapters_at_the_size_of_the_buffer_do_not_stream():
    chip = with_lpu(SRAM, buffer_bytes=with_lora(8).lora_parameters * 10)
    assert Emulator(chip, with_lora(8)).work[LAYER]["lpu_stream_s"] == 0


def test_without_the_unit_adapters_run_on_the_array_after_the_layer_s_own_products():
    plain, lora = (Emulator(without_lpu(SRAM), with_lora(rank)) for rank in (0, 8))
    parameters, scale = with_lora(8).lora_parameters, plain.points[7]["dynamic_scale"]
    more = [getattr(lora.layer(), name) - getattr(plain.layer(), name) for name in ("latency_s", "mac_j", "lpu_j")]
    assert more == pytest.approx([parameters / (128 * 0.5 * 0.8) / 500e6, parameters * 0.2e-12 * scale, 0.0])
    assert lora.work[LAYER]["weight_bytes"] - plain.work[LAYER]["weight_bytes"] == parameters


def test_without_the_unit_adapters_share_the_residency_of_the_weights():
    emulator = Emulator(without_lpu(LPDDR4), with_lora(16))
    work, parameters = emulator.work[LAYER], with_lora(16).lora_parameters
    assert 0 < emulator.resident < 1
    assert work["dram_bytes"] == pytest.approx((1 - emulator.resident) * (SMALL.layer_bytes + parameters))
    assert emulator.resident < Emulator(LPDDR4, with_lora(16)).resident


def test_adapters_beyond_the_envm_are_refused_with_both_sizes():
    needed = with_lora(8).lora_parameters * 10
    Emulator(with_lpu(SRAM, envm_bytes=needed), with_lora(8))
    with pytest.raises(BadValueError, match=r"adapters take 0\.07 MiB and the eNVM of asic28-sram holds 0\.07 MiB"):
        Emulator(with_lpu(SRAM, envm_bytes=needed - 1), with_lora(8))


def test_other_adapters_are_read_from_envm_into_the_buffer():
    emulator = Emulator(SRAM, with_lora(8))
    stored = with_lora(8).lora_parameters * 10
    assert emulator.adapter_bytes == stored
    assert emulator.swap_adapters() == pytest.approx((stored / 1e9, stored * 8e-12))


def test_streamed_adapters_need_no_swap_and_no_adapters_cost_nothing():
    assert Emulator(with_lpu(SRAM, buffer_bytes=1), with_lora(8)).swap_adapters() == (0.0, 0.0)
    assert Emulator(SRAM, SMALL).swap_adapters() == (0.0, 0.0)


def test_without_the_unit_other_adapters_come_from_dram():
    emulator = Emulator(without_lpu(LPDDR4), with_lora(8))
    stored = with_lora(8).lora_parameters * 10
    seconds = stored / (12.8e9 * 0.85)
    assert emulator.swap_adapters() == pytest.approx((seconds, stored * (84e-12 + 0.65e-12) + seconds * 0.076))


def test_without_unit_and_dram_there_is_nowhere_to_swap_from():
    with pytest.raises(BadValueError, match=r"nowhere to swap adapters from.*\[lpu\] or a \[dram\]"):
        Emulator(without_lpu(SRAM), with_lora(8)).swap_adapters()


def test_adapters_in_envm_survive_a_power_down_and_others_are_reloaded():
    def reload_j(chip, rank):
        return Emulator(chip, with_lora(rank)).idle_states()["off"].wake_j

    big = dataclasses.replace(LPDDR4, sram=dataclasses.replace(LPDDR4.sram, size_bytes=1 << 24))
    assert reload_j(big, 16) == pytest.approx(reload_j(big, 0), rel=1e-12)
    bare = without_lpu(big)
    stored = with_lora(16).lora_parameters * 10
    gain = 1 / 0.85
    seconds = stored / (12.8e9 * 0.85)
    more = reload_j(bare, 16) - reload_j(bare, 0)
    assert more == pytest.approx(stored * (84e-12 + 0.65e-12 * gain) + seconds * 0.076, rel=1e-6)


@pytest.mark.parametrize("tokens", [1, 64])
def test_adapters_that_just_outgrow_the_buffer_never_cost_less(tokens):
    fits, streams = (
        Emulator(with_lpu(SRAM, buffer_bytes=with_lora(8).lora_parameters * 10 - short), with_lora(8)) for short in (0, 1)
    )
    costs = [emulator.layer(phase="prefill", tokens=tokens) for emulator in (fits, streams)]
    assert costs[1].lpu_j > costs[0].lpu_j
    assert costs[1].latency_s >= costs[0].latency_s
